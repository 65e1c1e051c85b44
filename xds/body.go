package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	brotliv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/brotli/compressor/v3"
	gzipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	zstdv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/zstd/compressor/v3"
	bodysizev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/body_size_limit/v3"
	compressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/definitions"
)

// minCompressed is the size from which a body is compressed, if the upstream tells its size: smaller ones fit into one
// packet anyway.
const minCompressed = 1024

// compressed are the types that are compressed. Event streams are not among them, because a compressor would delay
// them.
var compressed = []string{
	"application/javascript", "application/json", "application/problem+json", "application/xhtml+xml", "application/xml",
	"image/svg+xml", "text/css", "text/csv", "text/html", "text/javascript", "text/plain", "text/xml",
}

// bodyFilters are the filters in a service's cluster that limit the body of a request or compress that of a response;
// nil if there is none. They are not in the route, because Envoy's filter_chain takes its filters from the route that
// it finds first, and the scope filter can find another: in other letters, a path would evade the limit. (Envoy docs,
// "Body size limit", "Compressor", and "Upstream HTTP filters".)
func (b *builder) bodyFilters(s *definitions.Service) (filters []*hcmv3.HttpFilter) {
	if s.MaxRequestBytes > 0 {
		filters = append(filters, httpFilter("max_request_bytes", b.pack(&bodysizev3.BodySizeLimit{MaxRequestBytes: wrapperspb.UInt64(s.MaxRequestBytes)})))
	}
	if s.Compression {
		filters = append(filters,
			b.compressor("gzip", b.pack(&gzipv3.Gzip{})), b.compressor("brotli", b.pack(&brotliv3.Brotli{})), b.compressor("zstd", b.pack(&zstdv3.Zstd{})))
	}
	if filters != nil {
		filters = append(filters, httpFilter("codec", b.pack(&codecv3.UpstreamCodec{})))
	}
	return filters
}

func (b *builder) compressor(name string, library *anypb.Any) *hcmv3.HttpFilter {
	return httpFilter(name, b.pack(&compressorv3.Compressor{
		CompressorLibrary: &corev3.TypedExtensionConfig{Name: name, TypedConfig: library},
		ChooseFirst:       name == "zstd", // of those that a client likes best
		ResponseDirectionConfig: &compressorv3.Compressor_ResponseDirectionConfig{
			CommonConfig: &compressorv3.Compressor_CommonDirectionConfig{
				MinContentLength:   wrapperspb.UInt32(minCompressed),
				ContentTypeMatcher: exactly(compressed).GetPatterns(),
			},
			WeakenEtagOnCompress:        true,          // a conditional request still works
			UncompressibleResponseCodes: []uint32{206}, // a range is one of the body as the upstream has it
		},
	}))
}
