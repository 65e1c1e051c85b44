package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"gatepost/certs/acme/acmetest"
	"gatepost/envoy/envoytest"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/testcert"
	"gatepost/tokens/redistest"
)

func portOf(t *testing.T, addr string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// leafFor returns the certificate that a new connection gets for a name, or nil if the handshake fails.
func leafFor(addr, name string) *x509.Certificate {
	conn, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return nil
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// isOf reports whether a new connection gets a certificate for a name that a CA has issued.
func isOf(addr, name string, roots *x509.CertPool) bool {
	conn, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, RootCAs: roots})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func (e *edge) certificate(name string) *gatewayv1.CertificateStatus {
	e.t.Helper()
	for _, c := range e.certificates() {
		if c.GetName() == name {
			return c
		}
	}
	return nil
}

// makeRenewable makes the renewal of a certificate due, as the CA does with ARI.
func makeRenewable(t *testing.T, data, name string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(data, "acme", "certificates", "*", name, name+".json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the metadata of %s is in %v, %v", name, files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], acmetest.Renewable(t, text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCertificatesOfACA: a CA that is down delays nothing, and each challenge leads to a certificate through Envoy. A
// domain that leads elsewhere is named in the words of the CA, and a renewal under load fails no request.
func TestCertificatesOfACA(t *testing.T) {
	t.Parallel()
	upstream := envoytest.Upstream(t)
	e := prepareEdge(t, "services: []\n")
	ca := acmetest.New(t, acmetest.Options{HTTPPort: portOf(t, e.Addr), TLSPort: portOf(t, e.addr), Names: []string{"a.test", "b.test"}})
	define := func(domains, challenge string) {
		e.Define(fmt.Sprintf(`tls:
  listen: %s
  acme: {domains: [%s], email: ops@shop.test, directory: %q, ca_file: %s, challenges: [%s]}
services:
  - {name: a, path: /a, authenticate: false, upstreams: [%q]}
`, e.addr, domains, ca.Directory, ca.CAFile, challenge, upstream.URL()))
	}
	define("a.test", "http-01")
	e.Run()
	e.AwaitReady()
	envoytest.Eventually(t, "the problem of the CA", func() bool {
		return strings.Contains(e.certificate("a.test").GetProblem(), "connection refused")
	})
	if c := leafFor(e.addr, "a.test"); c == nil || c.Subject.CommonName != "Gatepost placeholder" || e.certificate("a.test").GetNotAfter() != nil {
		t.Error("a name without a certificate has no placeholder")
	}
	ca.Start()
	roots := ca.Roots()
	e.Signal(syscall.SIGHUP)
	envoytest.Eventually(t, "a certificate by http-01", func() bool { return isOf(e.addr, "a.test", roots) })
	if answer := e.Do("GET", "/a", ""); answer.Status != http.StatusPermanentRedirect {
		t.Errorf("without TLS the answer is %d", answer.Status)
	}

	define("a.test, b.test, elsewhere.test", "tls-alpn-01")
	envoytest.Eventually(t, "a certificate by tls-alpn-01", func() bool { return isOf(e.addr, "b.test", roots) })
	envoytest.Eventually(t, "the problem of a domain that does not lead here", func() bool {
		return strings.Contains(e.certificate("elsewhere.test").GetProblem(), "the CA answered HTTP 400")
	})
	status := e.certificate("b.test")
	if status.GetProblem() != "" || status.GetNotAfter() == nil || e.Metric(`gatepost_certificate_unusable{certificate="elsewhere.test"}`) != 1 {
		t.Errorf("the status is %v", e.certificates())
	}

	before := leafFor(e.addr, "a.test").SerialNumber
	load := e.load("a.test", roots)
	load.Goes(20)
	makeRenewable(t, e.Data, "a.test")
	e.Signal(syscall.SIGHUP)
	envoytest.Eventually(t, "a renewed certificate", func() bool { return leafFor(e.addr, "a.test").SerialNumber.Cmp(before) != 0 })
	load.Goes(20)
	load.Stop()
	if !isOf(e.addr, "a.test", roots) {
		t.Error("the renewed certificate is not of the CA")
	}
}

// load sends requests in kept and in new connections.
func (e *edge) load(name string, roots *x509.CertPool) *envoytest.Load {
	var send []func() error
	for _, fresh := range []bool{true, false} {
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: name}, DisableKeepAlives: fresh, ForceAttemptHTTP2: !fresh,
		}
		e.t.Cleanup(transport.CloseIdleConnections)
		send = append(send, func() error {
			answer, err := envoytest.Send(e.t.Context(), &http.Client{Transport: transport}, "GET", "https://"+e.addr+"/a", "")
			if err == nil && answer.Status != http.StatusOK {
				err = fmt.Errorf("status %d", answer.Status)
			}
			return err
		})
	}
	return envoytest.StartLoad(e.t, send...)
}

// TestGatewaysShareCertificatesOfACA: one asks the CA, the other answers the challenges, and both have the certificate.
// Without a key for what is in Redis, there is no ACME.
func TestGatewaysShareCertificatesOfACA(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, "--appendonly", "yes")
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	answers := prepareEdge(t, "services: []\n")
	asks := prepareEdge(t, "services: []\n")
	ca := acmetest.Start(t, acmetest.Options{HTTPPort: portOf(t, answers.Addr), TLSPort: portOf(t, answers.addr), Names: []string{"a.test", "b.test"}})
	var down atomic.Bool
	directory := ca.Proxy(func(w http.ResponseWriter, _ *http.Request) bool {
		if down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
		}
		return down.Load()
	})
	define := func(domains, challenge string) {
		for _, e := range []*edge{answers, asks} {
			e.Define(fmt.Sprintf(`tls:
  listen: %s
  acme: {domains: [%s], email: ops@shop.test, directory: %q, ca_file: %s, challenges: [%s]}
services: []
`, e.addr, domains, directory, ca.CAFile, challenge))
		}
	}
	define("a.test", "http-01")
	asks.args = append(asks.args, "--redis", redis.URL())
	asks.Run()
	<-asks.exited
	if log := asks.Log(); !strings.Contains(log, "needs --secrets-key-file") {
		t.Errorf("without a key the log is %s", log)
	}
	// So it is if ACME is added while the gateway runs: what is served stays.
	asks.Define("services: []\n")
	asks.Run()
	asks.AwaitReady()
	define("a.test", "http-01")
	envoytest.Eventually(t, "the definitions to be refused", func() bool {
		return len(lines(asks.Log(), "the definitions cannot be served; those before stay", "needs --secrets-key-file")) > 0
	})
	if got := asks.Do("GET", "/", ""); got.Status != http.StatusNotFound || leafFor(asks.addr, "a.test") != nil {
		t.Errorf("after the refusal: %d", got.Status)
	}
	asks.Stop()
	answers.args = append(answers.args, "--redis", redis.URL(), "--secrets-key-file", key)
	asks.args = append(asks.args, "--secrets-key-file", key)
	for i, row := range []struct{ name, challenge string }{{"a.test", "http-01"}, {"b.test", "tls-alpn-01"}} {
		down.Store(true)
		if i == 0 {
			answers.Run()
			answers.AwaitReady()
			asks.Run()
			asks.AwaitReady()
		} else {
			define("a.test, b.test", row.challenge)
		}
		for _, e := range []*edge{answers, asks} {
			envoytest.Eventually(t, "the CA to be down", func() bool { return strings.Contains(e.certificate(row.name).GetProblem(), "503") })
		}
		down.Store(false)
		asks.Signal(syscall.SIGHUP)
		for _, e := range []*edge{asks, answers} {
			envoytest.Eventually(t, "the certificate by "+row.challenge, func() bool { return isOf(e.addr, row.name, ca.Roots()) })
		}
		if answers, asks := leafFor(answers.addr, row.name), leafFor(asks.addr, row.name); answers.SerialNumber.Cmp(asks.SerialNumber) != 0 {
			t.Errorf("%s: two gateways have two certificates", row.challenge)
		}
	}
	if issued, accounts := strings.Count(ca.Log(), "Issued certificate serial"), strings.Count(ca.Log(), "accounts in memory"); issued != 2 || accounts != 1 {
		t.Errorf("%d certificates for %d accounts were issued", issued, accounts)
	}
}

