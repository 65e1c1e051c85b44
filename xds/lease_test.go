package xds

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/envoy/envoytest"
	"gatepost/tokens"
)

// TestADecisionIsRememberedUntilItsLeaseEnds: to the millisecond, and no longer than a second whatever is said.
func TestADecisionIsRememberedUntilItsLeaseEnds(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	for _, c := range []struct {
		at  float64
		hit bool
	}{
		{0, false}, {0, true}, {500, true}, {899.9, true},
		{900, false}, {1799.9, true}, {1800, false}, {1800, true}, {5000, false},
	} {
		if hit := g.get("/orders/5", c.at, c.at, token); hit != c.hit {
			t.Errorf("after %v ms: hit %v, want %v", c.at, hit, c.hit)
		}
	}
	g.answers(granting(60_000, "ada"))
	for _, c := range []struct {
		at  float64
		hit bool
	}{{10_000, false}, {10_999.9, true}, {11_000, false}} {
		if hit := g.get("/orders/5", c.at, c.at, token); hit != c.hit {
			t.Errorf("lease of a minute, after %v ms: hit %v, want %v", c.at, hit, c.hit)
		}
	}
}

// TestALeaseIsCountedFromTheArrival: an upstream that takes its time does not make it longer, by either clock.
func TestALeaseIsCountedFromTheArrival(t *testing.T) {
	for clock, only := range map[string]func(at float64) (now, wall float64){
		"by the one that counts": func(at float64) (float64, float64) { return at, 0 },
		"by the wall clock":      func(at float64) (float64, float64) { return 0, at },
	} {
		t.Run(clock, func(t *testing.T) {
			g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
			arrived, goOn := make(chan bool), make(chan bool)
			g.secured.SetHandler(func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					arrived <- true
					<-goOn
				}
			})
			get := func(path string, at float64, headers ...string) bool {
				t.Helper()
				now, wall := only(at)
				return g.get(path, now, wall, headers...)
			}
			slow := func(at float64, meanwhile float64) {
				t.Helper()
				now, wall := only(at)
				var all sync.WaitGroup
				all.Go(func() {
					g.do("GET", "/orders/slow", token, fmt.Sprintf("x-test-now: %f", noon+now), fmt.Sprintf("x-test-wall: %f", wallNoon+wall))
				})
				<-arrived
				get("/orders/other", meanwhile, otherToken) // time goes by
				goOn <- true
				all.Wait()
			}
			slow(0, 600)
			for _, c := range []struct {
				at  float64
				hit bool
			}{{600, true}, {899.9, true}, {900, false}} {
				if hit := get("/orders/5", c.at, token); hit != c.hit {
					t.Errorf("%v ms after the arrival: hit %v, want %v", c.at, hit, c.hit)
				}
			}
			slow(10_000, 10_950) // it ended before the upstream answered
			if get("/orders/5", 10_950, token) {
				t.Error("a lease that had ended before the answer came was used")
			}
			slow(20_000, 29_000)
			if get("/orders/5", 29_000, token) {
				t.Error("a lease that had ended long before the answer came was used")
			}
		})
	}
}

// TestTheClocksAreNotToBeFooled: a lease ends when either of the two says so.
func TestTheClocksAreNotToBeFooled(t *testing.T) {
	type at struct{ now, wall float64 }
	for name, c := range map[string]struct {
		second at
		hit    bool
	}{
		"both go on":                       {at{100, 100}, true},
		"the wall clock is set back":       {at{100, -1}, false},
		"it is set back by a day":          {at{100, -86_400_000}, false},
		"it is set back after a long time": {at{20_000, 10}, false}, // by less than went by: nothing is seen to go back
		"it is set forward":                {at{100, 900}, false},
		"the machine was held":             {at{0, 900}, false}, // the clock that counts stood still
		"the machine slept":                {at{900, 100}, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
			if g.get("/orders/5", 0, 0, token) {
				t.Fatal("a hit at once")
			}
			if hit := g.get("/orders/5", c.second.now, c.second.wall, token); hit != c.hit {
				t.Errorf("hit %v, want %v", hit, c.hit)
			}
		})
	}
	t.Run("nothing is left when it was set back", func(t *testing.T) {
		g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
		g.get("/orders/5", 0, 0, token)
		g.get("/orders/5", 1, 1, otherToken)
		g.get("/orders/5", 2, 0, "authorization: third")
		if g.get("/orders/5", 3, 3, token) || g.get("/orders/5", 4, 4, otherToken) {
			t.Error("a decision from before is used")
		}
	})
	t.Run("there is none to be read", func(t *testing.T) {
		g := startLeasing(t, leasingShop, leaseSetup{append: "function gatepost_clocks() return nil end"})
		g.get("/orders/5", 0, 0, token)
		if g.get("/orders/5", 0, 0, token) || g.asks() != nil {
			t.Error("there are leases without a clock")
		}
	})
}

