package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"gatepost/envoy/envoytest"
)

// TestNoRequestWithoutATokenReachesASecuredService generates requests from elements that fooled
// other gateways: unusual separators, escapes and letters in paths, methods, headers, and invalid
// tokens. It sends them as raw HTTP/1 and over HTTP/2. None may reach a secured service, and
// requests to a public one must be unambiguous.
//
// GATEPOST_SEED repeats a run; GATEPOST_CASES is the number of requests.
func TestNoRequestWithoutATokenReachesASecuredService(t *testing.T) {
	t.Parallel()
	seed, cases := uint64(envoytest.Number(t, "GATEPOST_SEED", time.Now().UnixNano())), uint64(envoytest.Number(t, "GATEPOST_CASES", 2000))
	t.Logf("to repeat this run: GATEPOST_SEED=%d GATEPOST_CASES=%d", seed, cases)

	f := startFortress(t, startPlain, `  - {name: rest, path: /, authenticate: false, upstreams: ["PUBLIC/base"]}`)
	f.token = f.Login("alice")
	revoked := f.Login("alice")
	want(t, "revoking", f.Do("POST", "/token/revoke", "", "Authorization: "+revoked), 200, "")

	t.Run("without a good token", func(t *testing.T) {
		f.forget()
		stop := f.callAllTheWhile(t)
		statuses := f.tryAll(t, generator{seed: seed, bad: badTokens(f.token, revoked)}, int(cases))
		stop()
		for name, raw := range map[string]string{"secured": f.secured.Raw(), "vault": f.vault.Raw()} {
			if at := strings.Index(raw, "x-case"); at >= 0 {
				t.Errorf("the %s service got %.2000q", name, raw[max(0, at-200):])
			}
		}
		f.plain(t)
		t.Logf("answers: %v; %d requests reached a public service", statuses, len(f.public.Requests()))
		for _, status := range []int{0, 200, 400, 401, 405} {
			if statuses[status] < int(cases)/200 {
				t.Errorf("%d of %d requests ended in %d: too few to prove anything", statuses[status], cases, status)
			}
		}
	})
	// With a valid token the same requests do reach the secured services, so the token was what
	// they lacked. They do not reach the service that requires a scope.
	t.Run("with a good token", func(t *testing.T) {
		f.forget()
		f.tryAll(t, generator{seed: seed, good: f.token}, int(cases)/6)
		if raw := f.vault.Raw(); raw != "" {
			t.Errorf("the vault got %.2000q", raw)
		}
		got := f.secured.Requests()
		if len(got) < int(cases)/100 {
			t.Errorf("%d requests reached a secured service: too few to prove anything", len(got))
		}
		for _, one := range got {
			if !slices.Equal(one.Header.Values("X-User-Id"), []string{"alice"}) {
				t.Errorf("%s %s arrived with the user %q", one.Method, one.Path, one.Header.Values("X-User-Id"))
			}
		}
	})
}

