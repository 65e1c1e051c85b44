#!/usr/bin/env bash
# Builds Docker Compose from its Go module, for machines that have an engine but no `docker
# compose`: build-compose.sh VERSION FILE
# Takes a minute or more; FILE is kept by who asks for it.
set -eu
version=${1:?which version} out=${2:?the file to build}
src=$(go mod download -json "github.com/docker/compose/v5@$version" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir" && rm -rf "$dir"' EXIT
# The module cache is read-only, and the build wants to be the main module.
cp -R "$src/." "$dir"
chmod -R u+w "$dir"
mkdir -p "$(dirname "$out")"
(cd "$dir" && CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off go build -trimpath \
  -ldflags "-s -w -X github.com/docker/compose/v5/internal.Version=$version" -o "$dir/docker-compose" ./cmd)
cp "$dir/docker-compose" "$out.part"
mv "$out.part" "$out" # so that FILE is never half a program
