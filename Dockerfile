# Gatepost as one static program in an image without a shell. Builds with BuildKit and with the classic builder alike.
# The base images are pinned by tag: no digest of theirs could be checked where this was written. A release adds them.
FROM golang:1.26-bookworm AS build
WORKDIR /src
# The modules first: a change of the code alone downloads nothing.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
# The module for Envoy, by the C compiler of this image; it is embedded in the program.
RUN tools/module build
# The tag is explained in the Makefile.
RUN CGO_ENABLED=0 go build -trimpath -tags grpcnotrace,vtprotobuf -ldflags "-s -w -X main.version=$VERSION" -o /out/gatepost ./cmd/gatepost && mkdir /out/data

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/gatepost /gatepost
# A new volume there takes over the folder's owner.
COPY --from=build --chown=65532:65532 /out/data /var/lib/gatepost
ENV GATEPOST_CONFIG=/etc/gatepost/gatepost.yaml GATEPOST_DATA=/var/lib/gatepost
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["/gatepost", "health"]
ENTRYPOINT ["/gatepost"]
CMD ["serve"]
