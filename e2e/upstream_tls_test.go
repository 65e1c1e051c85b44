package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"gatepost/envoy/envoytest"
	"gatepost/testcert"
)

// secured is an upstream that demands a client certificate. It answers with the name in that, and the name asked for.
type secured struct {
	url    string
	config atomic.Pointer[tls.Config]
	// checks are the requests for /healthz.
	checks atomic.Int64
}

// serve has new connections get a certificate of a CA, and demand one of another.
func (s *secured) serve(t *testing.T, ca, clients *testcert.CA, template *x509.Certificate) {
	t.Helper()
	pair, err := tls.X509KeyPair(ca.Sign(template))
	if err != nil {
		t.Fatal(err)
	}
	s.config.Store(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: clients.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2", "http/1.1"},
	})
}

func startSecured(t *testing.T) *secured {
	t.Helper()
	s := new(secured)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			s.checks.Add(1)
		}
		if r.URL.Path != "/kept" {
			w.Header().Set("Connection", "close") // each request shows what a new connection gets
		}
		fmt.Fprintf(w, "%s %s %s %s", r.Proto, tls.VersionName(r.TLS.Version), r.TLS.PeerCertificates[0].Subject.CommonName, r.TLS.ServerName)
	}))
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.config.Load(), nil }}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that fail
	t.Cleanup(server.Close)
	s.serve(t, testcert.New(t), testcert.New(t), &x509.Certificate{})
	server.StartTLS()
	s.url = server.URL
	return s
}

