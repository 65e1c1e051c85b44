package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"gatepost/envoy/envoytest"
)

// openAll is a script that opens WebSockets in every way that a page can, and returns the results.
const openAll = `async (gateway, token) => {
	const open = protocols => new Promise(done => {
		const socket = new WebSocket("ws://" + gateway + "/chat", protocols)
		socket.onopen = () => socket.send("hello")
		socket.onmessage = e => { done("echo " + e.data + " by " + socket.protocol); socket.close() }
		socket.onerror = () => done("refused")
	})
	const fetched = credentials => fetch("http://" + gateway + "/chat", {credentials}).then(r => String(r.status), () => "failed")
	const told = {}
	told.none = await open([])
	told.offered = await open(["chat", "gatepost.bearer." + token])
	told.unspoken = await open(["gatepost.bearer", "gatepost.bearer." + token])
	told.unanswered = await open(["gatepost.bearer." + token])
	document.cookie = "theme=dark"
	document.cookie = "session=" + token
	told.cookie = await open([])
	told.both = await open(["chat", "gatepost.bearer." + token])
	told.fetch = await fetched("include")
	told.without = await fetched("omit")
	return told
}`

func TestBrowserOpensWebSocketsWithItsToken(t *testing.T) {
	t.Parallel()
	users, chat := users(t), chats(envoytest.Upstream(t))
	b, origin := openBrowser(t), pages(t)
	g := start(t, fmt.Sprintf(`
origins: [%q]
cors: {allow_credentials: true}
tokens: {cookie: session, subprotocol: gatepost.bearer, authenticator: {url: %q}}
services:
  - {name: chat, path: /chat, websocket: true, upstreams: [%q]}
`, origin, users.URL(), chat.URL()), setup{})
	login := g.Do("POST", "/token", `{"username":"alice","password":"right"}`, "Origin: "+origin)

	from := func(page string) map[string]string {
		b.Open(page)
		ctx, cancel := context.WithTimeout(b.ctx, envoytest.Deadline)
		defer cancel()
		script := fmt.Sprintf("(%s)(%q, %q)", openAll, g.Addr, login.Header.Get("token"))
		report, err := chromedp.Run(ctx, chromedp.Evaluate[map[string]string](script, chromedp.EvalAwaitPromise))
		if err != nil {
			t.Fatalf("running a script in the page: %v", err)
		}
		return report
	}
	report := from(origin)
	for what, want := range map[string]string{
		"none":       "refused",
		"offered":    "echo hello by chat",
		"unspoken":   "echo hello by gatepost.bearer",
		"unanswered": "refused", // the browser requires that one of the offered subprotocols is chosen
		"cookie":     "echo hello by ",
		"both":       "echo hello by chat",
		"fetch":      "400", // from the upstream, which accepts only WebSockets
		"without":    "401",
	} {
		if report[what] != want {
			t.Errorf("%s: %q, want %q", what, report[what], want)
		}
	}
	for _, request := range chat.Requests() {
		if request.Header.Get("X-User-Id") != "alice" || strings.Contains(request.Header.Get("Cookie"), "session") {
			t.Errorf("the upstream got %v", request.Header)
		}
	}

	// The browser sends the cookie also for pages of other origins on the same host, and CORS does
	// not apply to WebSockets. The list of origins prevents the access.
	chat.Reset()
	for what, got := range from(pages(t)) {
		if got != "refused" && got != "failed" {
			t.Errorf("a page of another origin, %s: %q", what, got)
		}
	}
	none(t, chat)
}
