package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/creack/pty"

	"gatepost/envoy/envoytest"
)

// see waits until the text of the page has all parts.
func (b *tab) see(parts ...string) {
	b.t.Helper()
	last := ""
	envoytest.Eventually(b.t, fmt.Sprintf("the page to show %q", parts), func() bool {
		last = b.evaluate("document.body.innerText.replaceAll('\\u00a0', ' ')")
		for _, part := range parts {
			if !strings.Contains(last, part) {
				return false
			}
		}
		return true
	})
}

// evaluate returns the text that a script evaluates to.
func (b *tab) evaluate(script string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, envoytest.Deadline)
	defer cancel()
	got, err := chromedp.Run(ctx, chromedp.Evaluate[string](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("running %.60s: %v", script, err)
	}
	return got
}

// press presses the button or link with this text.
func (b *tab) press(text string) {
	b.t.Helper()
	envoytest.Eventually(b.t, "the button "+text, func() bool {
		return b.evaluate(`(() => {
			const found = [...document.querySelectorAll("button, a")].find(e => e.innerText.trim() === `+quoted(b.t, text)+`)
			if (found) found.click()
			return found ? "yes" : "no"
		})()`) == "yes"
	})
}

// fill types into the field with this label, as a user does.
func (b *tab) fill(label, text string) {
	b.t.Helper()
	envoytest.Eventually(b.t, "the field "+label, func() bool {
		return b.evaluate(`(() => {
			const found = [...document.querySelectorAll("label")].find(e => e.innerText.trim().startsWith(`+quoted(b.t, label)+`))
			const field = found && found.querySelector("input, textarea")
			if (!field) return "no"
			field.value = `+quoted(b.t, text)+`
			field.dispatchEvent(new Event("input", {bubbles: true}))
			return "yes"
		})()`) == "yes"
	})
}

// prefer has the browser prefer a color scheme: light or dark.
func (b *tab) prefer(scheme string) {
	b.t.Helper()
	err := chromedp.Do(b.ctx, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	}))
	if err != nil {
		b.t.Fatal(err)
	}
}

// accessible checks the page with axe-core in both color schemes, and that it fits into 320 pixels.
func (b *tab) accessible(what, axe string) {
	b.t.Helper()
	paper := map[string]string{}
	for _, scheme := range []string{"dark", "light"} {
		b.prefer(scheme)
		paper[scheme] = b.evaluate(`getComputedStyle(document.body).backgroundColor`)
		if axe == "" {
			continue
		}
		b.evaluate(axe + `; ""`)
		found := b.evaluate(`axe.run().then(r => r.violations.map(v => v.id + ": " + v.nodes.map(n => n.html).join(" ")).join("\n"))`)
		if found != "" {
			b.t.Errorf("%s is not accessible in %s: %s", what, scheme, found)
		}
	}
	if paper["light"] != "rgb(246, 247, 249)" || paper["dark"] != "rgb(20, 23, 28)" {
		b.t.Errorf("the paper of %s is %v", what, paper)
	}
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(320, 800)); err != nil {
		b.t.Fatal(err)
	}
	if wide := b.evaluate(`String(document.documentElement.scrollWidth)`); wide != "320" {
		b.t.Errorf("%s is %s pixels wide, want 320", what, wide)
	}
	cut := b.evaluate(`[...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel).join(", ")`)
	if cut != "" {
		b.t.Errorf("of %s in 320 pixels a part is outside of the window: %s", what, cut)
	}
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(1200, 800)); err != nil {
		b.t.Fatal(err)
	}
}

// violations returns what the page has done against its policy.
func (b *tab) violations() string {
	b.t.Helper()
	return b.evaluate(`new Promise(done => {
		const all = []
		new ReportingObserver(r => all.push(...r), {types: ["csp-violation"], buffered: true}).observe()
		setTimeout(() => done(all.map(r => r.body.effectiveDirective + " " + r.body.blockedURL).join("\n")), 0)
	})`)
}

// keys presses keys, such as kb.Tab.
func (b *tab) keys(keys string, options ...chromedp.KeyOption) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, chromedp.KeyEvent(keys, options...)); err != nil {
		b.t.Fatal(err)
	}
}

