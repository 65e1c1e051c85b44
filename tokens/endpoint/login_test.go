package endpoint

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"gatepost/convention"
	"gatepost/logqueue"
	"gatepost/tokens"
)

func TestLoginReturnsStoredToken(t *testing.T) {
	for _, format := range []tokens.Format{tokens.FormatUUID, tokens.FormatSecret} {
		t.Run(string(format), func(t *testing.T) {
			g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("userid", "ann")
				w.Header().Set("Scopes", "orders:write items:read orders:write")
				w.Header().Set("X-Other", "kept")
				w.Header().Set("Content-Type", "application/vnd.users+json")
				_, _ = io.WriteString(w, `{"name":"Ann"}`)
			}))
			g.settings.Format = string(format)
			a := g.call("POST", "/token", "x", "User-Agent", "test/1", "X-Forwarded-For", "203.0.113.9, 192.0.2.7")
			a.is(t, 200)
			if a.body != `{"name":"Ann"}` {
				t.Errorf("body %q is not the user service's", a.body)
			}
			a.has(t, "userid", "ann")
			a.has(t, "expires_in", "3600")
			a.has(t, "Access-Control-Expose-Headers", "token,expires_in,userid")
			a.has(t, "Cache-Control", "no-store")
			a.has(t, "Pragma", "no-cache")
			a.has(t, "X-Other", "kept")
			a.has(t, "Content-Type", "application/vnd.users+json")
			token, err := tokens.Parse(a.Header.Get("token"))
			if err != nil {
				t.Fatalf("token %q: %v", a.Header.Get("token"), err)
			}
			s, err := g.store.Lookup(t.Context(), token.Hash())
			if err != nil {
				t.Fatal(err)
			}
			if s.User != "ann" || s.ClientAddress != "192.0.2.7" || s.UserAgent != "test/1" ||
				!reflect.DeepEqual(s.Scopes, []string{"items:read", "orders:write"}) ||
				s.Expires.Sub(s.Issued) != time.Hour || s.Ends.Sub(s.Issued) != 24*time.Hour {
				t.Errorf("stored %+v", s)
			}
			if !strings.Contains(g.log.String(), `"outcome":"opened"`) || !strings.Contains(g.log.String(), `"user":"ann"`) {
				t.Errorf("log:\n%s", g.log)
			}
			if n := g.counter("gatepost_logins_total", "opened"); n != 1 {
				t.Errorf("%v logins counted", n)
			}
		})
	}
}

func TestLoginWithEmptyAnswerReturnsOAuthBody(t *testing.T) {
	for name, f := range map[string]http.HandlerFunc{
		"no body": ann,
		"chunked": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			ann(w, r)
			_ = http.NewResponseController(w).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, users(t, f))
			var got map[string]any
			a := g.call("POST", "/token", "x")
			a.json(t, &got)
			want := map[string]any{"access_token": a.Header.Get("token"), "token_type": "Bearer", "expires_in": 3600.0}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("body %v, want %v", got, want)
			}
		})
	}
}

// Responses other than 200 keep everything that clients of the old gateway saw.
func TestOtherStatusesAreForwarded(t *testing.T) {
	for _, status := range []int{201, 202, 204, 206, 301, 302, 307, 308, 304, 400, 401, 403, 404, 418, 422, 429, 500, 503, 599} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			calls := 0
			g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
				calls++
				h := w.Header()
				h.Set("Location", "/other")
				h.Set("userid", "ann")
				h.Set("X-Why", "because")
				h.Set("Retry-After", "77")
				h.Add("Set-Cookie", "a=1")
				h.Add("Set-Cookie", "b=2")
				h["Content-Type"] = nil
				w.WriteHeader(status)
				if status != 204 && status != 304 {
					_, _ = io.WriteString(w, "<nope>")
				}
			}))
			a := g.call("POST", "/token", "x")
			a.is(t, status)
			a.has(t, "Location", "/other")
			a.has(t, "X-Why", "because")
			a.has(t, "Retry-After", "77")
			if c := a.Header.Values("Set-Cookie"); !reflect.DeepEqual(c, []string{"a=1", "b=2"}) {
				t.Errorf("cookies %q", c)
			}
			for _, name := range []string{"token", "expires_in", "Cache-Control", "Content-Type"} {
				if v, ok := a.Header[http.CanonicalHeaderKey(name)]; ok {
					t.Errorf("%s: %q was added", name, v)
				}
			}
			if want := "<nope>"; status != 204 && status != 304 && a.body != want {
				t.Errorf("body %q", a.body)
			}
			if calls != 1 || g.store.count() != 0 {
				t.Errorf("%d calls, %d sessions", calls, g.store.count())
			}
		})
	}
}

