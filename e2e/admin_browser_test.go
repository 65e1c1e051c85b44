package e2e

import (
	"net"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"gatepost/envoy/envoytest"
)

// TestOperatorsBrowserCannotBeUsedAgainstTheAdminAddress: an operator's browser can reach --admin
// on loopback, so every open page can send requests there.
func TestOperatorsBrowserCannotBeUsedAgainstTheAdminAddress(t *testing.T) {
	t.Parallel()
	b := openBrowser(t, chromedp.Flag("host-resolver-rules", "MAP rebound.example 127.0.0.1"))
	g := start(t, "services: []", setup{})
	admin := "http://" + g.Admin
	_, port, err := net.SplitHostPort(g.Admin)
	if err != nil {
		t.Fatal(err)
	}
	text := func() string {
		got, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for path, want := range map[string]string{"/readyz": `"envoy":"ok"`, "/metrics": "gatepost_", "/api/v1/status": `"version"`} {
		b.Open(admin + path)
		if got := text(); !strings.Contains(got, want) {
			t.Errorf("%s by the address bar: %.200q, want %q in it", path, got, want)
		}
		// DNS rebinding: the page's own name resolves to loopback, so requests to the address are
		// same-origin.
		b.Open("http://rebound.example:" + port + path)
		if got := text(); !strings.Contains(got, "host name in this request is not allowed") {
			t.Errorf("%s by a name that resolves to loopback: %.200q", path, got)
		}
		if got := b.Fetch(path, nil); got.Type != "basic" || got.Status != 421 {
			t.Errorf("%s fetched by such a page: %+v, want 421", path, got)
		}
		// A page of another origin that links to the address.
		b.Open(pages(t))
		if _, err := chromedp.Run(b.ctx, chromedp.Evaluate[any]("void (location.href = "+quoted(t, admin+path)+")")); err != nil {
			t.Fatal(err)
		}
		envoytest.Eventually(t, path+" to be refused to a page of another origin", func() bool {
			return strings.Contains(text(), "other origins")
		})
	}
}