// focuses presses keys once for each name, after which it has the focus.
func (b *tab) focuses(keys string, names ...string) {
	b.t.Helper()
	for _, name := range names {
		b.keys(keys)
		b.focused(name)
	}
}

// focused waits until an element with this name has the focus, which is seen.
func (b *tab) focused(name string) {
	b.t.Helper()
	last := ""
	defer func() {
		if b.t.Failed() {
			b.t.Logf("the focus is on %q", last)
		}
	}()
	envoytest.Eventually(b.t, "the focus on "+name, func() bool {
		last = b.evaluate(`(() => {
			const e = document.activeElement, box = e.getBoundingClientRect(), line = getComputedStyle(e)
			const name = e.ariaLabel || e.innerText || e.closest("label")?.innerText || e.tagName
			const seen = e.tagName === "H1" || line.outlineStyle === "solid" && line.outlineWidth === "3px"
			return name.trim() + (e.tagName === "H1" ? ", the heading" : "") + (box.left < 0 || box.width === 0 ? ", outside of the window" : "") + (seen ? "" : ", without an outline")
		})()`)
		return last == name
	})
}

// screenshot writes a picture of the page to $GATEPOST_SCREENSHOTS, if it is set.
func (b *tab) screenshot(name string) {
	b.t.Helper()
	dir := os.Getenv("GATEPOST_SCREENSHOTS")
	if dir == "" {
		return
	}
	end, err := chromedp.Run(b.ctx, chromedp.Evaluate[float64](`document.querySelector("footer").getBoundingClientRect().bottom`))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(1200, min(780, int64(end)))); err != nil {
		b.t.Fatal(err)
	}
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// axeScript returns axe-core, which `tools/page tests` installs if there is npm. Without it accessibility is not
// checked.
func axeScript(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../admin/page/node_modules/axe-core/axe.min.js")
	if _, npm := exec.LookPath("npm"); err != nil && npm == nil && os.Getenv("CI") == "true" {
		t.Fatalf("axe-core is not installed (tools/page tests): %v", err)
	}
	if err != nil {
		t.Log("axe-core is not installed: the accessibility of the page is not checked")
	}
	return string(text)
}