// An outage differs from a wrong password in outcome, log level and metric.
func TestOutagesAreDistinguished(t *testing.T) {
	for _, c := range []struct {
		what         string
		status       int
		store        error
		outcome      string
		level        string
		serviceFails float64
	}{
		{"a right password", 200, nil, "opened", "INFO", 0},
		{"a wrong password", 401, nil, "refused", "INFO", 0},
		{"a fault of the user service", 500, nil, "user_service_error", "WARN", 1},
		{"an overload of the user service", 503, nil, "user_service_error", "WARN", 1},
		{"a broken answer", 999, nil, "unreachable", "WARN", 1},
		{"a store that is down", 200, fmt.Errorf("%w: connection refused", tokens.ErrUnavailable), "store_unavailable", "WARN", 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) { ann(w, r); w.WriteHeader(c.status) }))
			g.settings.Authenticator.UserField, g.settings.Shield.User.Failures = "username", 1
			g.store.fail(c.store)
			for range 3 { // only the wrong password counts against the user
				a := g.call("POST", "/token", "username=ann", "Content-Type", formType)
				if throttled := a.StatusCode == 429; throttled && c.outcome != "refused" {
					t.Fatalf("answered %d", a.StatusCode)
				}
			}
			n := g.counter("gatepost_logins_total", c.outcome)
			if want := 3 - g.counter("gatepost_logins_total", "throttled"); n != want || n == 0 {
				t.Errorf("%v counted as %s, want %v", n, c.outcome, want)
			}
			if got := g.counter("gatepost_user_service_errors_total"); got != n*c.serviceFails {
				t.Errorf("%v errors of the user service counted", got)
			}
			line := fmt.Sprintf(`"level":"%s","msg":"login","outcome":"%s"`, c.level, c.outcome)
			if strings.Count(g.log.String(), line) != int(n) {
				t.Errorf("the log has no %s:\n%s", line, g.log)
			}
		})
	}
}

func TestMissingUserHeaderIsLogged(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-User", "ann") }))
	g.settings.Authenticator.UserHeader = "x-account"
	g.call("POST", "/token", "x").is(t, 401)
	if !strings.Contains(g.log.String(), `no header \"x-account\" (tokens.authenticator.user_header)`) {
		t.Errorf("log:\n%s", g.log)
	}
}

func TestInvalidUserCreatesNoSession(t *testing.T) {
	for name, ids := range map[string][]string{
		"missing": nil, "empty": {""}, "blank": {"  "}, "twice": {"ann", "ann"}, "twice, one empty": {"ann", ""}, "long": {strings.Repeat("a", 257)},
		"tab": {"a\tb"}, "latin-1": {"\xe4nn"}, "UTF-8": {"änn"}, "control": {"a\x01b"}, "delete": {"a\x7fb"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Userid"] = ids
				w.Header().Set("X-Other", "theirs")
				_, _ = io.WriteString(w, "welcome")
			}))
			a := g.call("POST", "/token", "x")
			if name == "control" || name == "delete" { // net/http rejects these answers
				a.isText(t, 503, textNoUsers)
			} else {
				a.isText(t, 401, "You are not allowed to access this API!")
				a.has(t, "WWW-Authenticate", `Bearer realm="gatepost"`)
			}
			if g.store.count() != 0 || a.Header.Get("X-Other") != "" {
				t.Error("a part of the answer was forwarded")
			}
		})
	}
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("userid", strings.Repeat("a", 256))
	}))
	g.call("POST", "/token", "x").is(t, 200)
}

