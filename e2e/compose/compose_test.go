// Package compose proves docker-compose.yml: it is brought up for real, on a Docker engine, and used as README.md says.
// Where the official images cannot be had, stand-ins take their place; then the file is proven, and not those images.
package compose

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

const alice = `{"username":"alice","password":"wonderland"}`

func TestComposeFile(t *testing.T) {
	e := findEngine(t)
	images := provideImages(t, e)
	p := newProject(t, e)
	t.Run("on "+images, func(t *testing.T) {
		p.up(t)
		g := gateway{url: "http://127.0.0.1:" + p.port}
		token := g.login(t)
		steps := []struct {
			name string
			test func(*testing.T)
		}{
			{"the session of the README", func(t *testing.T) { testSession(t, g, token) }},
			{"only Envoy's port is published, on loopback", func(t *testing.T) { testPublished(t, p) }},
			{"no container has a right that it does not need", func(t *testing.T) { testHardened(t, p) }},
			{"an edit of the definitions is picked up", func(t *testing.T) { testEdit(t, p, g) }},
			{"a broken edit changes nothing", func(t *testing.T) { testBrokenEdit(t, p, g) }},
			{"a service may come back on another address", func(t *testing.T) { testNewAddress(t, p, g, token) }},
			{"a token outlives Redis and Gatepost", func(t *testing.T) { testTokenOutlives(t, p, g, token) }},
			{"no log has a token or a password", func(t *testing.T) { testLogs(t, p, token) }},
			{"all end when they are asked to", func(t *testing.T) { testStop(t, p) }},
		}
		for _, s := range steps {
			// One project for all, in this order. A step that fails spoils the next ones.
			if !t.Run(s.name, s.test) {
				return
			}
		}
	})
}

