package e2e

import (
	"os"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

// The script of docs/howto/browser-login.md runs in a page, on the definitions that stand above it.
func TestTheScriptOfTheDocumentationWorksInABrowser(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/howto/browser-login.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{} // :: language → the first block in it
	for _, m := range codeBlock.FindAllStringSubmatch(string(text), -1) {
		if blocks[m[1]] == "" {
			blocks[m[1]] = m[2]
		}
	}
	browser, page := openBrowser(t), pages(t)
	g := start(t, strings.NewReplacer(
		"https://shop.example", page, "http://127.0.0.1:8081", users(t).URL(), "http://127.0.0.1:8082", envoytest.Upstream(t).URL(),
	).Replace(blocks["yaml"]), setup{})
	browser.Open(page)
	got := browser.run(`(async () => {
		const shown = [], results = [], showLogin = text => shown.push(text)
		` + strings.ReplaceAll(blocks["js"], "https://api.shop.example", g.URL) + `
		results.push(await login("alice", "wrong"))
		results.push(await login("alice", "right"))
		results.push((await call("/orders")).status)
		const before = token
		await refresh()
		results.push(token === before ? "the same token" : "another token")
		results.push((await call("/orders")).status)
		await logout()
		results.push((await call("/orders")).status)
		return {status: 200, body: [...results, ...shown].join(", ")}
	})()`)
	if want := "wrong, in, 200, another token, 200, 401, Your session has ended."; got.Body != want || got.Failed != "" {
		t.Errorf("the page got %q %s, want %q", got.Body, got.Failed, want)
	}
}
