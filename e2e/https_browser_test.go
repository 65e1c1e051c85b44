package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"

	"gatepost/envoy/envoytest"
)

// homeThatTrusts returns a home folder in which Chromium trusts a CA, as `gatepost certs dev` prints how.
func homeThatTrusts(t *testing.T, ca string) string {
	t.Helper()
	home := t.TempDir()
	store := filepath.Join(home, ".pki/nssdb")
	if err := os.MkdirAll(store, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-d", "sql:" + store, "-N", "--empty-password"},
		{"-d", "sql:" + store, "-A", "-t", "C,,", "-n", "development", "-i", ca},
	} {
		if out, err := exec.Command("certutil", args...).CombinedOutput(); err != nil {
			t.Fatalf("certutil: %v\n%s", err, out)
		}
	}
	return home
}

// TestABrowserLogsInOverHTTPS: a page of a host behind the gateway logs in at another host of it, and calls a service
// after a preflight. All have a certificate of the development CA, and are reached over HTTP/2.
func TestABrowserLogsInOverHTTPS(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("certutil"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no certutil is installed: apt-get install libnss3-tools")
		}
		t.Skip("needs certutil: apt-get install libnss3-tools")
	}
	page, orders := envoytest.Upstream(t), envoytest.Upstream(t)
	page.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html><title>shop</title><body>")
	})
	e := prepareEdge(t, "")
	_, port, err := net.SplitHostPort(e.addr)
	must(t, err)
	shop, api := "https://shop.example:"+port, "https://api.shop.example:"+port
	must(t, os.WriteFile(e.File, fmt.Appendf(nil, `
listen: %q
origins: [%q]
tls: {listen: %q, certificates: [{cert_file: shop.example.pem, key_file: shop.example.key}]}
tokens: {authenticator: {url: "%s/users/authenticate"}}
services:
  - {name: page, path: /app, hosts: [shop.example], authenticate: false, upstreams: [%q]}
  - {name: orders, path: /orders, hosts: [api.shop.example], allowed_methods: [GET, PUT], upstreams: [%q]}
`, e.Addr, shop, e.addr, users(t).URL(), page.URL(), orders.URL()), 0o600))
	dir := filepath.Dir(e.File)
	if out, code := gatepost(t, nil, "certs", "dev", "--out", dir, "shop.example", "*.shop.example"); code != 0 {
		t.Fatalf("gatepost certs dev exits %d: %s", code, out)
	}
	e.Run()
	e.AwaitReady()
	b := openBrowser(t, chromedp.Flag("host-resolver-rules", "MAP *.example 127.0.0.1, MAP shop.example 127.0.0.1"),
		chromedp.Env("HOME="+homeThatTrusts(t, filepath.Join(dir, "ca.pem"))))

	b.Open(shop + "/app")
	if got := b.run(`({type: performance.getEntriesByType("navigation")[0].nextHopProtocol})`).Type; got != "h2" {
		t.Errorf("the page came over %s, want h2", got)
	}
	opened := b.Fetch(api+"/token", map[string]any{
		"method": "POST", "headers": map[string]string{"Content-Type": "application/json"}, "body": `{"username":"alice","password":"right"}`,
	})
	reads(t, "a login", opened, http.StatusOK, "")
	called := b.Fetch(api+"/orders/5", map[string]any{"method": "PUT", "headers": map[string]string{"Authorization": "Bearer " + opened.Headers["token"]}})
	reads(t, "a call after a preflight", called, http.StatusOK, "")
	denied := b.Fetch(api+"/orders/5", map[string]any{"headers": map[string]string{"Authorization": "Bearer 2b7f"}})
	reads(t, "a call with an unknown token", denied, http.StatusUnauthorized, "")
	if got := len(orders.Requests()); got != 1 {
		t.Errorf("the upstream got %d requests, want the one with the token", got)
	}
}
