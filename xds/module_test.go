package xds

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"gatepost/authz"
	"gatepost/envoy/envoytest"
	"gatepost/envoy/module/moduletest"
	"gatepost/testrun"
	"gatepost/tokens"
)

// deciding is a gateway whose Envoy has the module, and whose sidecar decides as the real one does, about tokens in
// memory.
type deciding struct {
	*gateway
	envoy  *envoytest.Envoy
	module *moduletest.Module

	mu   sync.Mutex
	live map[tokens.Hash]*tokens.Session
}

// startDeciding starts one. Its Envoy receives the resources as alter leaves them.
func startDeciding(t testing.TB, text string, workers int, alter ...func([]proto.Message)) *deciding {
	t.Helper()
	testrun.Plain(t)
	envoytest.Require(t)
	g := &gateway{checker: startChecker(t), t: t, addr: envoytest.Addr(t),
		tokens: envoytest.Upstream(t), secured: envoytest.Upstream(t), public: envoytest.Upstream(t)}
	d := &deciding{gateway: g, module: moduletest.Start(t), live: map[tokens.Hash]*tokens.Session{}}
	server, err := authz.New(authz.Config{Sessions: tokens.LookupFunc(d.lookup), Decisions: d.module})
	if err != nil {
		t.Fatal(err)
	}
	g.answers(func(a *authv3.AttributeContext) *authv3.CheckResponse {
		r, err := server.Check(context.Background(), &authv3.CheckRequest{Attributes: a})
		if err != nil {
			t.Error(err)
		}
		return r
	})
	options := testOptions
	options.Module = Module{Library: d.module.Library, Table: d.module.TablePath}
	text = strings.NewReplacer("LISTEN", g.addr, "SECURED", g.secured.URL(), "PUBLIC", g.public.URL()).Replace(text)
	resources := messages(buildWith(t, text, options))
	for _, change := range alter {
		change(resources)
	}
	d.envoy = envoytest.Start(t, envoytest.Options{
		GRPC: g.checker.addr, HTTP: g.tokens.Addr(), Resources: resources, Listen: []string{g.addr}, Concurrency: workers,
		AccessLog: &g.log,
	})
	return d
}

func (d *deciding) lookup(_ context.Context, h tokens.Hash) (*tokens.Session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.live[h]; s != nil {
		return s, nil
	}
	return nil, tokens.ErrUnknown
}

// login returns the token of a new session.
func (d *deciding) login(user string, lifetime time.Duration) string {
	d.t.Helper()
	token, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		d.t.Fatal(err)
	}
	ends := time.Now().Add(lifetime)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.live[token.Hash()] = &tokens.Session{Hash: token.Hash(), ID: uuid.NewString(), User: user, Expires: ends, Ends: ends}
	return token.Reveal()
}

// get sends a request that must be let pass, and says whether the module did so.
func (d *deciding) get(path string, headers ...string) bool {
	d.t.Helper()
	before, hits := len(d.asked()), d.hits()
	if got := d.do("GET", path, headers...); got.Status != 200 {
		d.t.Fatalf("%s %q: %d %s", path, headers, got.Status, got.Body)
	}
	asked, hit := len(d.asked())-before, d.hits()-hits
	if asked+hit != 1 {
		d.t.Fatalf("%s %q: %d questions and %d hits, want one of them", path, headers, asked, hit)
	}
	return hit == 1
}

// hits is how many requests passed ext_authz without being asked about, by Envoy's own account.
func (d *deciding) hits() int { return d.envoy.Stat("http.gatepost.ext_authz.disabled") }

const decidingShop = `
listen: LISTEN
tokens: {authenticator: {url: "http://users.example/authenticate"}}
services:
  - {name: orders, path: /orders, upstreams: ["SECURED"]}
  - {name: parts, path: /parts, upstreams: ["SECURED"]}
  - {name: kept, path: /kept, forward_token: true, upstreams: ["SECURED"]}
  - {name: items, path: /items, authenticate: false, upstreams: ["PUBLIC"]}
  - {name: live, path: /live, websocket: true, upstreams: ["SECURED"]}
`

