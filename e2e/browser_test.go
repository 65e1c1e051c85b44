package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// tab is a tab of a real browser with an open page.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// fetched is what a page can read of a fetch.
type fetched struct {
	Status  int
	Type    string
	Body    string
	Headers map[string]string
	// Failed is the error of a fetch if the response is hidden from the page.
	Failed string
}

// openBrowser starts a browser. If there is none, the test is skipped, but with CI=true it fails.
func openBrowser(t *testing.T, more ...chromedp.ExecAllocatorOption) *tab {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" && os.Getenv("CI") == "true" {
		t.Fatal("no browser is installed: apt-get install chromium")
	}
	if program == "" {
		t.Skip("needs a browser: apt-get install chromium")
	}
	home := t.TempDir()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.UserDataDir(home), chromedp.Env("HOME="+home),
		chromedp.NoSandbox, // in a container Chromium may not create a sandbox, and it opens only our own pages
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("no-proxy-server", true),
	)
	allocator, end := chromedp.NewExecAllocator(t.Context(), append(options, more...)...)
	t.Cleanup(end)
	ctx, closeTab := chromedp.NewContext(allocator)
	t.Cleanup(closeTab)
	if err := chromedp.Do(ctx); err != nil { // the browser lives as long as the context of its first action
		t.Fatalf("starting %s: %v", program, err)
	}
	return &tab{t, ctx}
}

// Open navigates to a page.
func (b *tab) Open(url string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, envoytest.Deadline)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		b.t.Fatalf("opening %s: %v", url, err)
	}
}

// report is a script that fetches and returns what the page can read.
const report = `(async (url, options) => {
	try {
		const r = await fetch(url, options)
		return {status: r.status, type: r.type, body: await r.text(), headers: Object.fromEntries(r.headers)}
	} catch (e) {
		return {failed: String(e)}
	}
})`

// sandbox is a script that runs another script in a frame with an opaque origin and returns its
// result.
const sandbox = `(script => new Promise(done => {
	addEventListener("message", e => done(e.data), {once: true})
	const frame = document.createElement("iframe")
	frame.sandbox = "allow-scripts"
	frame.srcdoc = "<script>(" + script + ").then(r => parent.postMessage(r, '*'))<" + "/script>"
	document.body.append(frame)
}))`

// Fetch calls the page's fetch with these options.
func (b *tab) Fetch(url string, options map[string]any) fetched {
	b.t.Helper()
	return b.run(report + "(" + quoted(b.t, url) + "," + quoted(b.t, options) + ")")
}

// FetchFromNowhere is Fetch from a frame with the origin null.
func (b *tab) FetchFromNowhere(url string, options map[string]any) fetched {
	b.t.Helper()
	script := report + "(" + quoted(b.t, url) + "," + quoted(b.t, options) + ")"
	return b.run(sandbox + "(" + quoted(b.t, script) + ")")
}

func (b *tab) run(script string) fetched {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, envoytest.Deadline)
	defer cancel()
	got, err := chromedp.Run(ctx, chromedp.Evaluate[fetched](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("running a script in the page: %v", err)
	}
	return got
}

