// Package compose tests docker-compose.yml with a real Docker engine, following README.md. If the
// official images cannot be pulled, stand-ins replace them; then only the file is tested.
package compose

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/testport"
)

const alice = `{"username":"alice","password":"wonderland"}`

func TestComposeFile(t *testing.T) {
	testport.Reserve(t, "docker") // an engine changes this machine's packet filter, and the project has a fixed name
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
			{"only Envoy can be reached, on loopback", func(t *testing.T) { testReach(t, p) }},
			{"upstreams cannot reach Gatepost", func(t *testing.T) { testNoStrangers(t, p) }},
			{"Gatepost verifies what Envoy serves", func(t *testing.T) { testVerified(t, p) }},
			{"Gatepost sees the upstreams as Envoy does", func(t *testing.T) { testUpstreams(t, p) }},
			{"Envoy checks tokens by itself", func(t *testing.T) { testModule(t, p, g, token) }},
			{"no container has a right that it does not need", func(t *testing.T) { testHardened(t, p) }},
			{"an edit of the definitions is picked up", func(t *testing.T) { testEdit(t, p, g) }},
			{"a broken edit changes nothing", func(t *testing.T) { testBrokenEdit(t, p, g) }},
			{"a service may come back on another address", func(t *testing.T) { testNewAddress(t, p, g, token) }},
			{"a token outlives Redis and Gatepost", func(t *testing.T) { testTokenOutlives(t, p, g, token) }},
			{"no log has a token or a password", func(t *testing.T) { testLogs(t, p, token) }},
			{"a second gateway serves HTTPS", func(t *testing.T) { testTLS(t, p, token) }},
			{"Prometheus scrapes Gatepost", func(t *testing.T) { testObservability(t, p, images) }},
			{"a collector is optional", func(t *testing.T) { testCollectorIsOptional(t, p) }},
			{"all stop gracefully", func(t *testing.T) { testStop(t, p) }},
		}
		for _, s := range steps {
			// The steps share one project and run in this order. If one fails, the next ones are
			// likely to fail too.
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
		{"with an invalid token", "GET", "/orders", []string{"Authorization: Bearer 5"}, 401, `"You are not allowed to access this API!"`},
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
			res := g.send(t, c.method, c.path, "", c.header...)
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
	wrong := g.send(t, "POST", "/token", `{"username":"alice","password":"builder"}`)
	if wrong.status != 401 || wrong.body != `"Wrong user name or password"` || wrong.header.Get("token") != "" {
		t.Errorf("a wrong password: %d %s, want the user service's 401", wrong.status, wrong.body)
	}
}

// testTLS starts the profile tls. Its certificate is of a development CA, and the token of the other gateway opens it.
func testTLS(t *testing.T, p *project, token string) {
	p.run(t, "--profile", "tls", "up", "--wait")
	defer p.run(t, "--profile", "tls", "rm", "--stop", "--force", "envoy-tls", "gatepost-tls", "certs")
	file := filepath.Join(t.TempDir(), "ca.pem")
	p.run(t, "--profile", "tls", "cp", "gatepost-tls:/var/lib/gatepost/certs/ca.pem", file)
	root, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}, Timeout: envoytest.Deadline}
	defer client.CloseIdleConnections()
	for header, want := range map[string]int{"": 401, "Bearer " + token: 200} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://localhost:"+p.tlsPort+"/orders", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", header)
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want || res.Proto != "HTTP/2.0" {
			t.Errorf("%d over %s, want %d over HTTP/2.0", res.StatusCode, res.Proto, want)
		}
	}
}

// The networks of each service.
var networks = map[string][]string{
	"envoy":    {"edge", "gateway"},
	"gatepost": {"gateway", "store"},
	"redis":    {"store"},
	"users":    {"gateway"},
	"orders":   {"gateway"},
	"items":    {"gateway"},
}

