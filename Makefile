# Everything a developer does here. `make` alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build tools run unit test lint generate fuzz soak bench release

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)
# gRPC without its traces in x/net/trace: their templates call methods by name, so that the linker keeps every method of every
# type, which is a third of the program. Nobody can see these traces here.
# vtprotobuf: the generated code of go-control-plane that writes messages without reflection (package codec).
TAGS := grpcnotrace vtprotobuf
TOOLS := $(CURDIR)/.tools
export PATH := $(TOOLS)/bin:$(PATH)

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
# packages would be compiled twice. The race detector alone needs cgo (tools/test).
unit test lint: export GOFLAGS := $(GOFLAGS) -tags=grpcnotrace,vtprotobuf
unit test lint: export CGO_ENABLED := 0

unit: tools ## the tests that need no root and no Docker: all packages but e2e, with fewer cases
	@tools/test unit

test: tools ## everything: lint, unit and end-to-end tests, a real browser, the compose file
	@tools/system
	@tools/page tests
	@tools/test all

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
