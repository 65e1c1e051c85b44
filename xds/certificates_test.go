package xds

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"gatepost/certs"
	"gatepost/envoy/envoytest"
	"gatepost/testcert"
)

// mostPerCertificate limits the memory of Envoy for a certificate, in KiB.
const mostPerCertificate = 512

// TestManyCertificates: each name gets its certificate, in little memory. A connection stays open while certificates
// are added, and while its own changes.
func TestManyCertificates(t *testing.T) {
	long(t)
	t.Parallel()
	const few, many = 10, 300
	ca, pairs := testcert.New(t), map[string]certs.Pair{}
	issue := func(name string) {
		cert, key := ca.Sign(&x509.Certificate{DNSNames: []string{name}})
		pair, err := certs.Parse(cert, key, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		pairs[name] = pair
	}
	nameOf := func(i int) string { return fmt.Sprintf("s%d.example", i) }
	for i := range many {
		issue(nameOf(i))
	}
	tlsAddr := envoytest.Addr(t)
	with := func(n int, listen, upstream string) *Snapshot {
		options := testOptions
		text := "tls:\n  listen: " + tlsAddr + "\n  certificates:\n"
		for i := range n {
			options.Certificates = append(options.Certificates, Certificate{Name: nameOf(i), ServerNames: []string{nameOf(i)}})
			text += fmt.Sprintf("    - {cert_file: %q, key_file: k}\n", nameOf(i))
		}
		return buildWith(t, text+openServices(listen, upstream, "", "a"), options)
	}
	// Without TLS first, so that Envoy can be ready before it gets secrets.
	l := startLiveOn(t, quick, envoytest.Options{Concurrency: 2}, func(listen, upstream string) *Snapshot {
		return build(t, openServices(listen, upstream, "", "a"))
	})
	l.SetSecrets(Secrets(pairs, nil))
	// served returns the certificate that a client gets, or "".
	served := func(name string) string {
		conn, err := tls.Dial("tcp", tlsAddr, &tls.Config{ServerName: name, RootCAs: ca.Pool()})
		if err != nil {
			return ""
		}
		defer conn.Close()
		return string(conn.ConnectionState().PeerCertificates[0].Raw)
	}
	serves := func(n int) (kib int) {
		t.Helper()
		began := time.Now()
		l.serves(with(n, l.addr, l.upstream.URL()))
		envoytest.Eventually(t, "the last certificate is served", func() bool {
			return served(nameOf(n-1)) == string(derOf(t, string(pairs[nameOf(n-1)].Chain)))
		})
		t.Logf("%d certificates are served after %v", n, time.Since(began))
		for i := range n {
			if served(nameOf(i)) != string(derOf(t, string(pairs[nameOf(i)].Chain))) {
				t.Errorf("%s does not get its certificate", nameOf(i))
			}
		}
		return int(envoytest.AnonymousMemory(t, l.envoy.PID()) / 1024)
	}

	before := serves(few)
	kept := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{ServerName: nameOf(0), RootCAs: ca.Pool()}, MaxConnsPerHost: 1,
	}}
	defer kept.CloseIdleConnections()
	first := string(derOf(t, string(pairs[nameOf(0)].Chain)))
	keptServes := func() {
		t.Helper()
		res, err := kept.Get("https://" + tlsAddr + "/a")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusOK || string(res.TLS.PeerCertificates[0].Raw) != first {
			t.Errorf("%s, over a new connection", res.Status)
		}
	}
	keptServes()
	after := serves(many)
	keptServes()
	each := (after - before) / (many - few)
	t.Logf("Envoy's memory: %d KiB with %d certificates, %d KiB with %d: %d KiB a certificate", before, few, after, many, each)
	if each > mostPerCertificate {
		t.Errorf("a certificate takes %d KiB of Envoy, want %d at most", each, mostPerCertificate)
	}
	if served(nameOf(many)) != "" {
		t.Error("a name without a certificate gets one")
	}

	issue(nameOf(0))
	l.SetSecrets(Secrets(pairs, nil))
	envoytest.Eventually(t, "the changed certificate is served", func() bool {
		return served(nameOf(0)) == string(derOf(t, string(pairs[nameOf(0)].Chain)))
	})
	keptServes()
}