var cookieShop = strings.Replace(decidingShop, "tokens: {", "tokens: {cookie: __Host-s, subprotocol: gatepost.bearer, ", 1) + "origins: [\"https://shop.example\"]\n"

var (
	requestID = regexp.MustCompile(`(?m)^x-request-id: [0-9a-f-]{36}\r$`)
	expected  = regexp.MustCompile(`(?m)^x-envoy-expected-rq-timeout-ms: \d+\r$`)
)

// wire is what came to an upstream, byte by byte, since the last time, but for what differs with each request.
func wire(r *envoytest.Recorder) string {
	raw := r.Raw()
	r.Reset()
	return expected.ReplaceAllString(requestID.ReplaceAllString(raw, "x-request-id: one\r"), "")
}

// TestUpstreamReceivesTheSameForAHitAndForAMiss: byte by byte, whatever the client says of itself.
func TestUpstreamReceivesTheSameForAHitAndForAMiss(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, decidingShop, 1)
	bearer := "authorization: Bearer " + d.login("ada", time.Hour)
	for name, headers := range map[string][]string{
		"plain":                      nil,
		"an identity of its own":     {"x-user-id: mallory"},
		"two":                        {"x-user-id: mallory", "X-User-Id: root"},
		"nominated for removal":      {"x-user-id: mallory", "connection: x-user-id"}, // beside close
		"a bound of its own":         {"x-envoy-upstream-stream-duration-ms: 1"},
		"what other gateways say":    {"x-forwarded-user: root", "x-auth-request-user: root", "x-real-ip: 10.0.0.1"},
		"a cookie and an origin too": {"cookie: a=b", "origin: https://shop.example"},
		"a body of nothing":          {"content-length: 0"},
	} {
		for _, path := range []string{"/orders/5?x=1", "/kept/5", "/live/5"} {
			d.module.Table.Reset(0)
			d.secured.Reset()
			if d.get(path, append(slices.Clone(headers), bearer)...) {
				t.Fatalf("%s %s: the first request is a hit", name, path)
			}
			miss := wire(d.secured)
			envoytest.Eventually(t, name+" "+path+": a table in force", func() bool { return d.get(path, append(slices.Clone(headers), bearer)...) })
			d.secured.Reset()
			if !d.get(path, append(slices.Clone(headers), bearer)...) {
				t.Fatalf("%s %s: the next request is no hit", name, path)
			}
			if hit := wire(d.secured); hit != miss || !strings.Contains(hit, "x-user-id: ada\r") || strings.Contains(hit, scopeHeader) {
				t.Errorf("%s %s: the upstream gets of a hit\n%s\nand of a miss\n%s", name, path, hit, miss)
			}
		}
	}
}

// TestAnswerIsTheSameForAHitAndForAMiss: to a page of another origin too.
func TestAnswerIsTheSameForAHitAndForAMiss(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, cookieShop, 1)
	bearer := "authorization: Bearer " + d.login("ada", time.Hour)
	headers := []string{bearer, "origin: https://shop.example"}
	miss := d.do("GET", "/orders/5", headers...)
	hit := d.do("GET", "/orders/5", headers...)
	if len(d.asked()) != 1 || d.hits() != 1 {
		t.Fatalf("asked %d times, %d hits", len(d.asked()), d.hits())
	}
	for _, r := range []*envoytest.Response{&hit, &miss} {
		for _, name := range []string{"date", "x-request-id"} {
			delete(r.Header, http.CanonicalHeaderKey(name))
			delete(r.Header, name)
		}
	}
	if fmt.Sprint(hit.Header) != fmt.Sprint(miss.Header) || hit.Status != miss.Status {
		t.Errorf("of a hit %d %v\nof a miss %d %v", hit.Status, hit.Header, miss.Status, miss.Header)
	}
}

