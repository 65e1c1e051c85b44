package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"gatepost/envoy/envoytest"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/testcert"
)

// edge is a gateway with certificates from files in the folder of its definitions.
type edge struct {
	*gateway
	addr string // of the listener for TLS
	ca   *testcert.CA
}

// prepareEdge is prepare with a listener for TLS. TLS in the definitions becomes its address.
func prepareEdge(t *testing.T, definitions string) *edge {
	t.Helper()
	e := &edge{addr: envoytest.Addr(t), ca: testcert.New(t)}
	e.gateway = prepare(t, strings.ReplaceAll(definitions, "TLS", e.addr), setup{})
	return e
}

// issue replaces the files of a certificate by a rename.
func (e *edge) issue(name string, names ...string) {
	e.t.Helper()
	base := filepath.Join(filepath.Dir(e.File), name)
	e.ca.IssueAs(base+".pem.new", base+".key.new", &x509.Certificate{DNSNames: names})
	for _, end := range []string{".key", ".pem"} {
		if err := os.Rename(base+end+".new", base+end); err != nil {
			e.t.Fatal(err)
		}
	}
}

// serial returns the serial number of the certificate that a new connection gets for a name; empty if it is refused.
func (e *edge) serial(name string) string {
	conn, err := tls.Dial("tcp", e.addr, &tls.Config{RootCAs: e.ca.Pool(), ServerName: name})
	if err != nil {
		return ""
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// client returns a client that keeps its connections.
func (e *edge) client(name string) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.ca.Pool(), ServerName: name}, ForceAttemptHTTP2: true}
	e.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// secure returns the gateway as its clients with TLS see it.
func (e *edge) secure(name string) *gateway {
	g := *e.gateway
	g.Addr, g.URL = e.addr, "https://"+e.addr
	g.client, g.tls = e.client(name), &tls.Config{RootCAs: e.ca.Pool(), ServerName: name}
	return &g
}

// certificates returns those of the status.
func (e *edge) certificates() []*gatewayv1.CertificateStatus {
	e.t.Helper()
	answer, err := http.Get("http://" + e.Admin + "/api/v1/status")
	if err != nil {
		e.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	status := new(gatewayv1.Status)
	if err := protojson.Unmarshal(body, status); err != nil {
		e.t.Fatalf("%v: %s", err, body)
	}
	return status.GetCertificates()
}

// TestRenewedCertificatesAreServedAndDisturbNothing: a request that is in flight and connections that are kept go on, a
// bad pair changes nothing, and the others are renewed meanwhile.
func TestRenewedCertificatesAreServedAndDisturbNothing(t *testing.T) {
	t.Parallel()
	upstream := envoytest.Upstream(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	upstream.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(arrived)
			<-release
		}
		_, _ = io.WriteString(w, "done")
	})
	e := prepareEdge(t, fmt.Sprintf(`
tls:
  listen: TLS
  certificates: [{cert_file: shop.pem, key_file: shop.key}, {cert_file: api.pem, key_file: api.key}]
services:
  - {name: a, path: /a, authenticate: false, upstreams: [%q]}
`, upstream.URL()))
	e.issue("shop", "shop.example", "*.shop.example")
	e.issue("api", "api.example")
	e.Run()
	e.AwaitReady()
	client := e.client("shop.example")
	get := func(path string) string {
		answer, err := client.Get("https://" + e.addr + path)
		if err != nil {
			return err.Error()
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return fmt.Sprint(answer.Proto, " ", string(body), " ", err, " ", answer.TLS.PeerCertificates[0].SerialNumber)
	}
	envoytest.Eventually(t, "the certificate to be served", func() bool { return e.serial("shop.example") != "" })
	first := e.serial("shop.example")
	kept := get("/a")
	if want := "HTTP/2.0 done <nil> " + first; kept != want {
		t.Fatalf("%q, want %q", kept, want)
	}
	slow := make(chan string, 1)
	go func() { slow <- get("/a/slow") }()
	<-arrived

	for range 3 {
		before := e.serial("x.shop.example")
		e.issue("shop", "shop.example", "*.shop.example")
		envoytest.Eventually(t, "the renewed certificate", func() bool { return e.serial("x.shop.example") != before })
	}
	if got := get("/a"); got != kept {
		t.Errorf("the kept connection has %q, want %q", got, kept)
	}

	// A bad pair: the other certificate is renewed, also after one that Envoy would reject without a name.
	served := e.serial("shop.example")
	pem := filepath.Join(filepath.Dir(e.File), "shop.pem")
	good, err := os.ReadFile(pem)
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := e.ca.Sign(&x509.Certificate{DNSNames: []string{"shop.example"}})
	if err := os.WriteFile(pem, foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "the bad pair to be reported", func() bool {
		return strings.Contains(e.certificates()[0].GetProblem(), "the key is not that of the certificate")
	})
	before := e.serial("api.example")
	e.issue("api", "api.example", "new.example")
	envoytest.Eventually(t, "the other certificate, with its new name", func() bool {
		return e.serial("new.example") != "" && e.serial("api.example") != before
	})
	if got := e.serial("shop.example"); got != served {
		t.Errorf("a bad pair changed what is served")
	}
	if e.Metric(`gatepost_certificate_unusable{certificate="shop.pem"}`) != 1 || e.Metric(`gatepost_certificate_unusable{certificate="api.pem"}`) != 0 ||
		!strings.Contains(e.Log(), "a certificate cannot be used") {
		t.Error("the bad pair is not in the metrics, or not in the log")
	}
	if err := os.WriteFile(pem, good, 0o600); err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "the repair to be seen", func() bool { return e.certificates()[0].GetProblem() == "" })

	close(release)
	if got := <-slow; got != kept {
		t.Errorf("the request in flight ended with %q", got)
	}
	status := e.certificates()
	if len(status) != 2 || !slices.Equal(status[1].GetNames(), []string{"api.example", "new.example"}) || status[0].GetNotAfter() == nil {
		t.Errorf("the status is %v", status)
	}
	// They are valid for a day, which is in each warning.
	if days := e.Metric(`gatepost_certificate_days_left{certificate="shop.pem"}`); days != 0 || !strings.Contains(e.Log(), "a certificate expires soon") {
		t.Errorf("%v days are left, or there was no warning", days)
	}
}

