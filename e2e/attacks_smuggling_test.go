package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"gatepost/envoy/envoytest"
)

// The smuggled request. No service has its path: if the gateway parses it as a request, the status
// is 404. If an upstream receives it, the smuggling succeeded.
const smuggled = "GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n"

// carrier is a POST to a public service with these header lines, followed by these bytes.
func carrier(after string, lines ...string) string {
	return rawRequest("POST", "/items/carrier", lines...) + after
}

// smuggling sends bytes that two servers may split into requests differently. The upstreams must
// receive unambiguous requests only, and never the smuggled one.
func (f *fortress) smuggling(t *testing.T) {
	const chunked = "transfer-encoding: chunked"
	length := fmt.Sprintf("content-length: %d", len(smuggled))
	inChunk := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)
	cases := map[string]string{
		// Two lengths.
		"CL.TE":                  carrier("0\r\n\r\n"+smuggled, fmt.Sprintf("content-length: %d", 5+len(smuggled)), chunked),
		"TE.CL":                  carrier(inChunk, "content-length: 4", chunked),
		"TE before CL":           carrier("0\r\n\r\n"+smuggled, chunked, "content-length: 5"),
		"two lengths":            carrier(smuggled, "content-length: 0", length),
		"two lengths reversed":   carrier(smuggled, length, "content-length: 0"),
		"the same length twice":  carrier(smuggled, length, length),
		"lengths in a list":      carrier(smuggled, fmt.Sprintf("content-length: 0, %d", len(smuggled))),
		"one length in a list":   carrier(smuggled, fmt.Sprintf("content-length: %[1]d, %[1]d", len(smuggled))),
		"a length folded":        carrier(smuggled, "content-length:", " 0"),
		"a length of two lines":  carrier(smuggled, "content-length: 0", " 9"),
		"a length hop by hop":    carrier(smuggled, length, "connection: content-length"),
		"a list of lengths":      carrier(smuggled, "content-length: 1 0"),
		"a negative length":      carrier(smuggled, "content-length: -1"),
		"a signed length":        carrier(smuggled, fmt.Sprintf("content-length: +%d", len(smuggled))),
		"a length in hex":        carrier(smuggled, fmt.Sprintf("content-length: 0x%x", len(smuggled))),
		"a length with a point":  carrier(smuggled, "content-length: 0.0"),
		"a length with a NUL":    carrier(smuggled, "content-length: 0\x00"),
		"a length too long":      carrier(smuggled, "content-length: 18446744073709551616"),
		"a length near the end":  carrier(smuggled, "content-length: 18446744073709551615"),
		"an empty length":        carrier(smuggled, "content-length:"),
		"zeros before a length":  carrier(smuggled, fmt.Sprintf("content-length: 000%d", len(smuggled))),
		"blank before the colon": carrier(smuggled, "content-length : 0", length),
		"blank in the name":      carrier(smuggled, "content -length: 0"),
		"a line before it":       carrier(smuggled, "\tcontent-length: 0", length),
		"an underscore":          carrier(smuggled, "content_length: 0", length),
		// Variants of transfer codings.
		"TE xchunked":                        carrier(inChunk, "transfer-encoding: xchunked"),
		"TE after a tab":                     carrier(inChunk, "transfer-encoding:\tchunked"),
		"TE with a vertical tab":             carrier(inChunk, "transfer-encoding: \vchunked", "content-length: 4"),
		"TE with a form feed":                carrier(inChunk, "transfer-encoding: chunked\f", "content-length: 4"),
		"TE with a NUL":                      carrier(inChunk, "transfer-encoding: chunked\x00"),
		"TE with another byte":               carrier(inChunk, "transfer-encoding: chunked\xff"),
		"TE in capitals":                     carrier(inChunk, "Transfer-Encoding: Chunked"),
		"TE quoted":                          carrier(inChunk, `transfer-encoding: "chunked"`),
		"TE with a parameter":                carrier(inChunk, "transfer-encoding: chunked;q=1"),
		"TE identity":                        carrier(smuggled, "transfer-encoding: identity"),
		"TE identity with CL":                carrier(smuggled, "transfer-encoding: identity", length),
		"TE chunked, identity":               carrier(inChunk, "transfer-encoding: chunked, identity"),
		"TE identity, chunked":               carrier(inChunk, "transfer-encoding: identity, chunked"),
		"TE gzip, chunked":                   carrier(inChunk, "transfer-encoding: gzip, chunked"),
		"TE chunked, chunked":                carrier(inChunk, "transfer-encoding: chunked, chunked"),
		"TE in a list with an empty element": carrier(inChunk, "transfer-encoding: ,chunked"),
		"TE of two lines":                    carrier(inChunk, chunked, chunked),
		"TE chunked and identity":            carrier(inChunk, chunked, "transfer-encoding: identity"),
		"TE cow":                             carrier(inChunk, chunked, "transfer-encoding: cow"),
		"TE folded":                          carrier(inChunk, "transfer-encoding:", " chunked"),
		"TE folded into another":             carrier(inChunk, "x: y", " transfer-encoding: chunked", "content-length: 4"),
		"TE empty":                           carrier(inChunk, "transfer-encoding:", "content-length: 4"),
		"TE with a blank before":             carrier(inChunk, " transfer-encoding: chunked", "content-length: 4"),
		"TE with a blank after":              carrier(inChunk, "transfer-encoding : chunked", "content-length: 4"),
		"TE with an underscore":              carrier(inChunk, "transfer_encoding: chunked", "content-length: 4"),
		"TE hop by hop":                      carrier(inChunk, chunked, "connection: transfer-encoding"),
		"TE hop by hop with CL":              carrier(smuggled, chunked, "content-length: 4", "connection: transfer-encoding"),
		"TE in HTTP/1.0":                     strings.Replace(carrier(inChunk, chunked), "HTTP/1.1", "HTTP/1.0", 1),
		"TE with the header TE":              carrier(inChunk, chunked, "te: chunked, trailers"),
		// Malformed chunks.
		"a chunk with an extension":    carrier("5;x=y\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"an extension with a newline":  carrier("5;x\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"an extension, quoted":         carrier("5;x=\"\r\n\"\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk in 0x":                carrier("0x5\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk with a sign":          carrier("+5\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk of minus one":         carrier("-1\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk with an underscore":   carrier("0_5\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk after a blank":        carrier(" 5\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk before a blank":       carrier("5 \r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk of no size":           carrier("\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk too long":             carrier("10000000000000005\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk longer than its size": carrier("3\r\nhello\r\n0\r\n\r\n"+smuggled, chunked),
		"a chunk that ends in LF":      carrier("5\nhello\n0\n\n"+smuggled, chunked),
		"a chunk that ends in xx":      carrier("5\r\nhelloxx0\r\n\r\n"+smuggled, chunked),
		"a chunk that ends in CR":      carrier("5\rhello\r0\r\r"+smuggled, chunked),
		"a last chunk of zeros":        carrier("0000000000\r\n\r\n"+smuggled, chunked),
		"a trailer with a length":      carrier("0\r\ncontent-length: 999\r\n\r\n"+smuggled, chunked),
		"a trailer with a coding":      carrier("0\r\ntransfer-encoding: chunked\r\n\r\n"+smuggled, chunked),
		"an invalid trailer":           carrier("0\r\nGET /smuggled HTTP/1.1\r\n\r\n"+smuggled, chunked),
		// Malformed lines.
		"lines that end in LF":        strings.ReplaceAll(carrier("", length), "\r\n", "\n") + smuggled,
		"a head that ends in LF LF":   strings.Replace(carrier(smuggled, length), "\r\n\r\n", "\n\n", 1),
		"a header after a lone CR":    carrier(smuggled, "x: y\rcontent-length: 0", length),
		"a header after a lone LF":    carrier(smuggled, "x: y\n"+length),
		"a request after a lone LF":   carrier("", "x: y\n\nGET /smuggled HTTP/1.1\nhost: h"),
		"a head that ends in CR CR":   rawRequest("POST", "/items/carrier", "content-length: 0\r\r"+smuggled),
		"CR LF before the request":    "\r\n\r\n" + carrier(smuggled, length),
		"a request line with a tab":   "POST\t/items/carrier\tHTTP/1.1\r\nhost: h\r\n\r\n" + smuggled,
		"a request line of more":      "POST /items/carrier HTTP/1.1 x\r\nhost: h\r\n\r\n" + smuggled,
		"a request line with LF":      "POST /items/car\nrier HTTP/1.1\r\nhost: h\r\n\r\n" + smuggled,
		"a request of HTTP/0.9":       "GET /items/carrier\r\n\r\n" + smuggled,
		"a request of HTTP/1.2":       "GET /items/carrier HTTP/1.2\r\nhost: h\r\n\r\n" + smuggled,
		"a request of HTTP/2.0":       "GET /items/carrier HTTP/2.0\r\nhost: h\r\n\r\n" + smuggled,
		"the preface of HTTP/2 after": rawGet("/items/carrier") + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + smuggled,
		// Unexpected bodies, and pipelines.
		"a GET with a body":             rawRequest("GET", "/items/carrier", length) + smuggled,
		"a GET with chunks":             rawRequest("GET", "/items/carrier", chunked) + inChunk,
		"a HEAD with a body":            rawRequest("HEAD", "/items/carrier", length) + smuggled,
		"a GET with bytes after":        rawGet("/items/carrier") + smuggled,
		"a preflight with a body":       rawRequest("OPTIONS", "/items/carrier", length, "origin: https://a.example", "access-control-request-method: GET") + smuggled,
		"a 404 with a body":             rawRequest("POST", "/nothing", length) + smuggled,
		"a 405 with a body":             rawRequest("PATCH", "/items", length) + smuggled,
		"a 401 with a body":             rawRequest("POST", "/orders", length) + smuggled,
		"a 401 with chunks":             rawRequest("POST", "/orders", chunked) + inChunk,
		"a 401 with half a body":        rawRequest("POST", "/orders", "content-length: 10000") + smuggled,
		"a login with a body too short": rawRequest("POST", "/token", "content-length: 2") + "{}" + smuggled,
		"a login with CL and TE":        rawRequest("POST", "/token", "content-length: 2", chunked) + inChunk,
		"a login with chunks":           rawRequest("POST", "/token", chunked) + inChunk,
		"an expectation":                carrier(smuggled, length, "expect: 100-continue"),
		"an expectation of something":   carrier(smuggled, length, "expect: 100-continue, x"),
		"an expectation of a 401":       rawRequest("POST", "/orders", length, "expect: 100-continue") + smuggled,
	}
	var clients sync.WaitGroup
	for name, bytes := range cases {
		clients.Go(func() {
			raw, err := f.exchange(strings.ReplaceAll(bytes, "/carrier", "/carrier?"+strings.ReplaceAll(name, " ", "-")))
			if err != nil {
				t.Errorf("%s: %v; got %q", name, err, raw)
			}
		})
	}
	clients.Wait()
	f.beyondDoubt(t)
	if got := len(f.public.Requests()); got == 0 {
		t.Error("no carrier arrived, so nothing was tested")
	}
}

// beyondDoubt fails if a byte that reached an upstream is ambiguous, if a smuggled request was
// parsed, or if the next request is not the one that was sent.
func (f *fortress) beyondDoubt(t *testing.T) {
	t.Helper()
	look := func() {
		t.Helper()
		for name, upstream := range f.upstreams() {
			for _, stream := range upstream.Streams() {
				asked, err := targets(stream)
				if err != nil {
					t.Errorf("the %s service got what can be read in two ways: %v, in %q", name, err, stream)
				}
				if strings.Contains(strings.Join(asked, " "), "smuggled") {
					t.Errorf("the %s service received a request that the gateway did not: %q in %q", name, asked, stream)
				}
			}
			for _, r := range upstream.Requests() {
				if strings.Contains(r.Path, "smuggled") {
					t.Errorf("the %s service took %s %s for a request", name, r.Method, r.Path)
				}
			}
		}
	}
	look()
	none(t, f.secured)
	// Leftovers on a connection to an upstream would now precede these requests.
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 5 {
				if got, err := f.Try("GET", "/items/next", ""); err != nil || got.Status != http.StatusOK || !strings.Contains(got.Body, `"path":"/base/next"`) {
					t.Errorf("the next client: %d %s %v", got.Status, got.Body, err)
				}
			}
		})
	}
	clients.Wait()
	look()
}

// smugglingH2 does the same over HTTP/2. Envoy converts its requests to HTTP/1 for the upstream.
func (f *fortress) smugglingH2(t *testing.T) {
	inChunk := "0\r\n\r\n" + smuggled
	var clients sync.WaitGroup
	for _, c := range []struct {
		body   string
		fields [][2]string
	}{
		{smuggled, [][2]string{{"content-length", "0"}}},
		{smuggled, [][2]string{{"content-length", "1"}}},
		{smuggled, [][2]string{{"content-length", "9999"}}},
		{smuggled, [][2]string{{"content-length", "0"}, {"content-length", fmt.Sprint(len(smuggled))}}},
		{smuggled, [][2]string{{"content-length", "+" + fmt.Sprint(len(smuggled))}}},
		{"", [][2]string{{"content-length", fmt.Sprint(len(smuggled))}}},
		{inChunk, [][2]string{{"transfer-encoding", "chunked"}}},
		{inChunk, [][2]string{{"transfer-encoding", "identity"}, {"content-length", "0"}}},
		{inChunk, [][2]string{{"transfer_encoding", "chunked"}}},
		{inChunk, [][2]string{{"transfer-encoding ", "chunked"}}},
		{inChunk, [][2]string{{"x", "y\r\ntransfer-encoding: chunked"}}},
		{inChunk, [][2]string{{"x", "y\ntransfer-encoding: chunked"}}},
		{inChunk, [][2]string{{"x: y\r\ntransfer-encoding", "chunked"}}},
		{smuggled, [][2]string{{"x", "y\r\n\r\n" + smuggled}}},
		{smuggled, [][2]string{{":path", "/items/carrier HTTP/1.1\r\nhost: h\r\n\r\n" + smuggled}}},
		{smuggled, [][2]string{{":method", "POST /smuggled HTTP/1.1\r\nx: y\r\n\r\nPOST"}}},
		{smuggled, [][2]string{{":authority", "h\r\n\r\n" + smuggled}}},
		{smuggled, [][2]string{{":scheme", "http\r\n\r\n" + smuggled}}},
		{smuggled, [][2]string{{"connection", "content-length"}}},
		{smuggled, [][2]string{{"keep-alive", "1"}}},
		{smuggled, [][2]string{{"proxy-connection", "keep-alive"}}},
		{smuggled, [][2]string{{"upgrade", "h2c"}}},
		{smuggled, [][2]string{{"te", "chunked"}}},
		{smuggled, [][2]string{{"host", "evil\r\n\r\n" + smuggled}}},
		{smuggled, [][2]string{{"host", "evil"}}},
		{smuggled, [][2]string{{"cookie", "a=b"}, {"cookie", "\r\n\r\n" + smuggled}}},
		{smuggled, nil},
	} {
		for _, path := range []string{"/items/carrier", "/token", "/orders"} {
			clients.Go(func() {
				if _, err := f.TryH2("POST", path, c.body, c.fields...); err != nil {
					t.Errorf("%s %q: %v", path, c.fields, err)
				}
			})
		}
	}
	clients.Wait()
	f.beyondDoubt(t)
	if got := len(f.public.Requests()); got == 0 {
		t.Error("no carrier arrived, so nothing was tested")
	}
}

// upgrades bypass a gateway that stops checking after an upgrade (CVE-2024-45810). None is accepted
// here.
func (f *fortress) upgrades(t *testing.T) {
	var clients sync.WaitGroup
	for _, lines := range [][]string{
		{"connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="},
		{"connection: upgrade", "upgrade: WebSocket", "sec-websocket-version: 777"},
		{"connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAARAAAAAAAIAAAAA"},
		{"connection: upgrade", "upgrade: h2c"},
		{"upgrade: h2c"},
		{"connection: upgrade", "upgrade: TLS/1.2"},
		{"connection: upgrade", "upgrade: HTTP/2.0, websocket"},
		{"connection: upgrade", "upgrade: connect-udp"},
	} {
		for _, path := range []string{"/orders", "/items", "/token", "/nothing", "/items/private"} {
			clients.Go(func() {
				raw, err := f.exchange(rawGet(path, lines...) + smuggled)
				if err != nil {
					t.Errorf("%s %q: %v", path, lines, err)
				}
				for _, got := range envoytest.Responses(raw) {
					if got.Status == http.StatusSwitchingProtocols {
						t.Errorf("%s %q: the protocol was switched", path, lines)
					}
				}
			})
		}
	}
	clients.Wait()
	for _, r := range f.public.Requests() {
		if r.Header.Get("Upgrade") != "" || r.Header.Get("Http2-Settings") != "" {
			t.Errorf("an upgrade reached the upstream: %v", r.Header)
		}
	}
	f.beyondDoubt(t)
}
