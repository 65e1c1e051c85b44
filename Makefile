# Everything a developer does here. `make` alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build tools run unit test test-racing test-plain lint generate fuzz soak bench release

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)
# gRPC without its traces in x/net/trace: their templates call methods by name, so that the linker keeps every method of every
# type, which is a third of the program. Nobody can see these traces here.
# vtprotobuf: the generated code of go-control-plane that writes messages without reflection (package codec).
TAGS := grpcnotrace vtprotobuf
TOOLS := $(CURDIR)/.tools
export PATH := $(TOOLS)/bin:$(PATH)
# The race detector needs a C compiler; without one the tests run without it, and say so. With it, a process sleeps for
# a second before it exits, by default, and the tests start hundreds.
export GORACE ?= atexit_sleep_ms=0
RACE := $(shell command -v gcc >/dev/null 2>&1 && echo -race)
# Tests wait more than they compute, so more of them, and of the packages, run at once than there are processors.
PROCESSORS := $(shell getconf _NPROCESSORS_ONLN)
TWICE := $(shell echo $$((2 * $(PROCESSORS))))
# go test starts packages in this order. The longest come first, so that none of them runs alone at the end.
FIRST := ./xds ./tokens/cache ./explain ./cmd/gatepost ./gateway ./tokens/boltstore ./tokens/redisstore ./definitions/revisions ./envoy

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## the binary, into bin/
	@tools/module build
	CGO_ENABLED=0 go build -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/gatepost ./cmd/gatepost

tools: ## the pinned Envoy and protoc, into .tools/
	@tools/fetch

run: build ## the demo shop behind a gateway on port 5500, without Docker
	@tools/fetch envoy
	@examples/demo/run

# What is tested is the program as it is released. With other tags than those of the programs that the tests start, all
# packages would be compiled twice.
unit test test-racing test-plain lint: export GOFLAGS := $(GOFLAGS) -tags=grpcnotrace,vtprotobuf
# As make build, so that all compile the packages once. The race detector needs cgo.
unit test-plain lint: export CGO_ENABLED := 0
# The tests of these packages run without the race detector, which makes them take four times the processor time: they
# compute, or look at programs from outside. e2e builds a program with the race detector for what happens at once.
PLAIN := ./e2e ./e2e/compose ./explain .
test-plain: export GATEPOST_RACE := $(RACE)
# These have tests of both kinds. testrun decides in which of the two runs each is.
BOTH := ./xds ./tokens/boltstore
test-racing: export GATEPOST_TESTS := racing
test-plain: export GATEPOST_TESTS := plain

# Both without vet, which is a part of make lint and takes longer than the tests if all is new.
unit: tools ## the tests that need no root and no Docker: all packages but e2e, with fewer cases
	@tools/module build
	go test -short -vet=off -p $(TWICE) -parallel $$((4 * $(PROCESSORS))) $(FIRST) $$(go list ./... | grep -v /e2e)

test: lint ## everything: lint, unit and end-to-end tests, a real browser, the compose file
	@tools/system
	@tools/page tests
	@tools/module build
	@test -n "$(RACE)" || echo 'no C compiler: the tests run without the race detector (install gcc)'
	@$(MAKE) --no-print-directory -j 2 test-racing test-plain

test-racing:
	go test $(RACE) -vet=off -shuffle=on -p $(PROCESSORS) -parallel $(TWICE) -timeout 60m $$(go list $(FIRST) ./... | grep -vxFf <(go list $(PLAIN)))
	go test -C bench $(RACE) -vet=off ./...

test-plain:
	go test -vet=off -shuffle=on -p $(TWICE) -parallel $(TWICE) -timeout 60m $(PLAIN) $(BOTH)
	go test -C examples/kubernetes -vet=off ./...

lint: tools ## gofmt, vet, staticcheck, generated code, known vulnerabilities
	@tools/lint

generate: tools ## the Go code of proto/, the JSON Schema, and the generated pages of docs/reference
	@tools/generate

fuzz: ## each fuzz target for FUZZTIME (default 60s); make test runs their seeds
	@tools/fuzz $(or $(FUZZTIME),60s)

soak: tools ## the checker of the tokens for ten minutes under faults, and ten minutes of load in the same memory
	GATEPOST_SOAK=10m go test -v -timeout 60m -run '^(TestRevokedMeansRefused.*|TestMemoryStaysFlat)$$' ./e2e/...

bench: tools ## the figures of bench/RESULTS.md, beside the peers (ONLY=G1,G3 for some, without writing them)
	go run -C bench . $(if $(ONLY),-only $(ONLY),-results RESULTS.md -docs ..)

release: ## binaries, archives, packages, SBOMs and checksums for linux/amd64 and arm64, into dist/
	@tools/release