func TestUserHeaderIsConfigurable(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Account", "ann")
		w.Header().Set("X-May", "a")
	}))
	g.settings.Authenticator.UserHeader, g.settings.Authenticator.ScopesHeader = "x-account", "X-MAY"
	a := g.call("POST", "/token", "x")
	a.is(t, 200)
	a.has(t, "Access-Control-Expose-Headers", "token,expires_in,x-account")
	if !strings.Contains(a.body, `"scope":"a"`) {
		t.Errorf("body %s", a.body)
	}
}

func TestInvalidScopesAreDroppedAndLogged(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		ann(w, r)
		w.Header()["Scopes"] = []string{`good  "quoted" back\slash`, "b\xffd " + strings.Repeat("x", 65), "fine"}
	}))
	a := g.call("POST", "/token", "x")
	if !strings.Contains(a.body, `"scope":"fine good"`) {
		t.Errorf("body %s", a.body)
	}
	if !strings.Contains(g.log.String(), `"left_out":4`) {
		t.Errorf("log:\n%s", g.log)
	}
}

func TestUserServiceCannotSetGatewayHeaders(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		ann(w, r)
		for _, name := range []string{"token", "Expires_in", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials",
			"Access-Control-Expose-Headers", "Cache-Control", "Pragma"} {
			w.Header()[name] = []string{"theirs", "theirs too"}
		}
		w.Header().Set("Connection", "x-nominated")
		w.Header().Set("X-Nominated", "theirs")
		w.Header().Set("Keep-Alive", "theirs")
		w.Header().Set("Proxy-Authenticate", "theirs")
	}))
	a := g.call("POST", "/token", "x")
	a.is(t, 200)
	for name, values := range a.Header {
		if strings.Contains(strings.Join(values, ""), "theirs") {
			t.Errorf("%s: %q", name, values)
		}
	}
	if !g.isLive(a.Header.Get("token")) {
		t.Error("the token was not minted by the gateway")
	}
}

func TestClientQueryIsDropped(t *testing.T) {
	for _, configured := range []string{"", "?realm=customers"} {
		for _, sent := range []string{"?realm=admins", "?", "?realm=customers&realm=admins", "?%zz"} {
			var got string
			g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) { got = r.RequestURI; ann(w, r) })+configured)
			g.call("POST", "/token"+sent, "x").is(t, 200)
			if want := "/users/authenticate" + configured; got != want {
				t.Errorf("POST /token%s reached the user service as %s, want %s", sent, got, want)
			}
		}
	}
}

func TestLoginIsForwardedUnchanged(t *testing.T) {
	var got *http.Request
	var body string
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the login: %v", err)
		}
		got, body = r, string(data)
		ann(w, r)
	}))
	sent := "POST /token?x=1;y=%zz&z=a+b HTTP/1.1\r\nHost: gateway.example\r\nConnection: close, X-Nominated\r\nX-Nominated: 1\r\n" +
		"Authorization: Basic YTpi\r\nCookie: a=1\r\nX-Forwarded-For: 203.0.113.9, 192.0.2.7\r\nX-Forwarded-Proto: https\r\nForwarded: for=1\r\n" +
		"X-Many: 1\r\nX-Many: 2\r\nAccept-Encoding: br\r\nContent-Type: text/strange\r\nTE: trailers\r\nUpgrade: h2c\r\n" +
		"Proxy-Authorization: Basic eDp4\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n\x00\xff{\"a"
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, sent)
	answers := bufio.NewReader(conn)
	response, err := http.ReadResponse(answers, nil)
	for err == nil && response.StatusCode == 100 {
		response, err = http.ReadResponse(answers, nil)
	}
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("answer %v, %v", response, err)
	}
	if got.Method != "POST" || got.RequestURI != "/users/authenticate" || body != "\x00\xff{\"a" {
		t.Errorf("got %s %s %q", got.Method, got.RequestURI, body)
	}
	if got.Host != g.settings.Authenticator.URL.Host {
		t.Errorf("Host %q", got.Host)
	}
	want := http.Header{
		"Authorization": {"Basic YTpi"}, "Cookie": {"a=1"}, "X-Forwarded-For": {"203.0.113.9, 192.0.2.7"}, "X-Forwarded-Proto": {"https"},
		"Forwarded": {"for=1"}, "X-Many": {"1", "2"}, "Accept-Encoding": {"br"}, "Content-Type": {"text/strange"}, "Content-Length": {"5"},
	}
	if !reflect.DeepEqual(got.Header, want) {
		t.Errorf("headers %v\nwant    %v", got.Header, want)
	}
}