// TestTheRealClocksRun: a lease ends by itself.
func TestTheRealClocksRun(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{})
	envoytest.Eventually(t, "a hit", func() bool { return g.get("/orders/5", 0, 0, token) })
	envoytest.Eventually(t, "no hit", func() bool { return !g.get("/orders/5", 0, 0, token) })
}

// TestTheUpstreamSeesTheSameOfAHitAndOfAMiss: byte by byte, whatever the client says of itself.
func TestTheUpstreamSeesTheSameOfAHitAndOfAMiss(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	spoofed := []string{
		"X-User-Id: mallory", "x-user-id: root", "X-USER-ID:", "x-envoy-auth-failure-mode-allowed: true", "x-forwarded-host: evil.example",
		"x-real-ip: 1.2.3.4", "cookie: a=b", "x-mine: 1", "gatepost.lease: hit", "x-envoy-upstream-stream-duration-ms: 1",
	}
	for _, user := range []string{"ada", "Ada Lovelace", "Ann Müller", "a,b;c=\"d\"", strings.Repeat("x", 256)} {
		g.answers(granting(900, user))
		for _, path := range []string{"/orders/5?x=1", "/kept/5"} {
			one := "authorization: Bearer " + fmt.Sprintf("%x", user+path)[:min(60, 2*len(user+path))]
			g.secured.Reset()
			if g.get(path, 0, 0, append(spoofed, one)...) {
				t.Fatal("a hit at once")
			}
			miss := wire(g.secured)
			if !g.get(path, 1, 1, append(spoofed, one)...) {
				t.Fatal("no hit")
			}
			hit := wire(g.secured)
			if hit != miss {
				t.Errorf("%s, %q: the upstream got of a hit\n%s\nand of a miss\n%s", path, user, hit, miss)
			}
			if strings.Count(strings.ToLower(hit), "x-user-id: ") != 1 || !strings.Contains(hit, "\r\nx-user-id: "+user+"\r\n") {
				t.Errorf("%s, %q: the upstream got\n%s", path, user, hit)
			}
			if strings.Contains(hit, "\r\nauthorization: ") != (path == "/kept/5") {
				t.Errorf("%s: the upstream got\n%s", path, hit)
			}
		}
	}
}

// TestTheAnswerIsTheSameOfAHitAndOfAMiss: to a page of another origin too.
func TestTheAnswerIsTheSameOfAHitAndOfAMiss(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	g.secured.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Date"] = nil
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.WriteHeader(http.StatusTeapot)
	})
	miss := g.do("GET", "/orders/5", token, fromShop)
	hit := g.do("GET", "/orders/5", token, fromShop)
	for _, a := range []envoytest.Response{miss, hit} {
		a.Header.Del("Date")
	}
	if g.hits() != 1 || fmt.Sprint(hit) != fmt.Sprint(miss) {
		t.Errorf("%d hits; answered\n%v\nand to the miss\n%v", g.hits(), hit, miss)
	}
	if got := hit.Header.Values("Access-Control-Allow-Origin"); !slices.Equal(got, []string{"https://shop.example"}) {
		t.Errorf("access-control-allow-origin: %q", got)
	}
}

