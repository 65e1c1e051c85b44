package xds

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"gatepost/certs"
	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/testcert"
	"gatepost/testrun"
)

// httpsGateway is a gateway with a listener for TLS.
type httpsGateway struct {
	*gateway
	tlsAddr string
	ca      *testcert.CA
	clients *testcert.CA // of client certificates, in the file c
	envoy   *envoytest.Envoy
}

// startHTTPS serves a certificate for each list of names, of which the first one is its name. top are more fields, more
// those of tls.
func startHTTPS(t *testing.T, top, more string, certificates ...string) *httpsGateway {
	t.Helper()
	testrun.Plain(t)
	envoytest.Require(t)
	g := &httpsGateway{
		gateway: &gateway{checker: startChecker(t), t: t, addr: envoytest.Addr(t),
			tokens: envoytest.Upstream(t), secured: envoytest.Upstream(t), public: envoytest.Upstream(t)},
		tlsAddr: envoytest.Addr(t), ca: testcert.New(t), clients: testcert.New(t),
	}
	text := top + "tls:\n  listen: " + g.tlsAddr + "\n" + more + "  certificates:\n"
	pairs, options := map[string]certs.Pair{}, testOptions
	for _, names := range certificates {
		c := Certificate{ServerNames: strings.Fields(names)}
		c.Name = strings.TrimPrefix(c.ServerNames[0], "*.")
		c.Default = strings.Contains(more, "default_certificate: "+c.Name)
		template := &x509.Certificate{DNSNames: c.ServerNames}
		if strings.HasPrefix(c.Name, "rsa.") {
			template.PublicKeyAlgorithm = x509.RSA
		}
		cert, key := g.ca.Sign(template)
		pair, err := certs.Parse(cert, key, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		pairs[c.Name], options.Certificates = pair, append(options.Certificates, c)
		text += fmt.Sprintf("    - {cert_file: %q, key_file: k}\n", c.Name)
	}
	services := shop
	if strings.Contains(more, "client_certificates") {
		services += withPartner
	}
	text += strings.NewReplacer("LISTEN", g.addr, "SECURED", g.secured.URL(), "PUBLIC", g.public.URL()).Replace(services)
	bootstrap := envoytest.Bootstrap(t, envoytest.Options{
		GRPC: g.checker.addr, HTTP: g.tokens.Addr(), Resources: messages(buildWith(t, text, options)),
	})
	for _, l := range bootstrap.GetStaticResources().GetListeners() {
		if _, _, err := withStaticSecrets(l); err != nil {
			t.Fatal(err)
		}
	}
	roots := map[string]certs.Roots{ClientCAs(&definitions.ClientCertificates{CAFile: "c"}): {PEM: g.clients.PEM()}}
	bootstrap.StaticResources.Secrets = Secrets(pairs, roots)
	g.envoy = envoytest.Start(t, envoytest.Options{Bootstrap: bootstrap})
	return g
}

// served returns the names of the certificate that a client gets, or that it is refused.
func (g *httpsGateway) served(source, before, name string, versions ...uint16) string {
	g.t.Helper()
	config := &tls.Config{ServerName: name}
	if len(versions) > 0 {
		config.MinVersion, config.MaxVersion = versions[0], versions[0]
	}
	conn, err := g.dial(source, before, config)
	if err != nil {
		return "refused"
	}
	defer conn.Close()
	return strings.Join(conn.ConnectionState().PeerCertificates[0].DNSNames, " ")
}

// dial connects from a source, sends bytes, and does a handshake. Certificates are not verified.
func (g *httpsGateway) dial(source, before string, config *tls.Config) (*tls.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := dialer.DialContext(g.t.Context(), "tcp", g.tlsAddr)
	if err != nil {
		g.t.Fatal(err)
	}
	_, _ = io.WriteString(conn, before)
	config.InsecureSkipVerify = true
	client := tls.Client(conn, config)
	if err := client.HandshakeContext(g.t.Context()); err != nil {
		conn.Close()
		return nil, err
	}
	return client, nil
}

// get sends a request by HTTP/1.1 over a connection with TLS.
func (g *httpsGateway) get(source, before, name, path string, headers ...string) envoytest.Response {
	g.t.Helper()
	return g.getBy(source, before, &tls.Config{ServerName: name}, path, headers...)
}

// getBy is get with a client's own side of TLS. Without a response the result is the zero one.
func (g *httpsGateway) getBy(source, before string, config *tls.Config, path string, headers ...string) envoytest.Response {
	g.t.Helper()
	conn, err := g.dial(source, before, config)
	if err != nil {
		return envoytest.Response{}
	}
	defer conn.Close()
	_, _ = conn.Write(request("GET", path, append(headers, "connection: close")...))
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return envoytest.Response{}
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return envoytest.Response{Status: answer.StatusCode, Header: answer.Header, Body: string(body)}
}

func TestEachNameHasItsCertificate(t *testing.T) {
	t.Parallel()
	g := startHTTPS(t, "", "  hsts: 1h\n", "a.example www.a.example", "*.w.example", "own.w.example")
	const local = "127.0.0.1"
	for name, want := range map[string]string{
		"a.example": "a.example www.a.example", "www.a.example": "a.example www.a.example", "A.EXAMPLE": "a.example www.a.example",
		"x.w.example": "*.w.example", "own.w.example": "own.w.example", "w.example": "refused", "other.example": "refused", "": "refused",
	} {
		if got := g.served(local, "", name); got != want {
			t.Errorf("%q gets the certificate of %q, want %q", name, got, want)
		}
	}
	if got := g.served(local, "", "a.example", tls.VersionTLS11); got != "refused" {
		t.Errorf("TLS 1.1 is served")
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conn, err := g.dial(local, "", &tls.Config{ServerName: "a.example", MinVersion: version, MaxVersion: version, NextProtos: []string{"http/1.1", "h2"}})
		if err != nil {
			t.Fatalf("TLS %x: %v", version, err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
			t.Errorf("TLS %x: the protocol is %q", version, got)
		}
		conn.Close()
	}

	// A request over HTTP/2: the services are those of the other listener, and the upstream learns the scheme.
	client := &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: g.ca.Pool(), ServerName: "a.example"},
	}}
	defer client.CloseIdleConnections()
	answer, err := client.Get("https://" + g.tlsAddr + "/orders/5")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.ProtoMajor != 2 || answer.StatusCode != 200 || answer.Header.Get("strict-transport-security") != "max-age=3600" || len(g.asked()) != 1 {
		t.Errorf("%s %d %v, with %d checks", answer.Proto, answer.StatusCode, answer.Header, len(g.asked()))
	}
	if got := g.secured.Requests(); len(got) != 1 || got[0].Header.Get("x-forwarded-proto") != "https" {
		t.Errorf("the upstream received %+v", got)
	}
	if got := g.get(local, "", "a.example", "/ITEMS"); got.Status != 200 || g.get(local, "", "a.example", "/nobody").Status != 404 {
		t.Errorf("the routes differ with TLS: %d", got.Status)
	}
	g.redirects(t)
}