func TestBodiesOfAllSizesAreForwarded(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		w.Header().Set("X-Got", fmt.Sprint(len(data), err, strings.Count(string(data), "a") == len(data)))
		ann(w, r)
	}))
	for _, size := range []int{0, 1, headSize - 1, headSize, headSize + 1, maxRequest - 1, maxRequest} {
		for _, chunked := range []bool{false, true} {
			var body io.Reader = strings.NewReader(strings.Repeat("a", size))
			if chunked {
				body = io.MultiReader(body)
			}
			r, _ := http.NewRequest("POST", g.URL+"/token", body)
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if got, want := response.Header.Get("X-Got"), fmt.Sprint(size, nil, true); response.StatusCode != 200 || got != want {
				t.Errorf("%d bytes, chunked %v: %d, the user service got %q", size, chunked, response.StatusCode, got)
			}
		}
	}
}

func TestTooLargeLoginIsRefused(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			t.Error("the user service read the whole body without an error")
		}
		ann(w, r)
	}))
	for _, chunked := range []bool{false, true} {
		var body io.Reader = strings.NewReader(strings.Repeat("a", maxRequest+1))
		if chunked {
			body = io.MultiReader(body)
		}
		r := httptest.NewRequest("POST", "/token", body)
		w := httptest.NewRecorder()
		g.handler.ServeHTTP(w, r)
		answerOf{w.Result(), w.Body.String()}.isText(t, 413, convention.TextTooLarge)
	}
	if g.store.count() != 0 {
		t.Error("a session was opened")
	}
}

func TestFailingStoreReturnsNoToken(t *testing.T) {
	g := newGateway(t, users(t, ann))
	g.store.fail(fmt.Errorf("%w: it is full", tokens.ErrUnavailable))
	a := g.call("POST", "/token", "x")
	a.isText(t, 503, textUnavailable)
	if a.Header.Get("userid") != "" {
		t.Error("the response names the user")
	}
	if n := g.counter("gatepost_logins_total", "store_unavailable"); n != 1 {
		t.Errorf("%v counted", n)
	}
	g.store.fail(nil)
	if !g.isLive(g.login()) {
		t.Error("the token is not live")
	}
}

func TestNoLoginWithoutUserService(t *testing.T) {
	g := newGateway(t, "")
	g.call("POST", "/token", "x").isText(t, 503, textUnavailable)
	if !strings.Contains(g.log.String(), "no tokens.authenticator is defined") {
		t.Errorf("log:\n%s", g.log)
	}
	g.settings = nil
	g.call("POST", "/token", "x").isText(t, 503, textUnavailable)
}

func TestSettingsChangeWhileRunning(t *testing.T) {
	g := newGateway(t, users(t, ann))
	g.login()
	other := *g.settings
	other.Lifetime, other.Format = 48*time.Hour, string(tokens.FormatSecret)
	g.settings = &other
	a := g.call("POST", "/token", "x")
	a.has(t, "expires_in", "86400") // at most the session's lifetime
	if !strings.HasPrefix(a.Header.Get("token"), "gp1_") {
		t.Errorf("token of the old format")
	}
}

func TestOldestSessionsAreReplaced(t *testing.T) {
	g := newGateway(t, users(t, ann))
	g.settings.MaxSessions = 2
	first := g.login()
	for range 2 {
		time.Sleep(2 * time.Millisecond) // sessions are ordered by milliseconds
		g.login()
	}
	if g.isLive(first) || g.store.count() != 2 {
		t.Errorf("%d sessions", g.store.count())
	}
}