// TestTheKeyHoldsEveryInput: a request that differs in one thing is asked about by itself.
func TestTheKeyHoldsEveryInput(t *testing.T) {
	all := strings.NewReplacer("lease: 1s", "lease: 1s, cookie: __Host-session, subprotocol: gatepost.bearer",
		"services:", `origins: ["https://shop.example", "https://a.example"]`+"\nservices:").Replace(leasingShop)
	g := startLeasing(t, all, leaseSetup{append: clocksOfTheTest})
	base := []string{token, fromShop, "cookie: a=1", "sec-websocket-protocol: chat"}
	with := func(i int, header ...string) []string { return slices.Concat(base[:i], header, base[i+1:]) }
	if g.get("/orders/5", 0, 0, base...) || !g.get("/orders/5", 0, 0, base...) {
		t.Fatal("want a miss and a hit")
	}
	for name, c := range map[string]struct {
		path    string
		headers []string
	}{
		"another service":                 {"/parts/5", base},
		"a service with another rule":     {"/kept/5", base},
		"another token":                   {"/orders/5", with(0, otherToken)},
		"the token in another form":       {"/orders/5", with(0, strings.Replace(token, "Bearer ", "", 1))},
		"another case of letters":         {"/orders/5", with(0, strings.Replace(token, "Bearer", "bearer", 1))},
		"the token twice":                 {"/orders/5", with(0, token, token)},
		"the token and another":           {"/orders/5", with(0, token, otherToken)},
		"another listed origin":           {"/orders/5", with(1, "origin: https://a.example")},
		"no origin":                       {"/orders/5", with(1)},
		"the origin twice":                {"/orders/5", with(1, fromShop, fromShop)},
		"another cookie":                  {"/orders/5", with(2, "cookie: a=1; __Host-session=x")},
		"no cookie":                       {"/orders/5", with(2)},
		"another subprotocol":             {"/orders/5", with(3, "sec-websocket-protocol: gatepost.bearer")},
		"two headers that have changed":   {"/orders/5", []string{token, "origin: a=1", "cookie: https://shop.example", base[3]}},
		"one that runs into the next one": {"/orders/5", []string{token + "\thttps://shop.example", "cookie: a=1", base[3]}},
	} {
		if g.get(c.path, 1, 1, c.headers...) {
			t.Errorf("%s: a hit", name)
		}
	}
	for _, path := range []string{"/orders", "/orders/", "/orders/A?x", "//orders/7"} { // none of these is an input
		if !g.get(path, 2, 2, append(base, "x-mine: 2", "user-agent: other")...) {
			t.Errorf("%s: no hit", path)
		}
	}
	// Envoy turns the filter on by the route that it finds first, and to the letter it finds none.
	if g.get("/ORDERS/6", 2, 2, base...) {
		t.Error("a service that is spelled in another way: a hit")
	}
	// What decides nothing is none: else a client with one token could fill the table.
	plain := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	plain.get("/orders/5", 0, 0, token, fromShop)
	if !plain.get("/orders/5", 1, 1, token, "origin: https://other.example", "cookie: x=y") {
		t.Error("an origin counts where none are listed")
	}
}

// TestNothingButALeaseIsRemembered: no denial, no answer without a lease, none that did not come.
func TestNothingButALeaseIsRemembered(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	for name, reply := range map[string]func(*authv3.AttributeContext) *authv3.CheckResponse{
		"401":       deny(typev3.StatusCode_Unauthorized, `"no"`),
		"403":       deny(typev3.StatusCode_Forbidden, `"no"`),
		"503":       deny(typev3.StatusCode_ServiceUnavailable, `"no"`),
		"no answer": noAnswer,
	} {
		g.answers(reply)
		for range 3 {
			if got := g.do("GET", "/orders/5", token); got.Status < 400 {
				t.Errorf("%s: %d", name, got.Status)
			}
		}
		if n := len(g.asked()); n != 3 || g.hits() != 0 {
			t.Errorf("%s: asked %d times and %d hits, want 3 and 0", name, n, g.hits())
		}
	}
	g.answers(allow)
	for range 3 {
		g.get("/orders/5", 0, 0, token)
	}
	if g.hits() != 0 {
		t.Error("an answer without a lease is remembered")
	}
	g.answers(granting(900, strings.Repeat("x", 257)))
	g.get("/orders/5", 0, 0, token)
	if g.get("/orders/5", 0, 0, token) {
		t.Error("an id that is longer than what is kept is remembered")
	}
	// A hit does not save a token that is refused under another rule.
	g.answers(granting(900, "ada"))
	g.get("/orders/5", 0, 0, token)
	g.answers(deny(typev3.StatusCode_Forbidden, `"no"`))
	if got := g.do("GET", "/parts/5", token); got.Status != 403 {
		t.Errorf("another service: %d, want 403", got.Status)
	}
	if !g.get("/orders/5", 1, 1, token) {
		t.Error("the decision is gone")
	}
}

// TestWhatIsNotSecuredIsNotRemembered: and no credentials are none.
func TestWhatIsNotSecuredIsNotRemembered(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	for _, path := range []string{"/items/5", "/nobody", "/token/sessions"} {
		for range 2 {
			g.do("GET", path, token)
		}
		if n := len(g.asked()); n != 0 || g.hits() != 0 {
			t.Errorf("%s: asked %d times, %d hits", path, n, g.hits())
		}
	}
	for _, c := range [][]string{{"/orders/5", "x-mine: 1"}, {"/orders/5", "authorization:"}, {"/orders/5", "authorization: " + strings.Repeat("x", 1025)}} {
		for range 3 {
			if g.get(c[0], 0, 0, c[1]) || g.asks() != nil {
				t.Errorf("%.60q: remembered, or asked to be", c)
			}
		}
	}
}