// TestThePageOfTheAdminAddress uses each page in a browser against a real gateway.
func TestThePageOfTheAdminAddress(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	axe := axeScript(t)
	options, _ := withOperator(t)
	upstream := envoytest.Upstream(t)
	definitions := func(more string) string {
		return fmt.Sprintf(`
tokens: {authenticator: {url: "%s/users/authenticate"}, shield: {address: {failures: 1, base: 900s}}}
services:
  - {name: orders, path: /orders, upstreams: ["%s"], allowed_methods: [GET]}
  - {name: api, path: /, hosts: [api.example], upstreams: ["%[2]s"]}
%s`, users(t).URL(), upstream.URL(), more)
	}
	options.Args = append(options.Args, "--config", "gatepost.yaml")
	g := prepare(t, definitions(""), options)
	g.dir = filepath.Dir(g.File)
	g.Run()
	g.AwaitReady()
	token := g.Login("bob")

	b.Open("http://" + g.Admin)
	b.press("Use a token")
	b.fill("Token of --admin-token-file", operatorToken)
	b.press("Use")
	b.see("Ready yes", "alice, may operate", "Logins since the start")
	b.accessible("the overview", axe)

	b.press("Services")
	b.see("orders", "/orders", "unchecked", "gatepost.yaml:5")
	b.accessible("services", axe)
	b.screenshot("services")

	// A denial is seen live, and one click explains it.
	b.press("Denials")
	b.see("live, 0 shown", "404, 405 and 429, is in the access log")
	g.Do("GET", "/orders/7", "", "Origin: https://shop.example")
	b.see("token_missing", "GET /orders/7")
	b.accessible("denials", axe)
	b.screenshot("denials")
	b.press("explain")
	b.see("token_missing", "401", "GET /orders/7")

	// A 405 is explained, with the place of the definition.
	b.fill("Method", "POST")
	b.fill("Path or URL", "/orders/7")
	b.evaluate(`(document.querySelector("form.explain").requestSubmit(), "")`)
	b.see("method_not_allowed", "405", "gatepost.yaml:5")
	b.accessible("an explanation", axe)
	b.screenshot("explain")

	// A denial under another host, with a malformed token, is explained with both.
	b.press("Denials")
	g.under("api.example", "GET", "/reports", "", "Authorization: Bearer x")
	b.see("token_malformed", "at api.example")
	b.press("explain")
	b.see("token_malformed", "401", "GET /reports", "gatepost.yaml:6")

	// A session that is ended in the page gets 401 at once.
	b.press("Sessions")
	b.fill("User id", "bob")
	b.press("Show sessions")
	b.see("Sessions of bob")
	b.accessible("sessions", axe)
	b.screenshot("sessions")
	if got := g.Do("GET", "/orders", "", "Authorization: Bearer "+token); got.Status != http.StatusOK {
		t.Errorf("before the end of the session: %d", got.Status)
	}
	b.press("End")
	b.press("Yes")
	b.see("bob has no session.")
	if got := g.Do("GET", "/orders", "", "Authorization: Bearer "+token); got.Status != http.StatusUnauthorized {
		t.Errorf("after the end of the session: %d", got.Status)
	}

	// A change is shown side by side, and rolled back.
	g.Define(definitions(`  - {name: items, path: /items, authenticate: false, upstreams: ["` + upstream.URL() + `"]}`))
	b.press("Revisions")
	b.see("+items", "Roll back to 1")
	b.evaluate(`(document.querySelector("tbody button").click(), "")`)
	b.see("Revision 2 beside revision 1", "name: items")
	b.accessible("revisions", axe)
	b.screenshot("revisions")
	b.press("Roll back to 1")
	b.press("Yes")
	b.see("rollback to revision 1", "alice")
	envoytest.Eventually(t, "the removed service to be unknown", func() bool { return g.Do("GET", "/items", "").Status == http.StatusNotFound })

	// The Envoy and what it has acknowledged.
	b.press("Envoys")
	b.see("gatepost-envoy", "yes", "checked inside Envoy")
	b.accessible("envoys", axe)

	// An address that is held is forgiven.
	for range 2 {
		g.Do("POST", "/token", `{"username":"carol","password":"wrong"}`)
	}
	b.press("Held logins")
	b.see("127.0.0.1", "Forgive")
	b.accessible("held logins", axe)
	b.screenshot("held")
	b.press("Forgive")
	b.press("Yes")
	b.see("No address waits.")
	g.Login("carol")

	b.press("Overview")
	b.see("Denied per minute", "refused", "1, all verified", "Listeners", "http\t"+g.Addr+"\tno")
	points := 2
	if os.Getenv("GATEPOST_SCREENSHOTS") != "" {
		points = 20
	}
	envoytest.Eventually(t, "the rate of denials", func() bool {
		g.Do("GET", "/orders", "")
		return b.evaluate(`String(document.querySelector(".big").innerText !== "0" &&
			document.querySelector(".spark polyline").getAttribute("points").split(" ").length >= `+quoted(t, points)+`)`) == "true"
	})
	b.accessible("the overview after a while", axe)
	b.screenshot("overview")
	b.prefer("dark")
	b.screenshot("overview-dark")

	// Files that need the token are saved with it.
	b.evaluate(`(() => {
		window.saved = ""
		const link = URL.createObjectURL
		URL.createObjectURL = file => { file.text().then(text => window.saved = text); return link.call(URL, file) }
		return ""
	})()`)
	for _, file := range [][2]string{
		{"metrics", "gatepost_decisions_total"}, {"API", "openapi: 3.1"}, {"Download a support bundle", "\x1f"},
		{"Download the definitions that are served", "name: orders"},
	} {
		b.press("Revisions")
		b.press(map[bool]string{true: "Overview", false: "Revisions"}[strings.Contains(file[0], "support")])
		b.press(file[0])
		envoytest.Eventually(t, file[0]+" to be saved", func() bool { return strings.Contains(b.evaluate(`window.saved`), file[1]) })
	}
	if found := b.violations(); found != "" {
		t.Errorf("the page violates its policy: %s", found)
	}
	// What the policy is there for: text makes no HTML.
	if got := b.evaluate(`(() => { try { document.body.innerHTML = "<i>"; return "made" } catch (e) { return e.name } })()`); got != "TypeError" {
		t.Errorf("innerHTML: %s, want a TypeError of Trusted Types", got)
	}
	envoytest.Eventually(t, "that violation to be reported", func() bool { return b.violations() != "" })
}