// TestCertificatesOfACABesideOtherSettings: each challenge leads to a certificate through a load balancer that sends
// the PROXY protocol, and although clients need a certificate, which the CA has not. HTTP/3 serves what the CA issued.
func TestCertificatesOfACABesideOtherSettings(t *testing.T) {
	t.Parallel()
	clients := testcert.New(t)
	pair, err := tls.X509KeyPair(clients.Sign(new(x509.Certificate)))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		top, tls string
	}{
		"the PROXY protocol":              {top: "client_addresses: {trusted_proxies: [127.0.0.2], proxy_protocol: true}"},
		"client certificates, and HTTP/3": {tls: "http3: true, client_certificates: {ca_file: clients.pem}"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := prepareEdge(t, "services: []\n")
			clients.Write(filepath.Join(filepath.Dir(e.File), "clients.pem"))
			plain, header := e.Addr, ""
			if strings.Contains(c.top, "proxy_protocol: true") {
				header = "PROXY TCP4 198.51.100.7 192.0.2.80 4321 443\r\n"
				plain = balancer(t, e.Addr, header)
			}
			secure := balancer(t, e.addr, header)
			ca := acmetest.Start(t, acmetest.Options{HTTPPort: portOf(t, plain), TLSPort: portOf(t, secure), Names: []string{"a.test", "b.test"}})
			define := func(domains, challenge string) {
				e.Define(fmt.Sprintf(`%s
tls: {listen: %q, acme: {domains: [%s], email: ops@shop.test, directory: %q, ca_file: %q, challenges: [%s]}, %s}
services: []
`, c.top, e.addr, domains, ca.Directory, ca.CAFile, challenge, c.tls))
			}
			define("a.test", "http-01")
			e.Run()
			e.AwaitReady()
			envoytest.Eventually(t, "a certificate by http-01", func() bool { return isOf(secure, "a.test", ca.Roots()) })
			define("a.test, b.test", "tls-alpn-01")
			envoytest.Eventually(t, "a certificate by tls-alpn-01", func() bool { return isOf(secure, "b.test", ca.Roots()) })

			needsCertificate := strings.Contains(c.tls, "client_certificates")
			get := func(transport http.RoundTripper) int {
				answer, err := (&http.Client{Transport: transport, Timeout: envoytest.Deadline}).Get("https://b.test/")
				if err != nil {
					return 0
				}
				answer.Body.Close()
				return answer.StatusCode
			}
			for _, certificates := range [][]tls.Certificate{nil, {pair}} {
				want := http.StatusNotFound
				if needsCertificate && certificates == nil {
					want = 0
				}
				config := &tls.Config{RootCAs: ca.Roots(), ServerName: "b.test", Certificates: certificates}
				transport := &http.Transport{
					DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: config,
					DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
						return new(net.Dialer).DialContext(ctx, "tcp", secure)
					},
				}
				if got := get(transport); got != want {
					t.Errorf("with %d client certificates: %d, want %d", len(certificates), got, want)
				}
				if !strings.Contains(c.tls, "http3") {
					continue
				}
				quicTransport := &http3.Transport{TLSClientConfig: config.Clone(), Dial: func(ctx context.Context, _ string, config *tls.Config, options *quic.Config) (*quic.Conn, error) {
					return quic.DialAddrEarly(ctx, e.addr, config, options)
				}}
				if got := get(quicTransport); got != want {
					t.Errorf("by HTTP/3, with %d client certificates: %d, want %d", len(certificates), got, want)
				}
				quicTransport.Close()
			}
		})
	}
}

// balancer returns the address of a load balancer for TCP, which sends a header in each connection to an address, from
// 127.0.0.2.
func balancer(t *testing.T, to, header string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				server, err := dialer.Dial("tcp", to)
				if err != nil {
					return
				}
				defer server.Close()
				if _, err := io.WriteString(server, header); err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(server, client)
					_ = server.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
	return listener.Addr().String()
}