func testSession(t *testing.T, g gateway, token string) {
	const page = "https://shop.example"
	for _, c := range []struct {
		name, method, path string
		header             []string
		status             int
		body               string
	}{
		{"without a token", "GET", "/orders", nil, 401, `"You are not allowed to access this API!"`},
		{"with a token that is none", "GET", "/orders", []string{"Authorization: Bearer 5"}, 401, `"You are not allowed to access this API!"`},
		{"with the token", "GET", "/orders", []string{"Authorization: Bearer " + token}, 200, `{"user":"user-1","orders":[{"id":1,"item":"tea","quantity":2}]}`},
		{"with the raw token", "GET", "/orders/1", []string{"Authorization: " + token}, 200, `{"id":1,"item":"tea","quantity":2}`},
		{"as somebody else", "GET", "/orders", []string{"Authorization: Bearer " + token, "x-user-id: user-2"}, 200, `{"user":"user-1","orders":[{"id":1,"item":"tea","quantity":2}]}`},
		{"a public service", "GET", "/items", nil, 200, `[{"name":"tea","cents":450},{"name":"bricks","cents":80}]`},
		{"an unknown path", "GET", "/nothing", nil, 404, `"Could not find any resources for given path."`},
		{"another method", "DELETE", "/items", nil, 405, `"Method not allowed"`},
		{"a preflight", "OPTIONS", "/orders", []string{"Origin: " + page, "Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: authorization"}, 200, ""},
		{"a 401 that a page may read", "GET", "/orders", []string{"Origin: " + page}, 401, `"You are not allowed to access this API!"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := g.ask(t, c.method, c.path, "", c.header...)
			if res.status != c.status || res.body != c.body {
				t.Errorf("%d %s, want %d %s", res.status, res.body, c.status, c.body)
			}
			if c.status == 405 && res.header.Get("Allow") == "" {
				t.Error("a 405 without Allow")
			}
			if slices.Contains(c.header, "Origin: "+page) && res.header.Get("Access-Control-Allow-Origin") != page {
				t.Errorf("Access-Control-Allow-Origin is %q, want %q", res.header.Get("Access-Control-Allow-Origin"), page)
			}
			if c.method == "OPTIONS" && !strings.Contains(res.header.Get("Access-Control-Allow-Methods"), "PUT") {
				t.Errorf("Access-Control-Allow-Methods is %q, want PUT in it", res.header.Get("Access-Control-Allow-Methods"))
			}
		})
	}
	wrong := g.ask(t, "POST", "/token", `{"username":"alice","password":"builder"}`)
	if wrong.status != 401 || wrong.body != `"Wrong user name or password"` || wrong.header.Get("token") != "" {
		t.Errorf("a wrong password: %d %s, want the user service's 401", wrong.status, wrong.body)
	}
}

func testPublished(t *testing.T, p *project) {
	var containers []struct {
		Service    string
		Publishers []struct {
			URL           string
			TargetPort    int
			PublishedPort int
		}
	}
	// One object per line.
	out := p.run(t, "ps", "--format", "json")
	for decoder := json.NewDecoder(strings.NewReader(out)); decoder.More(); {
		containers = slices.Grow(containers, 1)[:len(containers)+1]
		if err := decoder.Decode(&containers[len(containers)-1]); err != nil {
			t.Fatal(err)
		}
	}
	if len(containers) != 6 {
		t.Errorf("%d containers, want 6:\n%s", len(containers), out)
	}
	for _, c := range containers {
		for _, port := range c.Publishers {
			if port.PublishedPort == 0 { // exposed by the image, not published
				continue
			}
			if c.Service != "envoy" || port.URL != "127.0.0.1" || port.TargetPort != 5500 {
				t.Errorf("%s publishes its port %d on %q", c.Service, port.TargetPort, port.URL)
			}
		}
	}
}

func testHardened(t *testing.T, p *project) {
	networks := map[string]string{
		"envoy":    "gatepost-test_edge gatepost-test_gateway",
		"gatepost": "gatepost-test_gateway gatepost-test_store",
		"redis":    "gatepost-test_store",
		"users":    "gatepost-test_gateway",
		"orders":   "gatepost-test_gateway",
		"items":    "gatepost-test_gateway",
	}
	for service, want := range networks {
		var inspected []struct {
			Config     struct{ User string }
			HostConfig struct {
				ReadonlyRootfs, Privileged bool
				CapAdd, CapDrop            []string
				SecurityOpt                []string
				RestartPolicy              struct{ Name string }
			}
			NetworkSettings struct{ Networks map[string]any }
		}
		if err := json.Unmarshal([]byte(p.engine.run(t, "inspect", p.container(t, service))), &inspected); err != nil {
			t.Fatal(err)
		}
		c := inspected[0]
		if uid, _, _ := strings.Cut(c.Config.User, ":"); uid == "" || uid == "0" || uid == "root" {
			t.Errorf("%s runs as %q", service, c.Config.User)
		}
		if !c.HostConfig.ReadonlyRootfs || c.HostConfig.Privileged || len(c.HostConfig.CapAdd) != 0 ||
			!slices.Contains(c.HostConfig.CapDrop, "ALL") || !slices.Contains(c.HostConfig.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s may more than it needs: %+v", service, c.HostConfig)
		}
		if c.HostConfig.RestartPolicy.Name != "unless-stopped" {
			t.Errorf("%s has the restart policy %q", service, c.HostConfig.RestartPolicy.Name)
		}
		var names []string
		for name := range c.NetworkSettings.Networks {
			names = append(names, name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s is on the networks %s, want %s", service, got, want)
		}
	}
	for _, network := range []string{"gateway", "store"} {
		if internal := p.engine.run(t, "network", "inspect", "--format", "{{.Internal}}", "gatepost-test_"+network); internal != "true" {
			t.Errorf("the network %s is not internal", network)
		}
	}
}

func testEdit(t *testing.T, p *project, g gateway) {
	before, err := os.ReadFile(p.definitions())
	if err != nil {
		t.Fatal(err)
	}
	more := append(bytes.Clone(before), `  - name: catalogue
    path: /catalogue
    authenticate: false
    upstreams: ["http://items:8080"]
`...)
	if res := g.ask(t, "GET", "/catalogue", ""); res.status != 404 {
		t.Fatalf("/catalogue: %d before there is one", res.status)
	}
	// As many editors save: a new file takes the place of the old one.
	if err := os.WriteFile(p.definitions()+".new", more, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.definitions()+".new", p.definitions()); err != nil {
		t.Fatal(err)
	}
	g.until(t, 200, "GET", "/catalogue")
	// And as the others do: into the same file.
	if err := os.WriteFile(p.definitions(), before, 0o644); err != nil {
		t.Fatal(err)
	}
	g.until(t, 404, "GET", "/catalogue")
}

func testBrokenEdit(t *testing.T, p *project, g gateway) {
	before, err := os.ReadFile(p.definitions())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.definitions(), []byte("services: [{name: items, pth: /items}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mistake in Gatepost's log", func() bool {
		return strings.Contains(p.run(t, "logs", "gatepost"), "gatepost.yaml:1:")
	})
	if res := g.ask(t, "GET", "/items", ""); res.status != 200 {
		t.Errorf("/items: %d with a broken file", res.status)
	}
	if res := g.ask(t, "GET", "/orders", ""); res.status != 401 {
		t.Errorf("/orders without a token: %d with a broken file", res.status)
	}
	if err := os.WriteFile(p.definitions(), before, 0o644); err != nil {
		t.Fatal(err)
	}
}

func testNewAddress(t *testing.T, p *project, g gateway, token string) {
	before := p.addresses(t, "orders")
	p.run(t, "stop", "orders")
	// Something else takes the address while it is free.
	p.engine.run(t, "run", "--detach", "--rm", "--name", "gatepost-test-squatter", "--network", "gatepost-test_gateway",
		"gatepost-demo-shop", "-users=:8080")
	defer p.engine.run(t, "rm", "--force", "gatepost-test-squatter")
	p.run(t, "up", "--detach", "--wait", "orders")
	if after := p.addresses(t, "orders"); slices.Equal(before, after) {
		t.Fatalf("orders is on %v again: this proves nothing", after)
	}
	g.until(t, 200, "GET", "/orders", "Authorization: "+token)
}

func testTokenOutlives(t *testing.T, p *project, g gateway, token string) {
	for _, service := range []string{"redis", "gatepost"} {
		p.run(t, "restart", service)
		p.run(t, "up", "--detach", "--wait")
		g.until(t, 200, "GET", "/orders", "Authorization: "+token)
		if res := g.ask(t, "GET", "/orders", ""); res.status != 401 {
			t.Errorf("without a token: %d after a restart of %s", res.status, service)
		}
	}
}

func testLogs(t *testing.T, p *project, token string) {
	logs := p.run(t, "logs", "--no-color")
	for _, service := range []string{"envoy", "gatepost", "redis", "users", "orders", "items"} {
		if !strings.Contains(logs, service) {
			t.Errorf("no line of %s", service)
		}
	}
	for _, secret := range []string{token, "wonderland"} {
		if strings.Contains(logs, secret) {
			t.Errorf("a secret is logged: %q", secret)
		}
	}
}

func testStop(t *testing.T, p *project) {
	p.run(t, "stop")
	for _, service := range []string{"envoy", "gatepost", "redis", "users", "orders", "items"} {
		// 137 is a SIGKILL after the time to stop had run out.
		if code := p.engine.run(t, "inspect", "--format", "{{.State.ExitCode}}", p.container(t, service)); code != "0" {
			t.Errorf("%s ended with %s", service, code)
		}
	}
}

// gateway is the published port, as a client sees it.
type gateway struct{ url string }

type answer struct {
	status int
	header http.Header
	body   string // without the spaces around it
}

// ask sends one request on a connection of its own. A header is "Name: value".
func (g gateway) ask(t *testing.T, method, path, body string, header ...string) answer {
	t.Helper()
	res, err := g.try(t, method, path, body, header...)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (g gateway) try(t *testing.T, method, path, body string, header ...string) (answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	client := http.Client{Timeout: 30 * time.Second}
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, strings.TrimSpace(string(content))}, err
}

// until asks until the status is the wanted one.
func (g gateway) until(t *testing.T, status int, method, path string, header ...string) {
	t.Helper()
	var last answer
	eventually(t, method+" "+path, func() bool {
		res, err := g.try(t, method, path, "", header...)
		last = res
		return err == nil && res.status == status
	}, func() { t.Logf("the last answer: %d %s", last.status, last.body) })
}

// login logs alice in and returns her token.
func (g gateway) login(t *testing.T) string {
	t.Helper()
	res := g.ask(t, "POST", "/token", alice)
	token := res.header.Get("token")
	if res.status != 200 || token == "" || res.header.Get("expires_in") != "3600" || res.header.Get("userid") != "user-1" {
		t.Fatalf("the login: %d %s, expires_in %q, userid %q", res.status, res.body, res.header.Get("expires_in"), res.header.Get("userid"))
	}
	var body struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal([]byte(res.body), &body); err != nil || body.AccessToken != token || body.TokenType != "Bearer" || body.ExpiresIn != 3600 {
		t.Fatalf("the body of the login is not RFC 6749's: %s (%v)", res.body, err)
	}
	return token
}

// eventually waits, with patience, for a condition; it ends the test where it never comes, after the given last words.
func eventually(t *testing.T, what string, condition func() bool, lastWords ...func()) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, say := range lastWords {
				say()
			}
			t.Fatalf("%s: waited in vain", what)
		}
	}
}