// TestTheModuleStripsInPlaceOfTheFilter: each response varies by the origin once, and no upstream receives the header
// of scopes, if the module is on the route, and if the strip filter is: at other letters of a path, with response
// headers of a service, and for a denial.
func TestTheModuleStripsInPlaceOfTheFilter(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, decidingShop+`  - {name: marked, path: /marked, response_headers: {set: {x-shop: one}}, upstreams: ["SECURED"]}`+"\n", 1)
	bearer := "authorization: Bearer " + d.login("ada", time.Hour)
	options := testOptions
	options.Module = Module{Library: "/l.so", Table: "/t"}
	shop := strings.NewReplacer("LISTEN", "127.0.0.1:1", "SECURED", "http://a", "PUBLIC", "http://b").Replace(decidingShop)
	if !slices.ContainsFunc(allRoutes(buildWith(t, shop, options)), func(r *routev3.Route) bool {
		return r.GetTypedPerFilterConfig()[filterStrip].MessageIs((*routev3.FilterConfig)(nil))
	}) {
		t.Error("no route disables the strip filter")
	}
	for path, headers := range map[string][]string{
		"/orders/5": {bearer}, "/ORDERS/5": {bearer}, "/marked/5": {bearer}, "/items/5": nil, "/orders/6": nil, "/live/5": {bearer},
	} {
		for range 2 {
			d.secured.Reset()
			got := d.do("GET", path, headers...)
			if vary := got.Header.Values("vary"); fmt.Sprint(vary) != "[origin]" {
				t.Errorf("%s: %d, Vary is %q", path, got.Status, vary)
			}
			if strings.Contains(d.secured.Raw(), scopeHeader) {
				t.Errorf("%s: the upstream receives %s", path, scopeHeader)
			}
		}
	}
}

// TestEveryInputCounts: a request that differs in one header, or goes to another service, is asked about.
func TestEveryInputCounts(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, cookieShop, 1)
	token := d.login("ada", time.Hour)
	base := map[string]string{"authorization": "Bearer " + token, "origin": "https://shop.example", "cookie": "a=1", "sec-websocket-protocol": "chat"}
	send := func(path string, change map[string]string) bool {
		all := maps.Clone(base)
		maps.Copy(all, change)
		var headers []string
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if all[name] != "" {
				headers = append(headers, name+": "+all[name])
			}
		}
		return d.get(path, headers...)
	}
	send("/orders/5", nil)
	if !send("/orders/6?other=path", nil) {
		t.Error("the same request for another path of the service is no hit")
	}
	for _, change := range []map[string]string{
		{"authorization": token}, {"authorization": "bearer " + token}, {"cookie": "a=2"}, {"cookie": ""},
		{"sec-websocket-protocol": "chat2"}, {"sec-websocket-protocol": ""}, {"cookie": "", "sec-websocket-protocol": "a=1"},
	} {
		if send("/orders/5", change) {
			t.Errorf("%v is a hit", change)
		}
	}
	if send("/parts/5", nil) || send("/kept/5", nil) {
		t.Error("a decision of one service is used for another")
	}
	if got := d.do("GET", "/orders/5", "authorization: Bearer "+token, "origin: https://evil.example", "cookie: a=1", "sec-websocket-protocol: chat"); got.Status != 401 {
		t.Errorf("another origin: %d", got.Status)
	}
	if got := d.do("GET", "/orders/5", "authorization: Bearer "+token, "authorization: Bearer "+token, "origin: https://shop.example", "cookie: a=1", "sec-websocket-protocol: chat"); got.Status != 401 {
		t.Errorf("the token twice: %d", got.Status)
	}
}

// TestWhatTheModuleDoesNotDecide: public services, requests without a token, denials, tokens elsewhere than in
// Authorization.
func TestWhatTheModuleDoesNotDecide(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, cookieShop, 1)
	token, origin := d.login("ada", time.Hour), "origin: https://shop.example"
	for name, headers := range map[string][]string{
		"in a cookie":        {"cookie: __Host-s=" + token, origin},
		"in both":            {"cookie: __Host-s=" + token, "authorization: " + token, origin},
		"in the subprotocol": {"sec-websocket-protocol: gatepost.bearer." + token, origin},
	} {
		for range 3 {
			if d.get("/orders/5", headers...) {
				t.Errorf("%s: a hit", name)
			}
		}
	}
	for range 3 {
		d.do("GET", "/items/5", "authorization: "+token, origin)
		d.do("GET", "/orders/5", "authorization: nobody", origin)
		d.do("GET", "/orders/5", origin)
	}
	if d.hits() != 0 {
		t.Errorf("%d hits", d.hits())
	}
}