func testReach(t *testing.T, p *project) {
	if got, want := len(strings.Fields(p.run(t, "ps", "--quiet"))), len(networks); got != want {
		t.Errorf("%d containers, want %d", got, want)
	}
	for service, on := range networks {
		c := p.inspect(t, service)
		for port, bindings := range c.HostConfig.PortBindings {
			for _, b := range bindings {
				if service != "envoy" || port != "5500/tcp" || b.HostIP != "127.0.0.1" {
					t.Errorf("%s publishes %s on %q", service, port, b.HostIP)
				}
			}
		}
		checkNetworks(t, p, service, on)
	}
	for _, network := range []string{"gateway", "store"} {
		if internal := p.engine.run(t, "network", "inspect", "--format", "{{.Internal}}", projectName+"_"+network); internal != "true" {
			t.Errorf("the network %s is not internal", network)
		}
	}
}

func checkNetworks(t *testing.T, p *project, service string, want []string) {
	t.Helper()
	var got []string
	for name := range p.inspect(t, service).NetworkSettings.Networks {
		got = append(got, strings.TrimPrefix(name, projectName+"_"))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s is on the networks %v, want %v", service, got, want)
	}
}

// testNoStrangers connects from an upstream's network. A client of --grpc could act as an Envoy,
// and a client of --http could log in without Envoy.
func testNoStrangers(t *testing.T, p *project) {
	for _, port := range []string{"18000", "18001", "18002"} {
		command := p.command(t.Context(), "exec", "-T", "items", "/shop", "-check=http://gatepost:"+port)
		if out, err := command.CombinedOutput(); err == nil || !strings.Contains(string(out), "connection refused") {
			t.Errorf("connecting to gatepost:%s from an upstream: %v, want a refused connection\n%s", port, err, out)
		}
	}
}

var verified = regexp.MustCompile(`"proven":\s*true`)

func testVerified(t *testing.T, p *project) {
	eventually(t, "a verified version", func() bool {
		return verified.MatchString(p.run(t, "exec", "-T", "gatepost", "/gatepost", "status", "--format=json"))
	})
}

// testUpstreams: Gatepost may ask Envoy's admin interface, and the containers of the upstreams have no such folder.
func testUpstreams(t *testing.T, p *project) {
	status := p.run(t, "exec", "-T", "gatepost", "/gatepost", "status", "--upstreams")
	for _, want := range []string{"0 of 2 upstreams are checked", ":8080 orders", ":8080 items"} {
		if !strings.Contains(status, want) {
			t.Errorf("gatepost status does not contain %q:\n%s", want, status)
		}
	}
	for service := range networks {
		asksEnvoy := service == "envoy" || service == "gatepost"
		if has := slices.ContainsFunc(p.inspect(t, service).Mounts, func(m mount) bool { return m.Destination == "/run/envoy" }); has != asksEnvoy {
			t.Errorf("%s has the folder of Envoy's admin interface: %v", service, has)
		}
	}
}

var inside = regexp.MustCompile(`"library":\s*"/run/gatepost/libgatepost-`)

// testModule: the two containers share a folder, so Envoy has the module without a setting.
func testModule(t *testing.T, p *project, g gateway, token string) {
	status := p.run(t, "exec", "-T", "gatepost", "/gatepost", "status", "--format=json")
	if !inside.MatchString(status) {
		t.Errorf("the module is not used: %s", status)
	}
	for range 5 {
		if res := g.send(t, "GET", "/orders", "", "Authorization: Bearer "+token); res.status != 200 {
			t.Errorf("a request: %d %s", res.status, res.body)
		}
	}
}

func testHardened(t *testing.T, p *project) {
	for service := range networks {
		checkHardened(t, p, service)
	}
}