// TestAGatewayStartsWithBadCertificates: the others are served, and without any only the listener without TLS is open,
// until the files are repaired. One file is missing, and one certificate has expired.
func TestAGatewayStartsWithBadCertificates(t *testing.T) {
	t.Parallel()
	e := prepareEdge(t, `
tls:
  listen: TLS
  certificates: [{cert_file: shop.pem, key_file: shop.key}, {cert_file: api.pem, key_file: api.key}]
services: []
`)
	base := filepath.Join(filepath.Dir(e.File), "api")
	e.ca.IssueAs(base+".pem", base+".key", &x509.Certificate{
		DNSNames: []string{"api.example"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
	})
	e.Run()
	e.AwaitReady()
	if got := e.Do("GET", "/", ""); got.Status != http.StatusPermanentRedirect {
		t.Errorf("without TLS: %d", got.Status)
	}
	if problem := e.certificates()[1].GetProblem(); leafFor(e.addr, "api.example") != nil || !strings.Contains(problem, "expired on") {
		t.Errorf("an expired certificate is served, or its problem is %q", problem)
	}
	for _, name := range []string{"api", "shop"} {
		e.issue(name, name+".example")
		envoytest.Eventually(t, "the certificate of "+name, func() bool { return e.serial(name+".example") != "" })
	}
	// Definitions without TLS close its listener.
	e.Define("services: []")
	envoytest.Eventually(t, "the listener to be closed", func() bool { return e.serial("api.example") == "" })
	envoytest.Eventually(t, "the listener without TLS to serve", func() bool { return e.Do("GET", "/", "").Status == http.StatusNotFound })
}

// TestTheCAOfClientsIsReplaced: new connections are verified by the new one. A file that cannot be used changes
// nothing, and new definitions that name one are not served.
func TestTheCAOfClientsIsReplaced(t *testing.T) {
	t.Parallel()
	const definitions = `
tls:
  listen: TLS
  certificates: [{cert_file: shop.pem, key_file: shop.key}]
  client_certificates: {ca_file: ca.pem}
services: []
`
	e := prepareEdge(t, definitions)
	e.issue("shop", "shop.example")
	ca := filepath.Join(filepath.Dir(e.File), "ca.pem")
	clientOf := func(authority *testcert.CA) *http.Client {
		pair, err := tls.X509KeyPair(authority.Sign(new(x509.Certificate)))
		if err != nil {
			t.Fatal(err)
		}
		return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			RootCAs: e.ca.Pool(), ServerName: "shop.example", Certificates: []tls.Certificate{pair},
			ClientSessionCache: tls.NewLRUClientSessionCache(1), // a session is not resumed under another CA
		}}}
	}
	served := func(client *http.Client) bool {
		answer, err := client.Get("https://" + e.addr + "/")
		if err == nil {
			answer.Body.Close()
		}
		return err == nil && answer.StatusCode == http.StatusNotFound
	}
	old, next := testcert.New(t), testcert.New(t)
	oldClient, nextClient := clientOf(old), clientOf(next)
	e.Run()
	e.AwaitReady()
	if served(oldClient) || e.serial("shop.example") != "" {
		t.Error("clients are served although their CA is missing")
	}
	old.Write(ca)
	envoytest.Eventually(t, "a client to be served", func() bool { return served(oldClient) })
	if served(nextClient) {
		t.Error("a client of another CA is served")
	}
	next.Write(ca)
	envoytest.Eventually(t, "the new CA", func() bool { return served(nextClient) && !served(oldClient) })
	if err := os.WriteFile(ca, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "the bad file to be reported", func() bool { return e.certificates()[1].GetProblem() != "" })
	e.Define(strings.ReplaceAll(strings.ReplaceAll(definitions, "TLS", e.addr), "ca.pem", "missing.pem"))
	envoytest.Eventually(t, "the definitions to be refused", func() bool {
		return strings.Contains(e.Log(), "the definitions cannot be served; those before stay")
	})
	if !served(nextClient) || served(oldClient) {
		t.Error("a file that cannot be used changed who is served")
	}
}