// TestAClientCannotMarkItsRequest: by no header that names what the filters say to each other.
func TestAClientCannotMarkItsRequest(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	g.answers(deny(typev3.StatusCode_Unauthorized, `"no"`))
	for _, header := range []string{
		"gatepost.lease: hit", "gatepost.lease: {\"hit\":true}", "hit: true", "lease: 1000", "x-gatepost-lease: hit",
		"x-envoy-dynamic-metadata: gatepost.lease.hit=true", "x-envoy-metadata: {\"gatepost.lease\":{\"hit\":true}}", "metadata: gatepost.lease",
	} {
		for _, authorization := range []string{token, "authorization: \"hit\":true", "x-user-id: root"} {
			if got := g.do("GET", "/orders/5", header, authorization); got.Status != 401 {
				t.Errorf("%s, %s: %d", header, authorization, got.Status)
			}
		}
	}
	if n := g.hits(); n != 0 {
		t.Errorf("%d hits", n)
	}
	if got := reached(g.secured); got != "" {
		t.Errorf("the upstream got %q", got)
	}
}

// TestTheTableIsBounded: what does not fit is asked about, and there is room again when the generation is over.
func TestTheTableIsBounded(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest, replace: []string{"local MOST = 8192", "local MOST = 4"}})
	one := func(i int) string { return fmt.Sprintf("authorization: token-%d", i) }
	for i := range 10 {
		g.get("/orders/5", 0, 0, one(i))
	}
	for i := range 10 {
		if hit := g.get("/orders/5", 1, 1, one(i)); hit != (i < 4) {
			t.Errorf("token %d of 10, where 4 fit: hit %v", i, hit)
		}
	}
	if g.get("/orders/5", 900, 900, one(0)) || !g.get("/orders/5", 901, 901, one(0)) {
		t.Error("what is remembered anew takes a second place")
	}
	for i := range 3 { // and it takes none of the others' in the next generation
		at := 2000 + 300*float64(i)
		g.answers(granting(250, "ada"))
		g.get("/orders/5", at, at, one(0))
		g.get("/orders/5", at+250, at+250, one(0))
	}
	g.get("/orders/5", 2900, 2900, one(8))
	if !g.get("/orders/5", 2901, 2901, one(8)) {
		t.Error("one decision has taken every place")
	}
	g.answers(granting(900, "ada"))
	g.get("/orders/5", 4000, 4000, one(9))
	if !g.get("/orders/5", 4001, 4001, one(9)) {
		t.Error("there is no room in the next generation")
	}
}

// TestQuestionsThatAreNotAnsweredAreForgotten: clients that go away leave nothing behind.
func TestQuestionsThatAreNotAnsweredAreForgotten(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest, replace: []string{"local MOST = 8192", "local MOST = 4"}})
	goOn := make(chan bool)
	g.secured.SetHandler(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/never" {
			<-goOn
		}
	})
	defer close(goOn)
	for i := range 6 { // they go away before they are answered
		g.abandon("/orders/never", fmt.Sprintf("token-%d", i))
	}
	if g.get("/orders/5", 0, 0, token) || g.asks() != nil {
		t.Error("more is asked for than there is room for")
	}
	g.get("/orders/5", 2100, 2100, token)
	g.get("/orders/5", 4200, 4200, token)
	if !g.get("/orders/5", 4201, 4201, token) {
		t.Error("no lease is asked for any more")
	}
}

// abandon sends a request, waits until it has come to the upstream, and goes away.
func (l *leasing) abandon(path, authorization string) {
	l.t.Helper()
	before := len(l.secured.Requests())
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nhost: h\r\nauthorization: %s\r\n\r\n", path, authorization)
	envoytest.Eventually(l.t, "the upstream to be asked", func() bool { return len(l.secured.Requests()) > before })
}

// TestAStreamEndsWithItsToken: also one that a hit let pass, by what is left at that time.
func TestAStreamEndsWithItsToken(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	g.answers(func(a *authv3.AttributeContext) *authv3.CheckResponse {
		r := granting(900, "ada")(a)
		r.DynamicMetadata.Fields["left"] = structpb.NewNumberValue(60_000)
		return r
	})
	for _, path := range []string{"/orders/5", "/live/5"} {
		g.secured.Reset()
		g.get(path, 0, 0, token)
		miss := wire(g.secured)
		if !g.get(path, 1, 1, token) || wire(g.secured) != miss {
			t.Errorf("%s: no hit, or one that the upstream sees", path)
		}
	}
	g.answers(func(a *authv3.AttributeContext) *authv3.CheckResponse {
		r := granting(900, "ada")(a)
		r.DynamicMetadata.Fields["left"] = structpb.NewNumberValue(900.5)
		return r
	})
	g.get("/orders/5", 10_000, 10_000, token)
	hung := make(chan bool)
	g.secured.SetHandler(func(http.ResponseWriter, *http.Request) { <-hung })
	defer close(hung)
	got := g.visit("/orders/5", 10_899, 10_899, token)
	if got.Status != 504 || !strings.Contains(got.Body, "The token ended") || g.hits() != 3 {
		t.Errorf("a token that ends in 2 ms, and an upstream that never answers: %d %s, %d hits", got.Status, got.Body, g.hits())
	}
}

