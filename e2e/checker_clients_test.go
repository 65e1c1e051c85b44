package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
)

// clients mint, use and end tokens at several gateways, and record the results.
type clients struct {
	t        *testing.T
	gateways []*gateway
	history  *history
	http     *http.Client
	seed     uint64

	users     atomic.Int64
	questions atomic.Int64
	refreshed sync.Map // *minted: true, for refreshed tokens: a use after the grace would end the session
	mints     atomic.Int64
	ends      atomic.Int64
}

func newClients(t *testing.T, h *history, seed uint64, gateways ...*gateway) *clients {
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &clients{
		t: t, gateways: gateways, history: h, seed: seed,
		// Longer than a revoke may take.
		http: &http.Client{Transport: transport, Timeout: 12 * time.Second},
	}
}

// orders is the secured service: it responds with the user and the path that it received. It also
// checks that it receives no token.
func orders(t *testing.T) *httptest.Server {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("a token has reached the upstream")
		}
		fmt.Fprintf(w, "%s gets %s", strings.Join(r.Header.Values("X-User-Id"), " and "), r.URL.Path)
	}))
	t.Cleanup(service.Close)
	return service
}

// knownUsers is the user service: the id equals the user name, and every password is "right".
func knownUsers(t *testing.T) *httptest.Server {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var login struct{ Username, Password string }
		if err := json.NewDecoder(r.Body).Decode(&login); err != nil || login.Password != "right" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("userid", login.Username)
	}))
	t.Cleanup(service.Close)
	return service
}

// run starts clients at every gateway. They run until done is closed; wait waits for the last of
// them.
func (c *clients) run(done <-chan struct{}) (wait func()) {
	var all sync.WaitGroup
	number := uint64(0)
	each := func(n int, pause time.Duration, do func(r *rand.Rand, gateway int)) {
		for range n {
			for g := range c.gateways {
				number++
				r := rand.New(rand.NewPCG(c.seed, number))
				all.Go(func() {
					for {
						do(r, g)
						select {
						case <-done:
							return
						case <-time.After(time.Duration(r.Int64N(int64(2 * pause)))):
						}
					}
				})
			}
		}
	}
	each(2, 60*time.Millisecond, c.login)
	each(6, 15*time.Millisecond, func(r *rand.Rand, g int) { c.use(g, c.pick(r)) })
	each(1, 50*time.Millisecond, func(r *rand.Rand, g int) { c.introspect(g, c.pick(r)) })
	each(1, 100*time.Millisecond, c.refresh)
	each(2, 100*time.Millisecond, c.logout)
	return all.Wait
}

// pick returns one of the latest tokens, usually one of the very latest, or nil.
func (c *clients) pick(r *rand.Rand) *minted {
	n := 60
	if r.IntN(4) == 0 {
		n = 600 // includes some whose grace is over
	}
	latest := c.history.latest(n)
	if len(latest) == 0 {
		return nil
	}
	return latest[r.IntN(len(latest))]
}

// kept are users whose sessions are never ended, so that some live for the whole lifetime.
const kept = "kept"

// login opens a session of a new or a known user.
func (c *clients) login(r *rand.Rand, gateway int) {
	user := fmt.Sprintf("user-%d", c.users.Load())
	switch r.IntN(6) {
	case 0:
		user = fmt.Sprintf("%s-%d", kept, c.users.Add(1))
	case 1, 2: // another session of the user before
	default:
		user = fmt.Sprintf("user-%d", c.users.Add(1))
	}
	c.loginAs(gateway, user)
}

func (c *clients) loginAs(gateway int, user string) *minted {
	from := c.history.now()
	got, err := c.ask(gateway, "POST", "/token", fmt.Sprintf(`{"username":%q,"password":"right"}`, user), "application/json", "")
	if err != nil || got.Status != http.StatusOK {
		return nil
	}
	c.mints.Add(1)
	return c.history.minted(minted{span: c.history.since(from), Text: got.Header.Get("token"), User: user})
}