// TestThePageShowsCertificates: their names, days left and what is wrong, as the API has them.
func TestThePageShowsCertificates(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	e := prepareEdge(t, `
tls:
  listen: TLS
  certificates: [{cert_file: shop.pem, key_file: shop.key}, {cert_file: api.pem, key_file: api.key}]
  client_certificates: {ca_file: clients.pem, mode: optional}
services: []
`)
	e.issue("shop", "shop.example", "*.shop.example")
	e.issue("api", "api.example")
	must(t, os.WriteFile(filepath.Join(filepath.Dir(e.File), "clients.pem"), e.ca.PEM(), 0o644))
	e.Run()
	e.AwaitReady()
	must(t, os.WriteFile(filepath.Join(filepath.Dir(e.File), "api.pem"), []byte("half a file"), 0o644))

	o := newOperator(t, e.gateway)
	o.token = ""
	var all []struct {
		Name, Source, Problem string
		Names                 []string
		CA                    bool
		NotBefore             *time.Time `json:"not_before"`
		NotAfter              *time.Time `json:"not_after"`
		DaysLeft              int        `json:"days_left"`
	}
	envoytest.Eventually(t, "the broken file to be noticed", func() bool {
		all = nil
		must(t, json.Unmarshal(o.call("GET", "/api/v1/certificates", "", http.StatusOK), &all))
		return len(all) == 3 && all[1].Problem != ""
	})
	o.call("GET", "/api/v1/status", "", http.StatusOK)
	for i, one := range all {
		isCA := i == 2
		if one.Source != "files" || one.CA != isCA || one.NotAfter == nil || (one.NotBefore == nil) != isCA || (one.Problem != "") != (i == 1) {
			t.Errorf("certificate %d is %+v", i, one)
		}
	}
	if got := strings.Join(all[0].Names, " "); got != "shop.example *.shop.example" {
		t.Errorf("the first is served for %s", got)
	}

	b.Open("http://" + e.Admin + "/#/certificates")
	b.see("shop.pem", "shop.example, *.shop.example", fmt.Sprintf("%d days left", all[0].DaysLeft), "api.pem", all[1].Problem, "clients.pem")
	b.accessible("certificates", axeScript(t))
	b.screenshot("certificates")

	b.press("Overview")
	b.see("Listeners", "http\t"+e.Addr+"\tno", "https\t"+e.addr+"\t1.2 and later\tclient certificates optional")
	b.accessible("an overview with TLS", axeScript(t))
	b.screenshot("overview-tls")
}

// TestALinkSignsInOnce: `gatepost run` shows it on a terminal, and the page exchanges its code. Links that somebody
// else has made sign nobody in.
func TestALinkSignsInOnce(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	screen, terminal, err := pty.Open()
	must(t, err)
	defer screen.Close()
	options, _ := withOperator(t)
	options.Stderr = terminal
	g := start(t, "services: []", options)
	must(t, terminal.Close())
	link := ""
	for lines := bufio.NewScanner(screen); link == "" && lines.Scan(); {
		link = regexp.MustCompile(`http://127\.0\.0\.1:\d+/#code=\w+`).FindString(lines.Text())
	}
	if link == "" {
		t.Fatal("gatepost run shows no link on a terminal")
	}
	go func() { _, _ = io.Copy(io.Discard, screen) }()

	for planted, want := range map[string]string{"#token=" + operatorToken: "", "#code=0": "the link was used already"} {
		b.Open("http://" + g.Admin + "/" + planted)
		b.see("Ready yes", "Use a token", want)
		b.Open("about:blank")
	}
	b.Open(link)
	b.see("the link of the terminal, may operate")
	if got := b.evaluate("location.href"); strings.Contains(got, "code") {
		t.Errorf("the code stays in the address %s", got)
	}
	b.press("Sign out")
	b.see("Use a token")
	b.Open("about:blank")
	b.Open(link)
	b.see("Use a token", "the link was used already")
}