// TestOneQuestionRenewsWhatEndsSoon: of the same rule, what a request has passed by, and of which half is over.
func TestOneQuestionRenewsWhatEndsSoon(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	bearer := func(name string) string { return "authorization: Bearer " + name }
	for i, name := range []string{"first", "used", "unused"} {
		g.get("/orders/5", float64(i), float64(i), bearer(name))
	}
	g.get("/parts/5", 3, 3, bearer("used"))
	g.get("/parts/5", 4, 4, bearer("used"))
	g.get("/orders/5", 4, 4, bearer("used"))
	g.get("/orders/5", 450.5, 450.5, bearer("young"))
	g.get("/orders/5", 451, 451, bearer("young"))
	if got := g.renews(); got != nil {
		t.Errorf("with nothing that ends soon %q is to be renewed", got)
	}
	g.answers(renewing(900, map[string]string{said("Bearer used"): "bob"}))
	g.secured.Reset()
	g.get("/orders/5", 900, 900, bearer("first"))
	if got := g.renews(); !slices.Equal(got, []string{said("Bearer used")}) {
		t.Errorf("to be renewed is %q", got)
	}
	g.get("/orders/5", 900, 900, bearer("new"))
	if got := g.renews(); got != nil {
		t.Errorf("at once again %q is to be renewed", got)
	}
	for _, c := range []struct {
		at   float64
		name string
		hit  bool
	}{{901, "used", true}, {1574.9, "used", true}, {1575, "used", false}, {1576, "unused", false}} {
		g.secured.Reset()
		if hit := g.get("/orders/5", c.at, c.at, bearer(c.name)); hit != c.hit {
			t.Errorf("%s after %v ms: hit %v, want %v", c.name, c.at, hit, c.hit)
		}
		if user := g.secured.Requests()[0].Header.Get("x-user-id"); c.hit && user != "bob" {
			t.Errorf("%s after %v ms: the upstream is told of %q", c.name, c.at, user)
		}
	}
}

// TestWhatIsNotRenewedEnds: at its time, whatever else the answer says.
func TestWhatIsNotRenewedEnds(t *testing.T) {
	for name, answers := range map[string]func(*authv3.AttributeContext) *authv3.CheckResponse{
		"not told of it":          granting(900, "ada"),
		"told that it is not":     renewing(900, nil),
		"a denial":                deny(401, `"no"`),
		"a long user":             renewing(900, map[string]string{said(bearerOther): strings.Repeat("u", 257)}),
		"less than what was left": renewing(4, map[string]string{said(bearerOther): "ada"}),
	} {
		t.Run(name, func(t *testing.T) {
			g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
			g.twoInUse()
			g.answers(answers)
			g.visit("/orders/5", 900, 900, token)
			if got := g.renews(); !slices.Equal(got, []string{said(bearerOther)}) {
				t.Fatalf("to be renewed is %q", got)
			}
			g.answers(granting(900, "ada"))
			if g.get("/orders/5", 905, 905, otherToken) {
				t.Error("a hit after its end")
			}
		})
	}
}

// TestARenewalIsCountedFromTheArrivalOfTheQuestion: by either clock, and is no longer than a second whatever is said.
func TestARenewalIsCountedFromTheArrivalOfTheQuestion(t *testing.T) {
	for _, c := range []struct {
		name             string
		lease, now, wall float64
		hit              bool
	}{
		{"within it", 900, 1574, 1574, true},
		{"after it", 900, 1575, 1574, false},
		{"after it by the wall clock", 900, 1574, 1575, false},
		{"within a second", 60_000, 1649, 1649, true},
		{"after a second", 60_000, 1650, 1650, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
			g.twoInUse()
			g.answers(renewing(c.lease, map[string]string{said(bearerOther): "ada"}))
			arrived, goOn := make(chan bool), make(chan bool)
			g.secured.SetHandler(func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					arrived <- true
					<-goOn
				}
			})
			answered := make(chan bool)
			go func() {
				g.visit("/orders/slow", 900, 900, token)
				answered <- true
			}()
			<-arrived
			g.answers(granting(900, "ada"))
			g.get("/parts/5", 1500, 1500, token)
			goOn <- true
			<-answered
			if hit := g.get("/orders/5", c.now, c.wall, otherToken); hit != c.hit {
				t.Errorf("hit %v, want %v", hit, c.hit)
			}
		})
	}
}