// use requests a unique path of the secured service.
func (c *clients) use(gateway int, m *minted) verdict {
	if m == nil {
		return unsure
	}
	path := fmt.Sprintf("/orders/%d", c.questions.Add(1))
	from := c.history.now()
	got, err := c.ask(gateway, "GET", path, "", "", m.Text)
	u := use{span: c.history.since(from), Token: m, Gateway: gateway, How: "GET " + path}
	u.Verdict, u.Answer = judged(got, err)
	if u.Verdict == accepted {
		var whole bool
		// If the path differs, the response belongs to another request; then Identity is the whole
		// text, which is no user's id.
		if u.Identity, whole = strings.CutSuffix(got.Body, " gets "+strings.TrimPrefix(path, "/orders")); !whole {
			u.Identity = got.Body
		}
	}
	c.history.used(u)
	return u.Verdict
}

// introspect asks the gateway for the session's public id, or returns "".
func (c *clients) introspect(gateway int, m *minted) (id string) {
	if m == nil {
		return ""
	}
	from := c.history.now()
	got, err := c.ask(gateway, "POST", "/token/introspect", "", "", m.Text)
	u := use{span: c.history.since(from), Token: m, Gateway: gateway, How: "POST /token/introspect"}
	u.Verdict, u.Answer = judgedCall(got, err)
	var about struct {
		Active   bool
		Sub, SID string
	}
	if u.Verdict == accepted {
		if err := json.Unmarshal([]byte(got.Body), &about); err != nil || !about.Active {
			u.Verdict, u.Answer = odd, got.Body
		}
		u.Identity = about.Sub
	}
	c.history.used(u)
	return about.SID
}

// refresh exchanges a token as one client does, as two tabs do concurrently, or as a client does
// that retries after an error. It rarely does so if the grace may be over, which ends the session.
func (c *clients) refresh(r *rand.Rand, gateway int) {
	m := c.pick(r)
	if m == nil || strings.HasPrefix(m.User, kept) {
		return
	}
	if _, again := c.refreshed.LoadOrStore(m, true); again && r.IntN(8) > 0 {
		return
	}
	var both sync.WaitGroup
	if other := r.IntN(len(c.gateways)); r.IntN(2) == 0 {
		both.Go(func() { c.handOver(other, m) })
	}
	if c.handOver(gateway, m) == unsure {
		c.handOver(gateway, m)
	}
	both.Wait()
}

// handOver refreshes a token once. If it gets the next token, this counts as a use too.
func (c *clients) handOver(gateway int, m *minted) verdict {
	const how = "POST /token/refresh"
	from := c.history.now()
	got, err := c.ask(gateway, "POST", "/token/refresh", "", "", m.Text)
	s := c.history.since(from)
	verdict, answer := judgedCall(got, err)
	c.history.ended(ending{span: s, Token: m, Gateway: gateway, How: how, Handover: true, Acknowledged: verdict == accepted})
	if verdict != unsure {
		c.history.used(use{span: s, Token: m, Gateway: gateway, How: how, Verdict: verdict, Answer: answer, Identity: m.User})
	}
	if verdict == accepted {
		c.history.minted(minted{span: s, Text: got.Header.Get("token"), User: m.User, Session: m.Session, Before: m})
	}
	return verdict
}

// logout ends a session, or all sessions of a user, by one of the existing ways. The ended tokens
// are then tried at every gateway at once, while they are likely to be cached.
func (c *clients) logout(r *rand.Rand, gateway int) {
	m := c.pick(r)
	if m == nil || strings.HasPrefix(m.User, kept) {
		return
	}
	if r.IntN(2) == 0 { // the other gateways have it in memory
		c.everywhere(m)
	}
	if c.end(r.IntN(6), gateway, m) {
		c.ends.Add(1)
		c.everywhere(m)
	}
}