// redirects checks the listener without TLS: it redirects, has the version, and forwards nothing.
func (g *httpsGateway) redirects(t *testing.T) {
	_, port, _ := net.SplitHostPort(g.tlsAddr)
	g.answers(allow)
	for _, upstream := range []*envoytest.Recorder{g.secured, g.public, g.tokens} {
		upstream.Reset()
	}
	for path, want := range map[string]string{
		"/orders/5?a=b&c=%20": "/orders/5?a=b&c=%20", "/": "/", "/nobody": "/nobody", "/a/../items": "/items", "/Token": "/Token",
		"/.gatepost/other": "/.gatepost/other",
	} {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			got := g.do(method, path, scopeHeader+": /items", "authorization: Bearer x")
			if location := "https://gate.example:" + port + want; got.Status != 308 || got.Header.Get("location") != location || got.Body != `"Use HTTPS."` {
				t.Errorf("%s %s: %d %q, want %q", method, path, got.Status, got.Header.Get("location"), location)
			}
		}
	}
	if got := g.do("GET", definitions.VersionPath); got.Status != 200 || !strings.HasPrefix(got.Body, `"`) {
		t.Errorf("the version is %d %s", got.Status, got.Body)
	}
	if got := g.do("GET", "/a%2Fb"); got.Status != 400 {
		t.Errorf("an ambiguous path is %d", got.Status)
	}
	if raw := g.secured.Raw() + g.public.Raw() + g.tokens.Raw(); raw != "" || len(g.asked()) > 0 {
		t.Errorf("without TLS, %q was forwarded, and there were checks: %v", raw, g.asked())
	}
}

// TestTLSForOtherNames: with a default certificate, another name or none gets that. Without redirect, both listeners
// serve the same.
func TestTLSForOtherNames(t *testing.T) {
	t.Parallel()
	g := startHTTPS(t, proxies+"}\n", "  default_certificate: a.example\n  min_version: \"1.3\"\n  redirect: false\n", "a.example", "b.example")
	if got := g.served(proxy, "", "a.example", tls.VersionTLS12); got != "refused" {
		t.Errorf("TLS 1.2 is served")
	}
	for name, want := range map[string]string{"": "a.example", "other.example": "a.example", "b.example": "b.example"} {
		for _, source := range []string{proxy, stranger} {
			if got := g.served(source, "", name); got != want {
				t.Errorf("%q gets the certificate of %q, want %q", name, got, want)
			}
		}
	}
	if got := g.do("GET", "/items"); got.Status != 200 {
		t.Errorf("without TLS and redirect: %d", got.Status)
	}
	// A proxy is believed under every name, and a stranger under none.
	for _, name := range []string{"", "b.example"} {
		for source, want := range map[string]string{proxy: "1.2.3.4", stranger: stranger} {
			g.public.Reset()
			g.get(source, "", name, "/items", "x-forwarded-for: 1.2.3.4", "x-forwarded-proto: http")
			got := g.public.Requests()
			if len(got) != 1 || got[0].Header.Get("x-envoy-external-address") != want {
				t.Errorf("%q from %s: the upstream received %+v", name, source, got)
			}
		}
	}
}