// TestWhatAQuestionRenewsIsBounded: in number and in bytes.
func TestWhatAQuestionRenewsIsBounded(t *testing.T) {
	for bound, replace := range map[string][]string{
		"number":    {"MOST_RENEWED, MOST_RENEWED_BYTES = 128", "MOST_RENEWED, MOST_RENEWED_BYTES = 3"},
		"bytes":     {"MOST_RENEWED_BYTES = 128, 8192", "MOST_RENEWED_BYTES = 128, 60"},
		"looked at": {"MOST_LOOKED, LOOK_EVERY = 512", "MOST_LOOKED, LOOK_EVERY = 3"},
	} {
		t.Run(bound, func(t *testing.T) {
			g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest, replace: replace})
			g.get("/orders/5", 0, 0, token)
			for i := range 8 {
				for range 2 {
					g.get("/orders/5", 1, 1, fmt.Sprintf("authorization: Bearer one-%d", i))
				}
			}
			g.get("/orders/5", 900, 900, token)
			if got := g.renews(); len(got) != 3 && !(bound == "looked at" && len(got) == 2) { // the token's own may be one of those
				t.Errorf("to be renewed is %q", got)
			}
		})
	}
}

// TestTheSidecarUnderstandsWhatIsToBeRenewed: with every input that there can be, and renews what it would allow alone.
func TestTheSidecarUnderstandsWhatIsToBeRenewed(t *testing.T) {
	g := startLeasing(t, cookieShop, leaseSetup{append: clocksOfTheTest})
	sidecar := g.decides()
	ann, bob, eve := sidecar.login("ann"), sidecar.login("bob"), sidecar.login("eve")
	with := func(token tokens.Token) []string {
		return []string{fromShop, "authorization: Bearer " + token.Reveal(), "cookie: a=b; c=d"}
	}
	g.get("/orders/5", 0, 0, with(ann)...)
	for _, token := range []tokens.Token{bob, bob, eve, eve} {
		g.get("/orders/5", 5, 5, with(token)...)
	}
	delete(sidecar.live, eve.Hash())
	g.get("/orders/5", 900, 900, with(ann)...)
	if got := g.renews(); len(got) != 2 {
		t.Fatalf("to be renewed is %q", got)
	}
	g.secured.Reset()
	if !g.get("/orders/5", 1500, 1500, with(bob)...) || g.secured.Requests()[0].Header.Get("x-user-id") != "bob" {
		t.Error("a session that is live is not renewed")
	}
	if got := g.do("GET", "/orders/5", with(eve)...); got.Status != 401 {
		t.Errorf("a session that has ended: %d", got.Status)
	}
}

// TestEachRenewalIsItsOwn: of a hundred users at once, none gets another's identity.
func TestEachRenewalIsItsOwn(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	sidecar := g.decides()
	bearer := func(user string) string { return "authorization: Bearer " + sidecar.login(user).Reveal() }
	asker, users := bearer("asker"), make([]string, 100)
	g.get("/orders/5", 0, 0, asker)
	for i := range users {
		users[i] = bearer(fmt.Sprint("user-", i))
		g.get("/orders/5", 1, 1, users[i])
		g.get("/orders/5", 1, 1, users[i])
	}
	g.get("/orders/5", 900, 900, asker)
	if n := len(g.renews()); n != len(users) {
		t.Errorf("%d are to be renewed", n)
	}
	for i, user := range users {
		g.secured.Reset()
		hit := g.get("/orders/5", 902, 902, user)
		if told := g.secured.Requests()[0].Header.Get("x-user-id"); !hit || told != fmt.Sprint("user-", i) {
			t.Errorf("user %d: hit %v, and the upstream is told of %q", i, hit, told)
		}
	}
}