func checkHardened(t *testing.T, p *project, service string) {
	t.Helper()
	c := p.inspect(t, service)
	if uid, _, _ := strings.Cut(c.Config.User, ":"); uid == "" || uid == "0" || uid == "root" {
		t.Errorf("%s runs as %q", service, c.Config.User)
	}
	h := c.HostConfig
	if !h.ReadonlyRootfs || h.Privileged || len(h.CapAdd) != 0 ||
		!slices.Contains(h.CapDrop, "ALL") || !slices.Contains(h.SecurityOpt, "no-new-privileges:true") {
		t.Errorf("%s may more than it needs: %+v", service, h)
	}
	if h.RestartPolicy.Name != "unless-stopped" {
		t.Errorf("%s has the restart policy %q", service, h.RestartPolicy.Name)
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
	if res := g.send(t, "GET", "/catalogue", ""); res.status != 404 {
		t.Fatalf("/catalogue: %d before there is one", res.status)
	}
	// Many editors save this way: a new file replaces the old one.
	if err := os.WriteFile(p.definitions()+".new", more, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.definitions()+".new", p.definitions()); err != nil {
		t.Fatal(err)
	}
	g.until(t, 200, "GET", "/catalogue")
	// Others write into the same file.
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
	if res := g.send(t, "GET", "/items", ""); res.status != 200 {
		t.Errorf("/items: %d with a broken file", res.status)
	}
	if res := g.send(t, "GET", "/orders", ""); res.status != 401 {
		t.Errorf("/orders without a token: %d with a broken file", res.status)
	}
	if err := os.WriteFile(p.definitions(), before, 0o644); err != nil {
		t.Fatal(err)
	}
}

func testNewAddress(t *testing.T, p *project, g gateway, token string) {
	const squatter = projectName + "-squatter"
	address := func() string {
		return p.inspect(t, "orders").NetworkSettings.Networks[projectName+"_gateway"].IPAddress
	}
	before := address()
	p.run(t, "stop", "orders")
	// Another container takes the address while it is free.
	p.engine.run(t, "run", "--detach", "--rm", "--name", squatter, "--network", projectName+"_gateway",
		"gatepost-demo-shop", "-users=:8080")
	defer p.engine.run(t, "rm", "--force", squatter)
	p.run(t, "up", "--detach", "--wait", "orders")
	if after := address(); after == before {
		t.Fatalf("orders is on %s again: the test needs another address", after)
	}
	g.until(t, 200, "GET", "/orders", "Authorization: "+token)
}

func testTokenOutlives(t *testing.T, p *project, g gateway, token string) {
	for _, service := range []string{"redis", "gatepost"} {
		p.run(t, "restart", service)
		p.run(t, "up", "--detach", "--wait")
		g.until(t, 200, "GET", "/orders", "Authorization: "+token)
		if res := g.send(t, "GET", "/orders", ""); res.status != 401 {
			t.Errorf("without a token: %d after a restart of %s", res.status, service)
		}
	}
}

func testLogs(t *testing.T, p *project, token string) {
	logs := p.run(t, "logs", "--no-color")
	for service := range networks {
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
	for service := range networks {
		// 137 is a SIGKILL after the stop timeout.
		if code := p.inspect(t, service).State.ExitCode; code != 0 {
			t.Errorf("%s ended with %d", service, code)
		}
	}
}

// gateway is the published port.
type gateway struct{ url string }

type answer struct {
	status int
	header http.Header
	body   string // without surrounding spaces
}

// send sends one request over a new connection. A header is "Name: value".
func (g gateway) send(t *testing.T, method, path, body string, header ...string) answer {
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
	client := http.Client{Timeout: envoytest.Deadline}
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, strings.TrimSpace(string(content))}, err
}

// until repeats a request until it has the wanted status.
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
	res := g.send(t, "POST", "/token", alice)
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

// eventually polls a condition. After the timeout it calls lastWords and ends the test.
func eventually(t *testing.T, what string, condition func() bool, lastWords ...func()) {
	t.Helper()
	for deadline := time.Now().Add(envoytest.Deadline); !condition(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, say := range lastWords {
				say()
			}
			t.Fatalf("%s: waited in vain", what)
		}
	}
}