// TestTLSBehindThePROXYProtocol: the header comes before the handshake. A peer that is no proxy is refused, whatever it
// sends and whichever name it asks for.
func TestTLSBehindThePROXYProtocol(t *testing.T) {
	t.Parallel()
	g := startHTTPS(t, proxies+", proxy_protocol: true}\n", "  default_certificate: a.example\n", "a.example", "b.example")
	for _, name := range []string{"", "a.example", "b.example"} {
		for _, before := range []string{proxyV1("1.2.3.4"), proxyV2("1.2.3.4")} {
			g.public.Reset()
			g.get(proxy, before, name, "/items", "x-forwarded-for: 6.6.6.6")
			if got := g.public.Requests(); len(got) != 1 || got[0].Header.Get("x-envoy-external-address") != "1.2.3.4" {
				t.Errorf("%q: the upstream received %+v", name, got)
			}
		}
		for _, before := range []string{"", proxyV1("1.2.3.4"), proxyV2(proxy), "PROXY UNKNOWN\r\n"} {
			if got := g.served(stranger, before, name); got != "refused" {
				t.Errorf("%q with %q: a stranger gets the certificate of %q", name, before, got)
			}
		}
	}
	if got := g.from(proxy, proxyV1("1.2.3.4"), "GET", "/items"); got.Status != 308 {
		t.Errorf("without TLS: %d", got.Status)
	}
}

// clientOf returns the side of a client with a certificate of a CA.
func clientOf(t *testing.T, ca *testcert.CA) *tls.Config {
	t.Helper()
	id, err := url.Parse("spiffe://x/one")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(ca.Sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "one"}, URIs: []*url.URL{id}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{ServerName: "a.example", Certificates: []tls.Certificate{pair}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
}

const withPartner = `  - {name: partner, path: /partner, client_certificate: true, authenticate: false, upstreams: ["PUBLIC"]}
  - {name: partners, path: /, hosts: [b.example], client_certificate: true, authenticate: false, upstreams: ["PUBLIC"]}
`

// TestClientCertificates: an unverified one never passes as verified, in whichever way a client claims it.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	const local, own, missing = "127.0.0.1", "x-forwarded-client-cert: Hash=1;Subject=\"CN=mallory\"", `"This needs a client certificate."`
	g := startHTTPS(t, "", "  redirect: false\n  client_certificates: {ca_file: c, mode: optional}\n", "a.example")
	none := &tls.Config{ServerName: "a.example"}
	seen := func() string {
		var all []string
		for _, r := range g.public.Requests() {
			all = append(all, r.Header.Values("x-forwarded-client-cert")...)
		}
		g.public.Reset()
		return strings.Join(all, "|")
	}
	if got := g.getBy(local, "", none, "/items", own); got.Status != 200 || seen() != "" {
		t.Errorf("without a certificate: %d", got.Status)
	}
	for _, path := range []string{"/partner", "/partner/5", "/PARTNER"} {
		if got := g.getBy(local, "", none, path, own); got.Status != 403 || got.Body != missing {
			t.Errorf("%s without a certificate: %d %s", path, got.Status, got.Body)
		}
		if got := g.do("GET", path, own); got.Status != 403 || got.Body != missing {
			t.Errorf("%s without TLS: %d %s", path, got.Status, got.Body)
		}
	}
	if raw := g.public.Raw(); raw != "" {
		t.Errorf("the upstream received %q", raw)
	}
	client := clientOf(t, g.clients)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for range 2 { // the second session is a resumed one
			client.MaxVersion = version
			for _, path := range []string{"/partner", "/items"} {
				got := g.getBy(local, "", client, path, own)
				if xfcc := seen(); got.Status != 200 || !strings.HasSuffix(xfcc, `;Subject="CN=one";URI=spiffe://x/one`) || strings.Contains(xfcc, "mallory") {
					t.Errorf("%s with a certificate: %d, and the upstream received %q", path, got.Status, xfcc)
				}
			}
		}
	}
	if g.envoy.Stats("ssl.session_reused")["listener."+strings.ReplaceAll(g.tlsAddr, ":", "_")+".ssl.session_reused"] == 0 {
		t.Error("no session was resumed")
	}
	for _, path := range []string{"/partner", "/items"} {
		if got := g.getBy(local, "", clientOf(t, testcert.New(t)), path); got.Status != 0 {
			t.Errorf("%s with a foreign certificate: %d", path, got.Status)
		}
	}
	expired, err := tls.X509KeyPair(g.clients.Sign(&x509.Certificate{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}))
	if err != nil {
		t.Fatal(err)
	}
	if got := g.getBy(local, "", &tls.Config{ServerName: "a.example", Certificates: []tls.Certificate{expired}}, "/items"); got.Status != 0 {
		t.Errorf("with an expired certificate: %d", got.Status)
	}
}

