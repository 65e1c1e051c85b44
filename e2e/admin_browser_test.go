package e2e

import (
	"fmt"
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
	g := start(t, fmt.Sprintf("tokens: {authenticator: {url: \"%s/users/authenticate\"}}\nservices: []", users(t).URL()), setup{})
	g.Login("alice")
	admin := "http://" + g.Admin
	_, port, err := net.SplitHostPort(g.Admin)
	if err != nil {
		t.Fatal(err)
	}
	text := func() (got string) {
		envoytest.Eventually(t, "the text of the page", func() bool { // its target can still replace that of the page before
			var err error
			got, err = chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
			return err == nil
		})
		return got
	}
	// Cross-site reads and changes: on loopback sessions may be ended without a token.
	b.Open(pages(t))
	keptFrom(t, "a read", b.Fetch(admin+"/api/v1/overview", nil))
	keptFrom(t, "a stream", b.Fetch(admin+"/api/v1/denials/live", nil))
	keptFrom(t, "a change", b.Fetch(admin+"/api/v1/users/alice/sessions", map[string]any{"method": "DELETE"}))
	for _, options := range []map[string]any{{"mode": "no-cors"}, {"mode": "no-cors", "method": "POST", "body": `{"user":"alice"}`}} {
		if got := b.Fetch(admin+"/api/v1/shield/forgive", options); got.Type != "opaque" || got.Body != "" {
			t.Errorf("such a page reads %+v", got)
		}
	}
	keptFrom(t, "a change from a page without an origin", b.FetchFromNowhere(admin+"/api/v1/users/alice/sessions", map[string]any{"method": "DELETE"}))
	o := newOperator(t, g)
	o.token = ""
	if all := read[[]struct{ User string }](o, "/api/v1/users/alice/sessions"); len(all) != 1 {
		t.Errorf("alice has %d sessions, want the one of the login", len(all))
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