func quoted(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pages serves an empty page on its own origin.
func pages(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html><title>a page</title><body>")
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// reads checks that the page can read this status and body.
func reads(t *testing.T, what string, got fetched, status int, body string) {
	t.Helper()
	if got.Failed != "" || got.Status != status || got.Type != "cors" || body != "" && got.Body != body {
		t.Errorf("%s: the page reads %+v, want %d %s", what, got, status, body)
	}
}

// keptFrom checks that the page can read nothing.
func keptFrom(t *testing.T, what string, got fetched) {
	t.Helper()
	if !strings.Contains(got.Failed, "TypeError") {
		t.Errorf("%s: the page reads %+v, want that it may not", what, got)
	}
}

// TestPagesInABrowser uses the gateway like a web application: a page with a listed origin logs in,
// calls services with its token, and reads every response. Pages of other origins read nothing and
// reach no upstream.
func TestPagesInABrowser(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	redis := redistest.Start(t)
	ours, stranger := pages(t), pages(t)
	service, orders, items := users(t), envoytest.Upstream(t), envoytest.Upstream(t)
	g := start(t, fmt.Sprintf(`
origins: [%q]
tokens:
  authenticator: {url: "%s/users/authenticate", user_field: username}
  shield: {user: {failures: 1}}
services:
  - {name: orders, path: /orders, allowed_methods: [GET, PUT], upstreams: ["%s"]}
  - {name: items, path: /items, authenticate: false, allowed_methods: [GET], upstreams: ["%s"]}
  - {name: dead, path: /dead, authenticate: false, upstreams: ["http://%s"]}
`, ours, service.URL(), orders.URL(), items.URL(), envoytest.Addr(t)), setup{Redis: redis.URL()})
	login := func(password string) map[string]any {
		return map[string]any{"method": "POST", "headers": map[string]string{"Content-Type": "application/json"}, "body": `{"username":"alice","password":"` + password + `"}`}
	}
	with := func(method, token string) map[string]any {
		return map[string]any{"method": method, "headers": map[string]string{"Authorization": "Bearer " + token}}
	}

	b.Open(ours)
	opened := b.Fetch(g.URL+"/token", login("right"))
	reads(t, "a login", opened, http.StatusOK, "")
	token := opened.Headers["token"]
	if token == "" || opened.Headers["expires_in"] != "3600" || opened.Headers["userid"] != "alice" {
		t.Fatalf("the page reads the headers %v, want token, expires_in and userid", opened.Headers)
	}

	t.Run("a secured service is called with the token", func(t *testing.T) {
		for _, method := range []string{"GET", "PUT"} {
			got := b.Fetch(g.URL+"/orders/5?x=1", with(method, token))
			reads(t, method, got, http.StatusOK, "")
			// The preflight was sent first and reached only the gateway.
			sent := only(t, orders)
			if sent.Method != method || sent.Path != "/5?x=1" || sent.Header.Get("X-User-Id") != "alice" || sent.Header.Get("Authorization") != "" || sent.Header.Get("Origin") != ours {
				t.Errorf("the service got %+v", sent)
			}
		}
	})
	t.Run("a public service is called without one", func(t *testing.T) {
		reads(t, "items", b.Fetch(g.URL+"/items/5", nil), http.StatusOK, "")
		only(t, items)
	})
	t.Run("refusals are read as such", func(t *testing.T) {
		orders.Reset()
		// The challenge shows a page whether it must log in or its token has expired.
		for what, one := range map[string]struct {
			options   map[string]any
			challenge string
		}{
			"no token":      {nil, `Bearer realm="gatepost"`},
			"a wrong token": {with("GET", other(token)), `Bearer realm="gatepost", error="invalid_token"`},
		} {
			got := b.Fetch(g.URL+"/orders", one.options)
			reads(t, what, got, http.StatusUnauthorized, notAllowed)
			if got.Headers["www-authenticate"] != one.challenge {
				t.Errorf("%s: the page reads the headers %v, want the challenge %s", what, got.Headers, one.challenge)
			}
		}
		reads(t, "an unknown path", b.Fetch(g.URL+"/nothing", with("GET", token)), http.StatusNotFound, notFound)
		// For a method that is not allowed, the preflight fails, unless the method needs no
		// preflight.
		reads(t, "a method", b.Fetch(g.URL+"/items", map[string]any{"method": "POST", "body": "x"}), http.StatusMethodNotAllowed, methodNotAllowed)
		keptFrom(t, "a method that needs a preflight", b.Fetch(g.URL+"/items", map[string]any{"method": "DELETE"}))
		keptFrom(t, "a header that is not allowed", b.Fetch(g.URL+"/items", map[string]any{"headers": map[string]string{"X-Other": "x"}}))
		reads(t, "a service that is down", b.Fetch(g.URL+"/dead", nil), http.StatusServiceUnavailable, `"The service cannot be reached at the moment."`)
		reads(t, "an escaped slash", b.Fetch(g.URL+"/items%2f5", nil), http.StatusBadRequest, `"The request is malformed."`)
		none(t, orders)
		none(t, items)
	})
	t.Run("a wrong password, and too many of them", func(t *testing.T) {
		reads(t, "a wrong password", b.Fetch(g.URL+"/token", login("wrong")), http.StatusUnauthorized, `"wrong user name or password"`)
		envoytest.Eventually(t, "the page to read that it must wait", func() bool {
			return b.Fetch(g.URL+"/token", login("wrong")).Status == http.StatusTooManyRequests
		})
	})
	t.Run("no origin", func(t *testing.T) {
		service.Reset()
		keptFrom(t, "items", b.FetchFromNowhere(g.URL+"/items", nil))
		keptFrom(t, "orders", b.FetchFromNowhere(g.URL+"/orders", with("GET", token)))
		keptFrom(t, "a login", b.FetchFromNowhere(g.URL+"/token", login("right")))
		none(t, items)
		none(t, orders)
		none(t, service)
	})
	t.Run("another origin", func(t *testing.T) {
		b.Open(stranger)
		keptFrom(t, "items", b.Fetch(g.URL+"/items", nil))
		keptFrom(t, "orders", b.Fetch(g.URL+"/orders", with("GET", token)))
		keptFrom(t, "a login", b.Fetch(g.URL+"/token", login("right")))
		keptFrom(t, "an unknown path", b.Fetch(g.URL+"/nothing", nil))
		keptFrom(t, "a service that is down", b.Fetch(g.URL+"/dead", nil))
		keptFrom(t, "an escaped slash", b.Fetch(g.URL+"/items%2f5", nil))
		// Requests without a preflight and with a hidden response do not reach an upstream either.
		blind := map[string]any{"method": "POST", "mode": "no-cors", "body": `{"username":"bob","password":"right"}`}
		if got := b.Fetch(g.URL+"/token", blind); got.Type != "opaque" || got.Body != "" {
			t.Errorf("the page reads %+v of an answer that is not for it", got)
		}
		b.Fetch(g.URL+"/items", map[string]any{"mode": "no-cors"})
		none(t, items)
		none(t, orders)
		none(t, service)
	})
	t.Run("the store is down", func(t *testing.T) {
		b.Open(ours)
		redis.Kill()
		envoytest.Eventually(t, "the page to read the 503", func() bool {
			return b.Fetch(g.URL+"/orders", with("GET", token)).Status == http.StatusServiceUnavailable
		})
		got := b.Fetch(g.URL+"/orders", with("GET", token))
		reads(t, "orders", got, http.StatusServiceUnavailable, "")
		if !json.Valid([]byte(got.Body)) {
			t.Errorf("the page reads the body %q, want JSON", got.Body)
		}
		reads(t, "items", b.Fetch(g.URL+"/items", nil), http.StatusOK, "")
	})
}