// TestNoHostEvadesClientCertificates: a connection for one server name may carry requests for another host, as browsers
// send them over HTTP/2 if a certificate has both names. What counts is the certificate of the connection.
func TestNoHostEvadesClientCertificates(t *testing.T) {
	t.Parallel()
	g := startHTTPS(t, "", "  redirect: false\n  default_certificate: a.example\n  client_certificates: {ca_file: c, mode: optional}\n", "a.example", "b.example")
	known := clientOf(t, g.clients).Certificates
	for _, c := range []struct {
		certificates []tls.Certificate
		want         int
	}{{nil, 403}, {known, 200}} {
		for _, name := range []string{"a.example", "b.example", "other.example", ""} {
			for _, http2 := range []bool{false, true} {
				client := &http.Client{Transport: &http.Transport{
					ForceAttemptHTTP2: http2, MaxConnsPerHost: 1,
					TLSClientConfig: &tls.Config{ServerName: name, Certificates: c.certificates, InsecureSkipVerify: true},
				}}
				get := func(host, path string) int {
					r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+g.tlsAddr+path, nil)
					if err != nil {
						t.Fatal(err)
					}
					r.Host = host
					answer, err := client.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					answer.Body.Close()
					if (answer.ProtoMajor == 2) != http2 {
						t.Errorf("the protocol is %s", answer.Proto)
					}
					return answer.StatusCode
				}
				if got := get("a.example", "/items"); got != 200 {
					t.Errorf("%q: a service that needs no certificate: %d", name, got)
				}
				g.public.Reset()
				for _, host := range []string{"b.example", "B.EXAMPLE:443", "b.example."} {
					if got := get(host, "/x"); got != c.want || (reached(g.public) == "") != (c.want == 403) {
						t.Errorf("%q, then %s over the same connection, with %d certificates: %d, want %d", name, host, len(c.certificates), got, c.want)
					}
				}
				client.CloseIdleConnections()
			}
		}
	}
}

func TestRequiredClientCertificates(t *testing.T) {
	t.Parallel()
	g := startHTTPS(t, "", "  default_certificate: a.example\n  client_certificates: {ca_file: c}\n", "a.example", "b.example")
	for _, name := range []string{"a.example", "b.example", "other.example", ""} {
		if got := g.get("127.0.0.1", "", name, "/items"); got.Status != 0 {
			t.Errorf("%q without a certificate: %d", name, got.Status)
		}
		client := clientOf(t, g.clients)
		client.ServerName = name
		if got := g.getBy("127.0.0.1", "", client, "/items"); got.Status != 200 {
			t.Errorf("%q with a certificate: %d", name, got.Status)
		}
	}
}

// TestClientCertificatesByHTTP3: QUIC has the same rules.
func TestClientCertificatesByHTTP3(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"required", "optional"} {
		g := startHTTPS(t, "", "  http3: true\n  client_certificates: {ca_file: c, mode: "+mode+"}\n", "a.example")
		get := func(config *tls.Config, path string) int {
			config.InsecureSkipVerify = true
			transport := &http3.Transport{TLSClientConfig: config}
			defer transport.Close()
			ctx, cancel := context.WithTimeout(t.Context(), envoytest.Deadline) // a handshake that Envoy drops has no answer
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+g.tlsAddr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := transport.RoundTrip(request)
			if err != nil {
				return 0
			}
			answer.Body.Close()
			return answer.StatusCode
		}
		none, foreign, known := &tls.Config{ServerName: "a.example"}, clientOf(t, testcert.New(t)), clientOf(t, g.clients)
		withNone := map[string]int{"required": 0, "optional": 403}[mode]
		if got := get(none, "/partner"); got != withNone {
			t.Errorf("%s: without a certificate: %d", mode, got)
		}
		if got := get(foreign, "/partner"); got != 0 {
			t.Errorf("%s: with a foreign certificate: %d", mode, got)
		}
		if got := get(known, "/partner"); got != 200 {
			t.Errorf("%s: with a certificate: %d", mode, got)
		}
	}
}