// TestClientCannotMarkItsRequest: by no header that names what the filters say to each other.
func TestClientCannotMarkItsRequest(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, decidingShop, 1)
	for _, h := range []string{"gatepost.module: hit", "hit: true", "x-gatepost-module: true", "x-envoy-dynamic-metadata: gatepost.module.hit=true"} {
		if got := d.do("GET", "/orders/5", h, "authorization: nobody"); got.Status != 401 {
			t.Errorf("%s: %d", h, got.Status)
		}
	}
	if d.hits() != 0 || len(d.secured.Requests()) != 0 {
		t.Error("a request passed")
	}
}

// TestStreamEndsWithItsToken: also one that the module let pass.
func TestStreamEndsWithItsToken(t *testing.T) {
	long(t)
	t.Parallel()
	d := startDeciding(t, decidingShop, 1)
	hung := make(chan bool)
	d.secured.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hung" {
			<-hung
		}
	})
	defer close(hung)
	var bearer string
	for lifetime := 10 * time.Second; ; lifetime *= 2 { // until it is long enough for this machine
		issued := time.Now()
		bearer = "authorization: " + d.login("ada", lifetime)
		before := d.do("GET", "/orders/5", bearer)
		inTime := time.Since(issued) < lifetime/2
		got := d.do("GET", "/orders/hung", bearer)
		if before.Status == 200 && got.Status == 504 && strings.Contains(got.Body, "token") && d.hits() == 1 {
			break
		} else if inTime {
			t.Fatalf("an upstream that never answers: %d %s, after %d, with %d hits", got.Status, got.Body, before.Status, d.hits())
		}
	}
	if got := d.do("GET", "/orders/5", bearer); got.Status != 401 {
		t.Errorf("after the token has expired: %d", got.Status)
	}
}