// TestARenewalTellsFromWhereASessionIsUsed: from where the first request came that passed by the decision, not the one that it was made for.
func TestARenewalTellsFromWhereASessionIsUsed(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	sidecar := g.decides()
	asker, user := "authorization: Bearer "+sidecar.login("asker").Reveal(), "authorization: Bearer "+sidecar.login("user").Reveal()
	g.get("/orders/5", 0, 0, asker)
	g.get("/orders/5", 1, 1, user)
	const from = "127.0.0.2"
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", g.addr)
	if err != nil {
		t.Skipf("no second loopback address here: %v", err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /orders/5 HTTP/1.1\r\nhost: h\r\n%s\r\n\r\n", user)
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	g.get("/orders/5", 600, 600, user) // a hit that comes later
	sidecar.uses = nil
	g.get("/orders/5", 900, 900, asker)
	if want := []string{"asker 127.0.0.1", "user " + from}; !slices.Equal(sidecar.uses, want) {
		t.Errorf("uses %q, want %q", sidecar.uses, want)
	}
}

// TestOneUsersHeadersSpoilNoOthersRequest: what cannot be said in a question is not renewed.
func TestOneUsersHeadersSpoilNoOthersRequest(t *testing.T) {
	g := startLeasing(t, cookieShop, leaseSetup{append: clocksOfTheTest})
	for _, value := range []string{"a=\xff\xfe", "a=ä"} {
		g.get("/orders/5", 0, 0, token, fromShop)
		odd := []string{otherToken, fromShop, "cookie: " + value}
		g.get("/orders/5", 1, 1, odd...)
		if !g.get("/orders/5", 2, 2, odd...) {
			t.Errorf("%q: no hit", value)
		}
		g.get("/orders/5", 900, 900, token, fromShop) // 200, or it fails the test
		if got := g.renews(); got != nil {
			t.Errorf("to be renewed is %q", got)
		}
		g.get("/orders/5", 5000, 5000, token, fromShop)
	}
}

// TestAStrangerRenewsNothing: it is told of nobody's tokens, and takes nobody's turn to ask.
func TestAStrangerRenewsNothing(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	g.twoInUse()
	g.answers(deny(401, `"no"`))
	g.visit("/orders/5", 890, 890, "authorization: stranger")
	if got := g.renews(); got != nil {
		t.Errorf("a stranger's question names %q", got)
	}
	g.answers(granting(900, "ada"))
	g.get("/orders/5", 900, 900, token)
	if got := g.renews(); !slices.Equal(got, []string{said(bearerOther)}) {
		t.Errorf("to be renewed is %q", got)
	}
}

// TestOthersTokensDoNotStayWithAStream: they are gone from its metadata when they have been read.
func TestOthersTokensDoNotStayWithAStream(t *testing.T) {
	const tell = `
local on_response = envoy_on_response
function envoy_on_response(handle)
  on_response(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local mine, answer = metadata:get(NAMESPACE), metadata:get(ANSWER)
  handle:headers():add("x-test-left", type(mine and mine.ask) .. " " .. type(answer and answer.renewed))
end
`
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest + tell})
	g.twoInUse()
	g.answers(renewing(900, map[string]string{said(bearerOther): "ada"}))
	got := g.visit("/orders/5", 900, 900, token)
	if left := got.Header.Get("x-test-left"); left != "boolean boolean" || len(g.renews()) != 1 {
		t.Errorf("what is left is %q, after a question about %q", left, g.renews())
	}
}

// TestHitsAreTold: to the sidecar by service, with the next question that a worker has.
func TestHitsAreTold(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	g.get("/orders/5", 0, 0, token)
	if got := g.asks(); got == nil || len(got) != 0 {
		t.Errorf("the first question tells of hits: %v", got)
	}
	g.get("/parts/5", 0, 0, token)
	for range 5 {
		g.get("/orders/5", 1, 1, token)
	}
	for range 3 {
		g.get("/parts/5", 1, 1, token)
	}
	g.get("/kept/5", 2, 2, token)
	if got := g.asks(); len(got) != 2 || got["orders"] != 5 || got["parts"] != 3 {
		t.Errorf("told %v, want 5 of orders and 3 of parts", got)
	}
	g.get("/orders/5", 950, 950, token)
	if got := g.asks(); len(got) != 0 {
		t.Errorf("told again: %v", got)
	}
	if g.hits() != 8 {
		t.Errorf("Envoy counts %d hits, want 8", g.hits())
	}
}

// TestEachWorkerRemembersByItself: and each asks at its own first request.
func TestEachWorkerRemembersByItself(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: "function gatepost_clocks() return 1, 1 end", workers: 2})
	const requests = 200
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range requests / 8 {
				if got := g.do("GET", "/orders/5", token); got.Status != 200 {
					t.Errorf("answered %d", got.Status)
				}
			}
		})
	}
	all.Wait()
	asked, hits := len(g.asked()), g.hits()
	if asked+hits != requests || asked < 1 || asked > 32 {
		t.Errorf("asked %d times and %d hits in %d requests", asked, hits, requests)
	}
	told := 0.0
	for _, a := range g.asked() {
		told += a.GetMetadataContext().GetFilterMetadata()["gatepost.lease"].GetFields()["ask"].GetStructValue().GetFields()["hits"].GetStructValue().GetFields()["orders"].GetNumberValue()
	}
	if int(told) > hits {
		t.Errorf("told of %v hits, and there were %d", told, hits)
	}
	seen := map[string]bool{}
	for _, r := range g.secured.Requests() {
		seen[fmt.Sprint(r.Header["X-User-Id"], r.Header["Authorization"])] = true
	}
	if len(seen) != 1 || !seen["[ada] []"] {
		t.Errorf("the upstream got %v", seen)
	}
}