// TestLogsHaveNoLink: who reads logs is no operator by that.
func TestLogsHaveNoLink(t *testing.T) {
	t.Parallel()
	options, _ := withOperator(t)
	g := start(t, "services: []", options)
	if log := g.Log(); strings.Contains(log, "code=") || !strings.Contains(log, `"admin":"`+g.Admin+`"`) {
		t.Errorf("the log has %s, want the address alone", log)
	}
}

// TestThePageIsUsedByKeyboard: each element is reached in the order in which it is seen, and the focus never gets lost.
func TestThePageIsUsedByKeyboard(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	g := start(t, fmt.Sprintf(`
tokens: {authenticator: {url: "%s/users/authenticate"}}
services: []
`, users(t).URL()), setup{})
	g.Login("bob")
	b.Open("http://" + g.Admin)
	b.see("Ready yes", "Listeners")
	b.focuses(kb.Tab, "Skip to the content")
	b.focuses(kb.Enter, "Overview, the heading")
	b.focuses(kb.Tab, "0 services", "1 Envoys", "Listeners", "Download a support bundle")
	b.focuses(kb.Tab+kb.Tab, "metrics")
	b.evaluate(`(document.activeElement.blur(), document.querySelector(".skip").focus(), "")`)
	b.focuses(kb.Tab, "Overview", "Services", "Denials", "Explain", "Sessions", "Revisions", "Envoys", "Certificates", "Held logins", "Use a token")
	for range 5 {
		b.keys(kb.Tab, chromedp.KeyModifiers(chromedp.ModifierShift))
	}
	b.focused("Sessions")
	b.keys(kb.Enter)
	b.see("User id")
	b.focused("Sessions, the heading")
	b.focuses(kb.Tab, "User id")
	b.keys("bob" + kb.Enter)
	b.see("Sessions of bob")
	b.focuses(kb.Tab, "Show sessions", "Sessions of bob", "End") // the table can be scrolled
	b.focuses(kb.Enter, "Yes")
	b.focuses(kb.Escape, "End")
	b.focuses(kb.Enter, "Yes")
	b.focuses(kb.Tab, "No")
	b.focuses(kb.Enter, "End", "Yes")
	b.keys(kb.Enter)
	b.see("bob has no session.")
}

// TestThePageShowsWhatEnvoyRejects: first there is nothing else to serve, then the other services are served.
func TestThePageShowsWhatEnvoyRejects(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	axe := axeScript(t)
	g := prepare(t, "services: []", setup{Args: []string{"--ca-file", "/does/not/exist.crt"}})
	addr, giveUp := occupied(t)
	g.Addr, g.URL = addr, "http://"+addr
	g.Define("services: []")
	g.Run()
	envoytest.Eventually(t, "the address of operators", func() bool { return envoytest.Accepts(g.Admin) })
	b.Open("http://" + g.Admin + "/#/envoys")
	b.see("gatepost-envoy", "rejected", "Address already in use", "The newest definitions are not served as they are", "0 of 1 Envoys are verified")
	b.accessible("a rejection", axe)
	b.press("Overview")
	b.see("Ready no", "Address already in use", "not verified")
	giveUp()
	g.Signal(syscall.SIGHUP)
	b.see("Ready yes")
	b.press("Envoys")
	b.see("1 of 1 Envoys are verified", "overcome", "Address already in use", "listener of version")
	b.accessible("a rejection that was overcome", axe)
	b.screenshot("overcome")
	b.press("Overview")

	upstream := envoytest.Upstream(t)
	g.Define(fmt.Sprintf(`
services:
  - {name: fine, path: /fine, authenticate: false, upstreams: [%q]}
  - {name: unverified, path: /unverified, authenticate: false, upstreams: ["https://a.example"]}
`, upstream.URL()))
	b.see("Ready yes", "/does/not/exist.crt")
	b.press("Envoys")
	b.see("The newest definitions are not served as they are", "unverified", "/does/not/exist.crt")
	b.screenshot("envoys")
	b.press("Services")
	b.see("withheld", "served", "/does/not/exist.crt")
	b.accessible("a service that is withheld", axe)
	if found := b.violations(); found != "" {
		t.Errorf("the page violates its policy: %s", found)
	}
	g.Signal(syscall.SIGTERM)
	b.see("The gateway does not respond.")
}