// TestRequestThatItsResponseOvertakesEnds: an upstream begins its response, and the client never ends its request. Then
// Envoy waits for neither with a timeout, and the token lives longer than any request.
func TestRequestThatItsResponseOvertakesEnds(t *testing.T) {
	long(t)
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_, _ = c.EnableFullDuplex(), c.Flush()
		_, _ = io.Copy(io.Discard, r.Body) // ends with the stream
	}))
	defer upstream.Close()
	text := strings.NewReplacer("SECURED", upstream.URL, "PUBLIC", upstream.URL).Replace(decidingShop)
	d := startDeciding(t, text, 1, func(resources []proto.Message) {
		for _, r := range resources {
			c, _ := r.(*clusterv3.Cluster)
			for _, packed := range c.GetTypedExtensionProtocolOptions() {
				options := new(upstreamhttpv3.HttpProtocolOptions)
				if err := packed.UnmarshalTo(options); err != nil {
					t.Fatal(err)
				}
				if longest := options.GetCommonHttpProtocolOptions().GetMaxStreamDuration(); longest != nil {
					longest.Seconds = 5 // instead of minutes
				}
				if err := packed.MarshalFrom(options); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	token := d.login("ada", 24*time.Hour)
	for _, path := range []string{"/items/5", "/orders/5"} {
		c, err := net.Dial("tcp", d.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(envoytest.Deadline)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: shop.example\r\nAuthorization: %s\r\nContent-Length: 9\r\n\r\nhalf", path, token)
		if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 ") {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}

// TestTimeoutOfAServiceWithWebSockets: its other requests end with its timeout, also if a token is needed.
func TestTimeoutOfAServiceWithWebSockets(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, strings.ReplaceAll(decidingShop, "path: /live,", "path: /live, timeout: 100ms,"), 1)
	hung := make(chan bool)
	d.secured.SetHandler(func(http.ResponseWriter, *http.Request) { <-hung })
	defer close(hung)
	if got := d.do("GET", "/live/5", "authorization: "+d.login("ada", time.Hour)); got.Status != 504 {
		t.Errorf("an upstream that never answers: %d %s", got.Status, got.Body)
	}
}

// TestLostTableIsAsked: whatever is wrong with the table, Gatepost decides.
func TestLostTableIsAsked(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, decidingShop, 1)
	bearer := "authorization: " + d.login("ada", time.Hour)
	d.get("/orders/5", bearer)
	if !d.get("/orders/5", bearer) {
		t.Fatal("no hit")
	}
	if err := d.module.Table.Close(); err != nil { // as a gateway that has ended
		t.Fatal(err)
	}
	for range 3 {
		if d.get("/orders/5", bearer) {
			t.Error("a hit without a gateway")
		}
	}
}

// TestHitsAreCountedByService: of all its routes.
func TestHitsAreCountedByService(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, decidingShop, 1)
	bearer := "authorization: " + d.login("ada", time.Hour)
	for _, path := range []string{"/orders/5", "/parts/5"} {
		d.get(path, bearer)
	}
	for range 5 {
		d.get("/orders", bearer)
		d.get("/orders/5", bearer)
	}
	d.get("/parts/5", bearer)
	d.do("GET", "/orders/5", "authorization: nobody")
	hits := d.module.Table.Hits()
	if orders, parts, items := hits.Of("orders"), hits.Of("parts"), hits.Of("items"); orders != 10 || parts != 1 || items != 0 {
		t.Errorf("%d, %d and %d hits are counted, want 10, 1 and 0", orders, parts, items)
	}
}

// TestHitIsNoLargerThanACheckAllows: near the limits of the headers, where ext_authz counts what Gatepost has added,
// a request is answered the same once its decision is in the table.
func TestHitIsNoLargerThanACheckAllows(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, decidingShop, 1)
	hits, refused := 0, 0
	try := func(what string, more ...string) {
		t.Helper()
		lines := append(more, "authorization: "+d.login("ada", time.Hour))
		miss := d.do("GET", "/orders/5", lines...)
		before := d.hits()
		hit := d.do("GET", "/orders/5", lines...)
		hits += d.hits() - before
		if miss.Status == 431 {
			refused++
		}
		if miss.Status != hit.Status || miss.Status != 200 && miss.Status != 431 {
			t.Errorf("%s: %d, then %d", what, miss.Status, hit.Status)
		}
	}
	for n := 50; n <= maxHeaders; n++ {
		var many []string
		for i := range n {
			many = append(many, fmt.Sprintf("x-%d: y", i))
		}
		try(fmt.Sprintf("%d more headers", n), many...)
	}
	for size := 15_700; size <= maxHeadersKiB<<10; size += 50 {
		try(fmt.Sprintf("a header of %d bytes", size), "x-large: "+strings.Repeat("x", size))
	}
	if hits == 0 || refused == 0 {
		t.Errorf("%d hits and %d refused: nothing was tried", hits, refused)
	}
}

// TestWorkersShareTheTable: over HTTP/2 and HTTP/1.1, with bodies, each with the right identity.
func TestWorkersShareTheTable(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, decidingShop, 2)
	users := map[string]string{}
	for i := range 4 {
		users[d.login(fmt.Sprint("user-", i), time.Hour)] = fmt.Sprint("user-", i)
	}
	client := envoytest.H2Client(t)
	const rounds = 30
	var all sync.WaitGroup
	for token, user := range users {
		for over, do := range []func(*http.Request) (*http.Response, error){client.Do, http.DefaultClient.Do} {
			all.Go(func() {
				for range rounds {
					req, err := http.NewRequest("POST", "http://"+d.addr+"/orders/"+user, strings.NewReader("body"))
					if err != nil {
						t.Error(err)
						return
					}
					req.Header = http.Header{"Authorization": {"Bearer " + token}, "X-User-Id": {"mallory", "root"}}
					res, err := do(req)
					if err != nil {
						t.Error(over, err)
						return
					}
					res.Body.Close()
					if res.StatusCode != 200 {
						t.Errorf("answered %s", res.Status)
					}
				}
			})
		}
	}
	all.Wait()
	http.DefaultClient.CloseIdleConnections()
	for _, r := range d.secured.Requests() {
		if want := strings.TrimPrefix(r.Path, "/"); !slices.Equal(r.Header["X-User-Id"], []string{want}) || r.Header["Authorization"] != nil || r.Body != "body" {
			t.Errorf("the upstream got %+v", r)
		}
	}
	requests := 2 * rounds * len(users)
	if asked, hits := len(d.asked()), d.hits(); asked+hits != requests || asked > 4*len(users) {
		t.Errorf("asked %d times and %d hits in %d requests", asked, hits, requests)
	}
}

// TestIDOfARuleIsAHashOfIt: a change of anything that Check receives of a route is another rule, so no decision by the
// old one is found; and a change of anything else keeps what is in the table.
func TestIDOfARuleIsAHashOfIt(t *testing.T) {
	const head, orders = "tokens: {path: /token}\nservices:\n", "  - {name: orders, path: /orders, upstreams: [\"http://127.0.0.1:1\"]}\n"
	before := ruleIDs(t, head+orders, true)["orders"]
	if len(before) != 32 {
		t.Fatalf("the rule's id is %q", before)
	}
	service := func(more string) string { return head + strings.Replace(orders, "}", ", "+more+"}", 1) }
	for name, text := range map[string]string{
		"scopes":                 service(`scopes: ["a"]`),
		"other scopes":           service(`scopes: ["b"]`),
		"the token is forwarded": service("forward_token: true"),
		"timeout":                service("timeout: 16s"),
		"websocket":              service("websocket: true"),
		"name":                   strings.Replace(head+orders, "name: orders", "name: others", 1),
		"origins":                head + orders + `origins: ["https://shop.example"]`,
		"other origins":          head + orders + `origins: ["https://shop.example", "https://b.example"]`,
		"user header":            head + orders + "identity: {user_header: x-customer}",
		"cookie":                 strings.Replace(head, "/token", "/token, cookie: __Host-s", 1) + orders + `origins: ["https://shop.example"]`,
		"subprotocol":            strings.Replace(head, "/token", "/token, subprotocol: gatepost.bearer", 1) + orders,
	} {
		for _, id := range ruleIDs(t, text, true) {
			if id == before {
				t.Errorf("%s: the rule has the same id", name)
			}
		}
	}
	for name, text := range map[string]string{
		"another upstream": head + strings.Replace(orders, ":1\"", ":2\"", 1),
		"another path":     strings.Replace(head+orders, "path: /orders", "path: /Sales", 1),
		"another service":  head + orders + "  - {name: more, path: /more, upstreams: [\"http://127.0.0.1:1\"]}\n",
	} {
		if got := ruleIDs(t, text, true)["orders"]; got != before {
			t.Errorf("%s: the rule has another id", name)
		}
	}
	if ids := ruleIDs(t, head+orders, false); ids["orders"] != "" {
		t.Errorf("without a module the rule has the id %v", ids)
	}
}

// ruleIDs are the ids of the rules on the routes, by service.
func ruleIDs(t testing.TB, text string, module bool) map[string]string {
	t.Helper()
	options := testOptions
	if module {
		options.Module = Module{Library: "/l.so", Table: "/t"}
	}
	ids := map[string]string{}
	for _, r := range allRoutes(buildWith(t, text, options)) {
		if extensions := ruleOf(t, r); extensions["authenticate"] == "true" {
			ids[extensions["service"]] = extensions["id"]
			if on := r.GetTypedPerFilterConfig()[filterModule] != nil; on != module && r.GetRoute().GetCluster() != blackhole {
				t.Errorf("the module is on %v on %s", on, r.GetName())
			}
		}
	}
	return ids
}

// TestEveryHeaderThatACheckReceivesIsAnInput: but for the request's id, which is for the log.
func TestEveryHeaderThatACheckReceivesIsAnInput(t *testing.T) {
	for _, more := range []string{"", "cookie: __Host-s", "subprotocol: gatepost.bearer", "cookie: __Host-s, subprotocol: gatepost.bearer"} {
		gw := parse(t, "origins: [\"https://shop.example\"]\ntokens: {"+more+"}\nservices: []")
		b := &builder{gw: gw}
		inputs := append(b.shared().ModuleInputs(), "authorization", "x-request-id")
		told := authz.CheckedHeaders(gw.Tokens.Cookie, gw.Tokens.Subprotocol)
		slices.Sort(inputs)
		slices.Sort(told)
		if !slices.Equal(inputs, told) {
			t.Errorf("%q: a Check receives %q, and the inputs are %q", more, told, inputs)
		}
	}
}

// TestRouteThatTheModuleCannotTake is asked about: one that was refused would take the whole scope with it.
func TestRouteThatTheModuleCannotTake(t *testing.T) {
	options := testOptions
	options.Module = Module{Library: "/l.so", Table: "/t"}
	b := &builder{gw: parse(t, "services: []"), opts: options}
	rule := authz.Rule{Service: "orders", Authenticate: true}
	if b.moduleOn(b.identify(rule), false) == nil {
		t.Error("the module is not enabled on an ordinary route")
	}
	if b.moduleOn(rule, false) != nil {
		t.Error("the module is enabled without the rule's id")
	}
	b.gw.Identity.UserHeader = "x-" + strings.Repeat("u", 200)
	if b.moduleOn(b.identify(authz.Rule{Service: "orders", Authenticate: true}), false) != nil {
		t.Error("the module is enabled with a longer header than it takes")
	}
}

// TestRouteThatDoesNotNameGatepostIsRefused: the filter's own service leads nowhere, so nobody decides.
func TestRouteThatDoesNotNameGatepostIsRefused(t *testing.T) {
	t.Parallel()
	nameless := 0
	d := startDeciding(t, decidingShop, 1, func(resources []proto.Message) {
		for _, r := range resources {
			scope, _ := r.(*routev3.ScopedRouteConfiguration)
			for _, route := range routesIn(scope) {
				rule := new(extauthzv3.ExtAuthzPerRoute)
				packed := route.GetTypedPerFilterConfig()[filterAuthz]
				if packed == nil || packed.UnmarshalTo(rule) != nil || rule.GetCheckSettings().GetGrpcService() == nil || route.GetName() != "orders" {
					continue
				}
				rule.GetCheckSettings().ServiceOverride = nil
				if err := packed.MarshalFrom(rule); err != nil {
					t.Error(err)
				}
				nameless++
			}
		}
	})
	if nameless == 0 {
		t.Fatal("no route names Gatepost")
	}
	token := "authorization: " + d.login("ada", time.Hour)
	for _, path := range []string{"/orders", "/ORDERS/5"} {
		if got := d.do("GET", path, token); got.Status != 503 {
			t.Errorf("%s: %d %s", path, got.Status, got.Body)
		}
	}
	if asked, raw := len(d.asked()), d.secured.Raw(); asked != 0 || raw != "" {
		t.Errorf("%d questions, and the upstream received %q", asked, raw)
	}
	if d.get("/parts", token) || !d.get("/parts", token) {
		t.Error("another service is not asked about once")
	}
}

// eachWay runs a test with the options of a gateway whose Envoy does by itself what the module does, and of one whose
// module has no table.
func eachWay(t *testing.T, test func(t *testing.T, options Options)) {
	t.Helper()
	t.Run("plain", func(t *testing.T) { test(t, testOptions) })
	t.Run("module", func(t *testing.T) {
		options := testOptions
		options.Module = Module{Library: moduletest.Compile(t, "library"), Table: "/nowhere"}
		test(t, options)
	})
}

// TestTheModuleStripsBeforeTheRoute: what reaches no upstream without the module does not with it.
func TestTheModuleStripsBeforeTheRoute(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, options Options) {
		methodOverridesAndNamedUsersReachNoUpstream(t, startGatewayWith(t, shop, options))
	})
}