func TestDisconnectedClientCreatesNoSession(t *testing.T) {
	arrived, release := make(chan bool), make(chan bool)
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- true
		<-release
		if r.Context().Err() != nil {
			t.Error("the login was canceled at the user service")
		}
		ann(w, r)
	}))
	noticed := make(chan struct{})
	g.arrived = func(r *http.Request) { context.AfterFunc(r.Context(), func() { close(noticed) }) }
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error)
	go func() {
		r, _ := http.NewRequestWithContext(ctx, "POST", g.URL+"/token", nil)
		_, err := http.DefaultClient.Do(r)
		answered <- err
	}()
	<-arrived
	cancel()
	if err := <-answered; err == nil {
		t.Fatal("the client did not disconnect")
	}
	<-noticed // the gateway has noticed
	close(release)
	for deadline := time.Now().Add(5 * time.Minute); g.counter("gatepost_logins_total", "client_gone") == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("log:\n%s", g.log)
		}
	}
	if g.store.count() != 0 {
		t.Error("a session was stored without a client")
	}
}

func TestClientAddress(t *testing.T) {
	for name, c := range map[string]struct {
		external string
		xff      []string
		remote   string
		want     string
	}{
		"Envoy's own header": {"192.0.2.1", []string{"203.0.113.9"}, "127.0.0.1:1", "192.0.2.1"},
		"the last entry":     {"", []string{"203.0.113.9", "203.0.113.8, 192.0.2.2"}, "127.0.0.1:1", "192.0.2.2"},
		"IPv6":               {"", []string{"203.0.113.9,2001:db8::1"}, "127.0.0.1:1", "2001:db8::1"},
		"nonsense":           {"", []string{"192.0.2.1, nonsense"}, "127.0.0.1:1", ""},
		"no proxy":           {"", nil, "[::ffff:192.0.2.3]:1", "192.0.2.3"},
		"a Unix socket":      {"", nil, "@", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/token", nil)
			r.RemoteAddr = c.remote
			if c.external != "" {
				r.Header.Set("X-Envoy-External-Address", c.external)
			}
			r.Header["X-Forwarded-For"] = c.xff
			var want netip.Addr
			if c.want != "" {
				want = netip.MustParseAddr(c.want)
			}
			if got := clientOf(r).address; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// A client can send any number of logins that do not reach the user service. Each is counted, and few are logged.
func TestLinesOfLoginsThatAreNotForwardedAreLimited(t *testing.T) {
	g := newGateway(t, users(t, ann))
	now := time.Now()
	g.handler.config.Now = func() time.Time { return now }
	g.settings.Authenticator.UserField = "username"
	flood := func(n int) {
		for range n {
			g.call("POST", "/token", "x", "Content-Type", "text/plain").is(t, 400)
		}
	}
	flood(logqueue.LinesAtOnce + 30)
	if logged := strings.Count(g.log.String(), `"outcome":"unreadable"`); logged != logqueue.LinesAtOnce {
		t.Errorf("%d lines, want %d", logged, logqueue.LinesAtOnce)
	}
	if counted := g.counter("gatepost_logins_total", "unreadable"); counted != logqueue.LinesAtOnce+30 {
		t.Errorf("%v are counted, want %d", counted, logqueue.LinesAtOnce+30)
	}
	token := g.login()
	if !strings.Contains(g.log.String(), `"outcome":"opened"`) {
		t.Error("a login that the user service was asked about has no line")
	}
	for range 2 {
		g.call("POST", "/token/refresh", "", "Authorization", token)
	}
	if !strings.Contains(g.log.String(), `"outcome":"reused"`) {
		t.Error("a token that is reused has no line")
	}
	now = now.Add(time.Second)
	flood(1)
	if !strings.Contains(g.log.String(), `"lines_left_out":30`) {
		t.Error("the next line does not have the number of those that were left out")
	}
}
