package devcert_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/devcert"
)

func issue(t *testing.T, dir string, names ...string) *devcert.Issued {
	t.Helper()
	issued, err := devcert.Issue(dir, names, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A client that trusts the root alone accepts a server with the certificate, under each of its names, and no other.
func TestClientsAcceptTheCertificate(t *testing.T) {
	issued := issue(t, t.TempDir(), "shop.example", "*.shop.example", "127.0.0.1", "::1")
	served, err := tls.LoadX509KeyPair(issued.Cert, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{served}})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0)} // its clients refuse it on purpose
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(listener) }()

	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(read(t, issued.Root))) {
		t.Fatal("the root is no certificate")
	}
	for name, want := range map[string]bool{
		"shop.example": true, "api.shop.example": true, "127.0.0.1": true, "::1": true, "shop.invalid": false, "a.b.shop.example": false,
	} {
		conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: name})
		if (err == nil) != want {
			t.Errorf("%s: %v, want accepted: %v", name, err, want)
		}
		if err == nil {
			conn.Close()
		}
	}
}

func TestOpenSSLVerifiesTheCertificate(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("this test needs openssl")
	}
	issued := issue(t, t.TempDir(), "shop.example")
	out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "shop.example", "-CAfile", issued.Root, issued.Cert).CombinedOutput()
	if err != nil {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}

func TestTheCAIsReusedAndItsCertificatesAreReplaced(t *testing.T) {
	dir := t.TempDir()
	first := issue(t, dir, "shop.example")
	root, cert := read(t, first.Root), read(t, first.Cert)
	other := issue(t, dir, "api.example")
	second := issue(t, dir, "shop.example")
	if !first.NewCA || other.NewCA || second.NewCA || read(t, first.Root) != root {
		t.Error("the CA was made again")
	}
	if read(t, first.Cert) == cert {
		t.Error("the certificate was not replaced")
	}
	for _, key := range []string{first.Key, other.Key, filepath.Join(dir, "ca.key")} {
		if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", key, info.Mode(), err)
		}
	}
}

func TestForeignFilesStay(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(dir string)
		want    string
	}{
		"a foreign certificate": {func(dir string) {
			issue(t, dir, "other.example")
			foreign := issue(t, t.TempDir(), "shop.example")
			write(t, filepath.Join(dir, "shop.example.pem"), read(t, foreign.Cert))
			write(t, filepath.Join(dir, "shop.example.key"), read(t, foreign.Key))
		}, "is not of this CA"},
		"a foreign key":      {func(dir string) { write(t, filepath.Join(dir, "shop.example.key"), "mine") }, "is not of this CA"},
		"a CA without a key": {func(dir string) { write(t, filepath.Join(dir, "ca.pem"), "mine") }, "only one of"},
		"no CA": {func(dir string) {
			write(t, filepath.Join(dir, "ca.pem"), "mine")
			write(t, filepath.Join(dir, "ca.key"), "mine")
		}, "choose another --out"},
		"a CA of others": {func(dir string) {
			foreign := issue(t, t.TempDir(), "shop.example")
			write(t, filepath.Join(dir, "ca.pem"), read(t, foreign.Cert))
			write(t, filepath.Join(dir, "ca.key"), read(t, foreign.Key))
		}, "not a CA that gatepost has made"},
		"a CA whose key others can read": {func(dir string) {
			issue(t, dir, "other.example")
			if err := os.Chmod(filepath.Join(dir, "ca.key"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "other users can read"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.prepare(dir)
			before := files(t, dir)
			if _, err := devcert.Issue(dir, []string{"shop.example"}, time.Now()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want %q", err, c.want)
			}
			for path, text := range before {
				if read(t, path) != text {
					t.Errorf("%s was changed", path)
				}
			}
		})
	}
}

func TestAnExpiredCASignsNothing(t *testing.T) {
	dir := t.TempDir()
	issue(t, dir, "shop.example")
	if _, err := devcert.Issue(dir, []string{"shop.example"}, time.Now().AddDate(11, 0, 0)); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Error(err)
	}
}

func TestNamesThatNoCertificateCanHave(t *testing.T) {
	for _, name := range []string{"", "ca", "../x", "a/b", "Shop.example", "bücher.example", "*", "a.*.example", "a b", "shop.example.", "http://shop.example", "fe80::1%eth0"} {
		dir := t.TempDir()
		if _, err := devcert.Issue(dir, []string{"shop.example", name}, time.Now()); err == nil || len(files(t, dir)) > 0 {
			t.Errorf("%q: %v, %v", name, err, files(t, dir))
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// files returns the files in dir. :: path → text
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		all[path] = read(t, path)
	}
	return all
}