// TestTheModuleAgreesWithTheListener: the limits of headers, the length of a path in the access log, the headers that
// are stripped early, and the names of what the module sets.
func TestTheModuleAgreesWithTheListener(t *testing.T) {
	t.Parallel()
	code, err := os.ReadFile("../envoy/module/module.c")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"MOST_HEADERS": maxHeaders, "MOST_HEADER_BYTES": maxHeadersKiB << 10, "LONGEST_PATH": longestPath} {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^#define %s %d( //|$)`, name, want)).Match(code) {
			t.Errorf("module.c does not define %s as %d", name, want)
		}
	}
	_, list, _ := strings.Cut(string(code), "refused[] = {")
	list, _, _ = strings.Cut(list, "}")
	var refused []string
	for _, match := range regexp.MustCompile(`"([^"]*)"`).FindAllStringSubmatch(list, -1) {
		refused = append(refused, match[1])
	}
	wantRefused := slices.Clone(strippedHeaders)
	for _, prefix := range append(slices.Clone(strippedPrefixes), "x-forwarded-") {
		wantRefused = append(wantRefused, prefix+" ")
	}
	slices.Sort(refused)
	slices.Sort(wantRefused)
	if !slices.Equal(refused, wantRefused) {
		t.Errorf("module.c refuses %q, want %q", refused, wantRefused)
	}
	want := []string{
		"x-forwarded-for", "x-forwarded-proto", ":path", authz.HeaderStreamDuration, authz.MetadataNamespace, authz.MetadataHit, authz.MetadataHitSession, keptPath,
		scopeHeader, "vary", "origin",
	}
	var got []string
	for _, match := range regexp.MustCompile(`\bTEXT\("([^"]*)"\)`).FindAllSubmatch(code, -1) {
		got = append(got, string(match[1]))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the texts of module.c are %q, want %q", got, want)
	}
}