func (c *clients) everywhere(m *minted) {
	var all sync.WaitGroup
	for g := range c.gateways {
		all.Go(func() { c.use(g, m) })
	}
	all.Wait()
}

// end ends a token's session, or all of its user's, and reports whether the gateway acknowledged
// it.
func (c *clients) end(way, gateway int, m *minted) bool {
	e := ending{Token: m, Gateway: gateway}
	const form = "application/x-www-form-urlencoded"
	from := c.history.now()
	var got answer
	var err error
	switch way {
	case 0:
		e.How = "POST /token/revoke with a form"
		got, err = c.ask(gateway, "POST", "/token/revoke", "token="+m.Text, form, "")
	case 1:
		e.How = "POST /token/revoke"
		got, err = c.ask(gateway, "POST", "/token/revoke", "", "", m.Text)
	case 2:
		e.How, e.Everywhere = "DELETE /token/sessions", true
		got, err = c.ask(gateway, "DELETE", "/token/sessions", "", "", m.Text)
	case 3:
		e.How, e.Everywhere = "an operator's DELETE of the user's sessions", true
		got, err = c.send("DELETE", "http://"+c.gateways[gateway].Admin+"/api/v1/users/"+m.User+"/sessions", "", "", "")
	default:
		id := c.introspect(gateway, m)
		if id == "" {
			return false
		}
		from = c.history.now()
		if e.How = "DELETE /token/sessions/{id}"; way == 4 {
			got, err = c.ask(gateway, "DELETE", "/token/sessions/"+id, "", "", m.Text)
		} else {
			e.How = "an operator's DELETE of the session"
			got, err = c.send("DELETE", "http://"+c.gateways[gateway].Admin+"/api/v1/sessions/"+id, "", "", "")
		}
	}
	e.span = c.history.since(from)
	verdict, answer := judgedCall(got, err)
	if verdict == refused { // a rejected request cannot end anything
		c.history.used(use{span: e.span, Token: m, Gateway: gateway, How: e.How, Verdict: refused, Answer: answer})
		return false
	}
	e.Acknowledged = verdict == accepted
	c.history.ended(e)
	return e.Acknowledged
}

// endedOnTheWay is the body of a response to a request whose token expired before the upstream responded.
const endedOnTheWay = "The token ended before the service had answered."

// judged converts a response to a verdict.
func judged(got answer, err error) (verdict, string) {
	switch {
	case err != nil:
		return unsure, err.Error()
	case got.Status == http.StatusOK:
		return accepted, "200"
	case got.Status == http.StatusUnauthorized:
		return refused, "401"
	case got.Status == http.StatusGatewayTimeout && strings.Contains(got.Body, endedOnTheWay):
		return refused, "504 " + got.Body // it expired after it had been accepted: no request outlives its token
	case got.Status == http.StatusServiceUnavailable:
		return unsure, "503 " + got.Body
	default:
		return odd, fmt.Sprint(got.Status, " ", got.Body)
	}
}

// judgedCall is judged for a call below /token. Gatepost itself answers it, and not in time if it is frozen for longer
// than Envoy waits.
func judgedCall(got answer, err error) (verdict, string) {
	if err == nil && got.Status == http.StatusGatewayTimeout && strings.Contains(got.Body, "took too long to answer") {
		return unsure, "504 " + got.Body
	}
	return judged(got, err)
}

func (c *clients) ask(gateway int, method, path, body, kind, token string) (answer, error) {
	return c.send(method, c.gateways[gateway].URL+path, body, kind, token)
}

func (c *clients) send(method, url, body, kind, token string) (answer, error) {
	var headers []string
	if kind != "" {
		headers = append(headers, "Content-Type: "+kind)
	}
	if token != "" {
		headers = append(headers, "Authorization: "+token)
	}
	return envoytest.Send(context.Background(), c.http, method, url, body, headers...)
}