// callAllTheWhile sends requests of alice to a secured service until stop is called, so that Envoy
// caches decisions. No generated request may be allowed by them. Alice's requests have no case
// number.
func (f *fortress) callAllTheWhile(t *testing.T) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var alice sync.WaitGroup
	alice.Go(func() {
		for {
			if got, err := f.TryRaw(rawGet("/orders", "authorization: "+f.token)); err != nil || got.Status != 200 {
				t.Errorf("alice: %d %v", got.Status, err)
			}
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() {
		close(done)
		alice.Wait()
	}
}

// tryAll sends generated requests, and returns the number of responses per status.
func (f *fortress) tryAll(t *testing.T, g generator, cases int) map[int]int {
	t.Helper()
	var clients errgroup.Group
	clients.SetLimit(64) // most connections are about to be closed by Envoy
	var mu sync.Mutex
	statuses := map[int]int{}
	for n := range cases {
		clients.Go(func() error {
			one := g.request(n)
			got, err := one.send(f)
			if err != nil {
				t.Errorf("%s: %v", one, err)
			}
			mu.Lock()
			defer mu.Unlock()
			statuses[got.Status]++
			return nil
		})
	}
	_ = clients.Wait() // each reports its own failure
	return statuses
}

// plain fails if a public service received a request that it could interpret differently than the
// gateway.
func (f *fortress) plain(t *testing.T) {
	t.Helper()
	for _, stream := range f.public.Streams() {
		asked, err := targets(stream)
		if err != nil {
			t.Errorf("a public service got what can be read in two ways: %v", err)
		}
		for _, target := range asked {
			if why := crooked(target); why != "" {
				t.Errorf("a public service received %q: %s, in %q", target, why, stream)
			}
		}
	}
	if strings.Contains(f.public.Raw(), spoofed) {
		t.Error("what a client claimed to be reached a public service")
	}
	for _, one := range f.public.Requests() {
		if users := one.Header.Values("X-User-Id"); len(users) != 0 {
			t.Errorf("case %s: a public service received the user %q", one.Header.Get("X-Case"), users)
		}
	}
}

var (
	belowBase   = regexp.MustCompile(`^/base(/|\?|$)`)
	escapedPart = regexp.MustCompile(`(?i)%(2f|5c|00)`)
	dotSegment  = regexp.MustCompile(`(?i)^\.\.?(;|%3b|$)`)
)

// crooked returns what is wrong with a target that reached a public service, or "": it is outside
// the service's path, or would be after another normalization.
func crooked(target string) string {
	path, _, _ := strings.Cut(target, "?")
	if path == "/base//" {
		return "" // of slashes alone, however many, Envoy leaves two: there is nothing between them
	}
	forms := []string{path}
	if unescaped, err := url.PathUnescape(path); err == nil {
		forms = append(forms, unescaped)
	}
	if !belowBase.MatchString(target) {
		return "it is not below /base"
	}
	if escapedPart.MatchString(path) || strings.ContainsAny(path, "\\#") {
		return "a separator is hidden in it"
	}
	for _, form := range forms {
		segments := strings.Split(form, "/")
		for i, segment := range segments[1:] {
			if segment == "" && i < len(segments)-2 {
				return "it has an empty segment"
			}
			if dotSegment.MatchString(segment) {
				return "it has a dot segment"
			}
		}
	}
	return ""
}

func TestCrookedFindsBadTargets(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"/base", "/base/", "/base/a/b?x=/../y", "/base?x", "/base/%252e%252e/a", "/base/...", "/base/a;b", "/base/..a", "/base//"} {
		if why := crooked(good); why != "" {
			t.Errorf("%s: %s", good, why)
		}
	}
	for _, bad := range []string{
		"/", "/orders", "/basement", "/base/../x", "/base/..", "/base/a//b", "/base/%2e%2e/x", "/base/..;/x", "/base/..%3B/x", "/base/%2e%2e;x", "/base/a%2fb", "/base/a%5Cb", `/base/a\b`, "/base/%00", "/base/./x",
	} {
		if crooked(bad) == "" {
			t.Errorf("%s is taken for a plain one", bad)
		}
	}
}

// generator generates requests. Equal seeds and numbers give equal requests.
type generator struct {
	seed uint64
	// bad are header lines with tokens that are not valid. good, if set, is a valid token that each
	// request has.
	bad  []string
	good string
}

// badTokens returns header lines with no token, an unknown token, or a valid one in an invalid
// form.
func badTokens(good, revoked string) []string {
	return []string{
		"", "", "",
		"authorization:", "authorization: x", "authorization: Bearer", "authorization: Bearer x", "authorization: Basic " + good, "authorization: " + revoked, "authorization: Bearer " + revoked,
		"authorization: " + other(good), "authorization: " + strings.ToUpper(good), "authorization: " + good + "," + good, "authorization: " + good + "\xff", "authorization: " + good[:20], "authorization: Bearer\t" + good,
		"proxy-authorization: " + good, "x-authorization: " + good, "cookie: token=" + good + "; authorization=" + good, "token: " + good,
	}
}

// made is a generated request.
type made struct {
	h2             bool
	method, target string
	lines          []string
	body           string
}

func (m made) String() string {
	version := "HTTP/1.1"
	if m.h2 {
		version = "HTTP/2"
	}
	return fmt.Sprintf("%s %q %q %q %q", version, m.method, m.target, m.lines, m.body)
}

func (m made) send(f *fortress) (answer, error) {
	if !m.h2 {
		return f.TryRaw(rawRequest(m.method, m.target, m.lines...) + m.body)
	}
	var fields [][2]string
	for _, line := range m.lines {
		name, value, _ := strings.Cut(line, ":")
		fields = append(fields, [2]string{name, strings.TrimSpace(value)})
	}
	return f.TryH2(m.method, m.target, m.body, fields...)
}

// The words of the grammar. Most requests should pass Envoy's own checks, so that the routes are
// tested. Therefore what Envoy rejects at once is among the rarer words.
var (
	methodWords = words{
		often:  []string{"GET", "GET", "GET", "HEAD", "POST"},
		rarely: []string{"PUT", "DELETE", "PATCH", "OPTIONS", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "Get", "FOO"},
	}
	nameWords = words{
		often:  []string{"orders", "orders", "items", "private", "status", "vault"},
		rarely: []string{"order", "token", "x", "5", "base", "ordersfoo", "..", ".", "...", "", "*", "%", "%zz", "%u002e", "~", "a b", "\u017f", "sessions"},
	}
	separatorWords = words{
		often: []string{"/", "/", "/", "//", "/./", "/../", "/../../", `\`, `\..\`, "/..;/", "/.;/", "/%2e/", "/%2e%2e/", "/.%2E/", "/;/../", "///"},
		rarely: []string{
			"%2f", "%2F", "%5c", ";/", ";x=y/", "/;/", "/%2e%2e;/", "/..%3b/", "/%252e%252e/", "%252f", "/..%2f", "/..%5c", "%00", "/%0d%0a/", "/...//", "?", "?/../", "#", "%3f", "%23",
			"/%c0%ae%c0%ae/", "/\x80/", "/ ", "\t", "%20", "/..%00/", "/%09../",
		},
	}
	startWords = words{
		often:  []string{"/", "/", "/", "//", "/./", "/../", "/%2e%2e/", "/x/../"},
		rarely: []string{`\`, "", "http://h/", "http://items/", "http://u@h//", "https://h/", "*", "?", "%2f"},
	}
	endWords = words{
		often:  []string{"", "", "", "/", "/.", "?x=1", "?x=/items", "/1"},
		rarely: []string{"/..", "#", "#/items", ";", "%00", "%20", ".", "..", "/..;/", "?", "??/../x", "/%2e%2e"},
	}
	headerWords = words{
		often: []string{
			"x-user-id: " + spoofed, "X-User-Id: " + spoofed, "connection: x-user-id", "x-forwarded-uri: /items", "x-original-url: /items", "x-rewrite-url: /items", "x-envoy-original-path: /items",
			"x-envoy-auth-failure-mode-allowed: true", "x-envoy-internal: true", "x-forwarded-for: 127.0.0.1", "x-forwarded-host: items", "x-http-method-override: OPTIONS", "origin: https://app.example",
			"origin: null", "origin:", "access-control-request-method: GET", "access-control-request-method:", "user-agent: kube-probe/1.31",
		},
		rarely: []string{
			"x_user_id: " + spoofed, "content-type: application/grpc", "upgrade: websocket", "connection: upgrade", "te: trailers", "expect: 100-continue", "host: items", "range: bytes=0-1", "transfer-encoding: identity",
		},
	}
)

// words are the words of one kind; some are picked often, some rarely.
type words struct{ often, rarely []string }

func (w words) pick(r *rand.Rand) string {
	if r.IntN(8) == 0 {
		return pick(r, w.rarely)
	}
	return pick(r, w.often)
}

func pick(r *rand.Rand, words []string) string { return words[r.IntN(len(words))] }

// request returns the nth request.
func (g generator) request(n int) made {
	r := rand.New(rand.NewPCG(g.seed, uint64(n)))
	m := made{h2: r.IntN(3) == 0, method: methodWords.pick(r), target: target(r), lines: []string{fmt.Sprintf("x-case: %d", n)}}
	for range r.IntN(3) {
		m.add(headerWords.pick(r))
	}
	if m.method == "OPTIONS" && r.IntN(2) == 0 { // near-preflights are of interest
		m.add(pick(r, []string{"origin: https://app.example", "origin:", "origin: null"}))
		m.add(pick(r, []string{"access-control-request-method: GET", "access-control-request-method:", "access-control-request-method: ,"}))
	}
	if r.IntN(4) == 0 {
		m.body = pick(r, []string{"x", "GET /orders HTTP/1.1\r\nhost: h\r\n\r\n", `{"username":"alice","password":"wrong"}`})
		m.lines = append(m.lines, fmt.Sprintf("content-length: %d", len(m.body)))
	}
	if g.good != "" {
		m.lines = append(m.lines, "authorization: "+g.good)
	}
	if len(g.bad) > 0 {
		m.add(pick(r, g.bad))
	}
	return m
}

func (m *made) add(line string) {
	if line != "" {
		m.lines = append(m.lines, line)
	}
}

// target generates a path or another request target.
func target(r *rand.Rand) string {
	var b strings.Builder
	b.WriteString(startWords.pick(r))
	for i := range 1 + r.IntN(4) {
		if i > 0 {
			b.WriteString(separatorWords.pick(r))
		}
		b.WriteString(disguise(r, nameWords.pick(r)))
	}
	b.WriteString(endWords.pick(r))
	return b.String()
}

// disguise changes the case of some letters of a name or escapes them.
func disguise(r *rand.Rand, name string) string {
	if r.IntN(3) > 0 {
		return name
	}
	var b strings.Builder
	for _, c := range []byte(name) {
		switch r.IntN(5) {
		case 0:
			b.WriteString(strings.ToUpper(string(rune(c))))
		case 1:
			fmt.Fprintf(&b, "%%%02x", c)
		case 2:
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func TestEqualSeedsGiveEqualRequests(t *testing.T) {
	t.Parallel()
	distinct := map[string]bool{}
	for n := range 200 {
		one, again := generator{seed: 1, good: "x"}.request(n).String(), generator{seed: 1, good: "x"}.request(n).String()
		if one != again {
			t.Fatalf("made %s, and then %s", one, again)
		}
		distinct[one] = true
	}
	if len(distinct) < 190 {
		t.Errorf("only %d of 200 requests differ: %v", len(distinct), slices.Collect(maps.Keys(distinct))[:3])
	}
}