// TestProbe: an Envoy takes the module, and refuses a file that is none, by words that Refused knows.
func TestProbe(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	good := Module{Library: moduletest.Compile(t, "library"), Table: "/nowhere"}
	for name, m := range map[string]Module{
		"good": good, "absent": {Library: "/nowhere/libgatepost.so", Table: "/nowhere"},
		"no module": {Library: "/etc/passwd", Table: "/nowhere"}, "another library": {Library: "/lib/x86_64-linux-gnu/libc.so.6", Table: "/nowhere"},
		"no table's path": {Library: good.Library, Table: "relative"},
	} {
		b, err := m.Probe()
		if err != nil {
			t.Fatal(err)
		}
		verdict := envoytest.Validate(t, b)
		if refused := verdict != ""; refused == (name == "good") {
			t.Errorf("%s: %q", name, verdict)
		} else if refused && !m.Refused(&Rejection{Reason: verdict}) {
			t.Errorf("%s: %q is not known to be about the module", name, verdict)
		}
	}
	if good.Refused(&Rejection{Reason: "cannot bind '127.0.0.1:80': Address already in use"}) || (Module{}).Refused(&Rejection{Reason: "dynamic module"}) {
		t.Error("a rejection about something else is taken for one of the module")
	}
}

// ruleOf is what Check receives of a route; nil if it is not asked about.
func ruleOf(t testing.TB, r *routev3.Route) map[string]string {
	t.Helper()
	rule := new(extauthzv3.ExtAuthzPerRoute)
	if packed := r.GetTypedPerFilterConfig()[filterAuthz]; packed != nil && !packed.MessageIs(new(routev3.FilterConfig)) {
		if err := packed.UnmarshalTo(rule); err != nil {
			t.Fatal(err)
		}
	}
	return rule.GetCheckSettings().GetContextExtensions()
}