// certFor is a certificate for 127.0.0.1 and a name.
func certFor(name string) *x509.Certificate {
	c := &x509.Certificate{DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	c.Subject.CommonName = name
	return c
}

// TestUpstreamsAreVerifiedByTheirOwnCAAndGetACertificate: one Envoy, a service for each case; then files change.
func TestUpstreamsAreVerifiedByTheirOwnCAAndGetACertificate(t *testing.T) {
	t.Parallel()
	servers, clients, others := testcert.New(t), testcert.New(t), testcert.New(t)
	good, bare, unnamed, expired, foreign, renewed, canary := startSecured(t), startSecured(t), startSecured(t), startSecured(t), startSecured(t), startSecured(t), startSecured(t)
	for _, s := range []*secured{good, bare, renewed} {
		s.serve(t, servers, clients, certFor("orders.internal"))
	}
	canary.serve(t, servers, clients, certFor("localhost"))
	unnamed.serve(t, servers, clients, certFor("other.internal"))
	past := certFor("orders.internal")
	past.NotBefore, past.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	expired.serve(t, servers, clients, past)
	foreign.serve(t, others, clients, certFor("orders.internal"))
	calls, callsAt := startCallee(t, grpc.Creds(credentials.NewTLS(good.config.Load().Clone())))

	text := fmt.Sprintf(grpcShop, "1h", users(t).URL(), "https://"+callsAt, ", upstream_tls: {ca_file: ca.pem, cert_file: client.pem, key_file: client.key}")
	const own = "{ca_file: ca.pem, cert_file: client.pem, key_file: client.key, server_name: orders.internal}"
	const byHost = "{ca_file: ca.pem, cert_file: client.pem, key_file: client.key}"
	const checked = ", health_check: {path: /healthz, interval: 100ms}"
	const changes = "{ca_file: other.pem, cert_file: other-client.pem, key_file: other-client.key, server_name: orders.internal}"
	for name, s := range map[string][2]string{
		"good": {good.url, own}, "unnamed": {unnamed.url, own}, "expired": {expired.url, own}, "foreign": {foreign.url, own},
		"both":    {foreign.url, changes},
		"loaded":  {renewed.url, changes},
		"bare":    {bare.url, "{ca_file: ca.pem}"},
		"byhost":  {good.url, byHost},
		"checked": {good.url, own + checked},
		"ill":     {foreign.url, own + checked},
		// The canary is another host than the upstream, and each is verified by its own.
		"parts":   {good.url, byHost + checked + fmt.Sprintf(", canary: {upstreams: [%q], percent: 50, by: request}", strings.Replace(canary.url, "127.0.0.1", "localhost", 1))},
		"renewed": {renewed.url, changes},
	} {
		text += fmt.Sprintf("  - {name: %[1]s, path: /%[1]s, authenticate: false, upstreams: [%[2]q], upstream_tls: %[3]s}\n", name, s[0], s[1])
	}
	g := prepare(t, text, setup{})
	path := func(name string) string { return filepath.Join(filepath.Dir(g.File), name) }
	replace := func(name string, write func(path string)) {
		write(path(name + ".new"))
		must(t, os.Rename(path(name+".new"), path(name)))
	}
	issue := func(name string, ca *testcert.CA, common string) {
		ca.IssueAs(path(name+".new"), path(name+".key.new"), certFor(common))
		must(t, os.Rename(path(name+".key.new"), path(strings.TrimSuffix(name, ".pem")+".key")))
		must(t, os.Rename(path(name+".new"), path(name)))
	}
	for _, name := range []string{"ca.pem", "other.pem"} {
		servers.Write(path(name))
	}
	issue("client.pem", clients, "gateway")
	issue("other-client.pem", clients, "first")
	g.Run()
	g.AwaitReady()

	want(t, "the client certificate, and the name", g.Do("GET", "/good", ""), http.StatusOK, "HTTP/2.0 TLS 1.3 gateway orders.internal")
	want(t, "verified by the address", g.Do("GET", "/byhost", ""), http.StatusOK, "HTTP/2.0 TLS 1.3 gateway ")
	for _, name := range []string{"bare", "unnamed", "expired", "foreign"} {
		if got := g.Do("GET", "/"+name, ""); got.Status != http.StatusServiceUnavailable {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// Without a passed check there is no request: the checks too show the certificate, and verify the upstream.
	g.Await("a service with a health check", http.StatusOK, "GET", "/checked", "")
	want(t, "with a health check", g.Do("GET", "/checked", ""), http.StatusOK, "HTTP/2.0 TLS 1.3 gateway orders.internal")
	want(t, "with a health check of another CA", g.Do("GET", "/ill", ""), http.StatusServiceUnavailable, "")
	if good.checks.Load() == 0 || foreign.checks.Load() != 0 {
		t.Errorf("%d checks of the upstream, and %d of that of another CA", good.checks.Load(), foreign.checks.Load())
	}
	parts := map[string]bool{}
	envoytest.Eventually(t, "both parts", func() bool {
		got := g.Do("GET", "/parts", "")
		parts[got.Body] = got.Status == http.StatusOK
		return parts["HTTP/2.0 TLS 1.3 gateway "] && parts["HTTP/2.0 TLS 1.3 gateway localhost"]
	})
	if canary.checks.Load() == 0 {
		t.Error("the canary was not checked")
	}
	client, ctx := caller(t, g, g.Login("alice"))
	calls.takesCalls(t, client, ctx)

	// Under load on a kept connection, first the client certificate is renewed, then the CA. Until both sides have the
	// new ones, each has both.
	want(t, "before", g.Do("GET", "/renewed", ""), http.StatusOK, "HTTP/2.0 TLS 1.3 first orders.internal")
	load := envoytest.StartLoad(t, func() error {
		got, err := g.Try("GET", "/loaded/kept", "")
		if err == nil && got.Status != http.StatusOK {
			err = fmt.Errorf("%+v", got)
		}
		return err
	})
	answers := func(what string, status int, body string) {
		t.Helper()
		envoytest.Eventually(t, what, func() bool {
			got := g.Do("GET", "/renewed", "")
			return got.Status == status && (body == "" || got.Body == body)
		})
	}
	issue("other-client.pem", clients, "second")
	answers("the renewed certificate", http.StatusOK, "HTTP/2.0 TLS 1.3 second orders.internal")
	replace("other.pem", func(path string) { must(t, os.WriteFile(path, append(servers.PEM(), others.PEM()...), 0o600)) })
	envoytest.Eventually(t, "the new CA beside the old one", func() bool { return g.Do("GET", "/both", "").Status == http.StatusOK })
	renewed.serve(t, others, clients, certFor("orders.internal"))
	replace("other.pem", func(path string) { others.Write(path) })
	must(t, os.WriteFile(path("client.pem"), []byte("nothing"), 0o600))
	envoytest.Eventually(t, "the bad file to be reported", func() bool { return len(lines(g.Log(), `"level":"ERROR"`, "client.pem")) > 0 })
	load.Stop()
	want(t, "with the certificate before the bad file", g.Do("GET", "/good", ""), http.StatusOK, "HTTP/2.0 TLS 1.3 gateway orders.internal")
	keyFile, err := os.ReadFile(path("client.key"))
	must(t, err)
	key := strings.Split(string(keyFile), "\n")[1]
	for page, parts := range map[string][]string{
		"/api/v1/status": {`"client client.pem client.key"`, "there is no certificate in PEM", `"byhost"`},
		"/metrics":       {`gatepost_certificate_unusable{certificate="client client.pem client.key"} 1`, `gatepost_certificate_unusable{certificate="CAs ca.pem"} 0`},
		"/api/v1/config": {`"client client.pem client.key"`},
	} {
		body := adminPage(t, g, page)
		for _, part := range parts {
			if !strings.Contains(body, part) {
				t.Errorf("%s has no %s", page, part)
			}
		}
		if strings.Contains(body+g.Log(), key) {
			t.Errorf("%s, or the log, shows a key", page)
		}
	}
}

// adminPage returns a page of the admin address.
func adminPage(t *testing.T, g *gateway, page string) string {
	t.Helper()
	answer, err := http.Get("http://" + g.Admin + page)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