// TestLeasesOverHTTP2: as over HTTP/1.1, many on one connection.
func TestLeasesOverHTTP2(t *testing.T) {
	g := startLeasing(t, leasingShop, leaseSetup{append: clocksOfTheTest})
	client := envoytest.H2Client(t)
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			req, err := http.NewRequest("POST", "http://"+g.addr+"/orders/5", strings.NewReader("body"))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header = http.Header{"Authorization": {"Bearer token-" + fmt.Sprint(i%2)}, "X-User-Id": {"mallory", "root"}}
			res, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			if res.StatusCode != 200 || res.ProtoMajor != 2 {
				t.Errorf("answered %s over %s", res.Status, res.Proto)
			}
		})
	}
	all.Wait()
	g.get("/orders/5", 0, 0, "authorization: Bearer token-0")
	if g.hits() == 0 {
		t.Error("no hit")
	}
	for _, r := range g.secured.Requests() {
		if !slices.Equal(r.Header["X-User-Id"], []string{"ada"}) || r.Header["Authorization"] != nil || r.Method == "POST" && r.Body != "body" {
			t.Errorf("the upstream got %+v", r)
		}
	}
}

// TestTheNameOfARuleIsAHashOfIt: a change of anything that Check is told of a route is another rule, so no decision by the
// old one is found; and a change of anything else keeps what is remembered.
func TestTheNameOfARuleIsAHashOfIt(t *testing.T) {
	const head, orders = "tokens: {lease: 1s}\nservices:\n", "  - {name: orders, path: /orders, upstreams: [\"http://127.0.0.1:1\"]}\n"
	before := leaseRules(t, head+orders)["orders"]
	if before == "" {
		t.Fatal("there is no rule on the route")
	}
	service := func(more string) string { return head + strings.Replace(orders, "}", ", "+more+"}", 1) }
	for name, text := range map[string]string{
		"scopes":                 service(`scopes: ["a"]`),
		"other scopes":           service(`scopes: ["b"]`),
		"the token is forwarded": service("forward_token: true"),
		"timeout":                service("timeout: 16s"),
		"name":                   strings.Replace(head+orders, "name: orders", "name: others", 1),
		"origins":                head + orders + `origins: ["https://shop.example"]`,
		"other origins":          head + orders + `origins: ["https://shop.example", "https://b.example"]`,
		"user header":            head + orders + "identity: {user_header: x-customer}",
		"cookie":                 strings.Replace(head, "1s", "1s, cookie: __Host-s", 1) + orders + `origins: ["https://shop.example"]`,
		"subprotocol":            strings.Replace(head, "1s", "1s, subprotocol: gatepost.bearer", 1) + orders,
	} {
		for _, rule := range leaseRules(t, text) {
			if rule == before {
				t.Errorf("%s: the rule has the same name", name)
			}
		}
	}
	for name, text := range map[string]string{
		"the length of the lease": strings.Replace(head, "1s", "250ms", 1) + orders,
		"another upstream":        head + strings.Replace(orders, ":1\"", ":2\"", 1),
		"another path":            strings.Replace(head+orders, "path: /orders", "path: /Sales", 1),
		"another service":         head + orders + "  - {name: more, path: /more, upstreams: [\"http://127.0.0.1:1\"]}\n",
	} {
		if got := leaseRules(t, text)["orders"]; got != before {
			t.Errorf("%s: the rule has another name", name)
		}
	}
	if rules := leaseRules(t, "services:\n"+orders); len(rules) != 0 {
		t.Errorf("without a lease the routes say %v", rules)
	}
}

// leaseRules are the names of the rules on the routes, by route.
func leaseRules(t testing.TB, text string) map[string]string {
	t.Helper()
	rules := map[string]string{}
	for _, r := range allRoutes(build(t, text)) {
		on := new(luav3.LuaPerRoute)
		if config := r.GetTypedPerFilterConfig()[filterLease]; config == nil || config.UnmarshalTo(on) != nil {
			continue
		}
		service, rule, _ := strings.Cut(r.GetName(), "#")
		rules[service] = rule
	}
	return rules
}

// TestEveryHeaderThatACheckIsToldIsInTheKey: but for the request's id, which is told for the log.
func TestEveryHeaderThatACheckIsToldIsInTheKey(t *testing.T) {
	for _, more := range []string{"", "cookie: __Host-s", "subprotocol: gatepost.bearer", "cookie: __Host-s, subprotocol: gatepost.bearer"} {
		gw := parse(t, "origins: [\"https://shop.example\"]\ntokens: {"+more+"}\nservices: []")
		b := &builder{gw: gw}
		keyed := append(b.shared().LeaseInputs(), "authorization", "x-request-id")
		told := checkedHeaders(gw.GetTokens())
		slices.Sort(keyed)
		slices.Sort(told)
		if !slices.Equal(keyed, told) {
			t.Errorf("%q: a Check is told %q, and the key holds %q", more, told, keyed)
		}
	}
}
