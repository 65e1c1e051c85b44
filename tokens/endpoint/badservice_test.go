package endpoint

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/definitions"
)

// rawUsers starts a user service that reads one request of each connection, passes the connection to f and closes it.
func rawUsers(t testing.TB, f func(net.Conn)) string {
	t.Helper()
	return keepAliveUsers(t, func(conn net.Conn, _ *http.Request) {
		f(conn)
		conn.Close()
	})
}

// keepAliveUsers starts a user service with persistent connections that passes each request to f.
func keepAliveUsers(t testing.TB, f func(net.Conn, *http.Request)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer conn.Close()
				for in := bufio.NewReader(conn); ; {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					f(conn, r)
				}
			})
		}
	})
	t.Cleanup(func() { _ = listener.Close(); open.Wait() })
	return "http://" + listener.Addr().String() + "/users/authenticate"
}

// respond returns a user service that writes answer and closes the connection.
func respond(answer string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, answer) }
}

// endless returns a user service that writes until the connection is closed.
func endless(start, again string) func(net.Conn) {
	return func(c net.Conn) {
		_, err := io.WriteString(c, start)
		for again := strings.Repeat(again, 1000); err == nil; {
			_, err = io.WriteString(c, again)
		}
	}
}

func TestBrokenUserServiceCreatesNoSession(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nuserid: ann\r\n"
	for name, f := range map[string]func(net.Conn){
		"closes at once":          respond(""),
		"garbage":                 respond("\x00\xff\x16\x03 secret garbage\r\n\r\n"),
		"no status":               respond("HTTP/1.1\r\nuserid: ann\r\n\r\n"),
		"status 000":              respond("HTTP/1.1 000 Zero\r\nuserid: ann\r\nContent-Length: 0\r\n\r\n"),
		"status 999":              respond("HTTP/1.1 999 Many\r\nuserid: ann\r\nContent-Length: 0\r\n\r\n"),
		"half a header":           respond("HTTP/1.1 200 OK\r\nuserid: an"),
		"half a body":             respond(ok + "Content-Length: 10\r\n\r\nhalf"),
		"half a chunk":            respond(ok + "Transfer-Encoding: chunked\r\n\r\na\r\nhalf"),
		"invalid chunks":          respond(ok + "Transfer-Encoding: chunked\r\n\r\nzzz\r\n"),
		"two lengths":             respond(ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\naa"),
		"a negative length":       respond(ok + "Content-Length: -1\r\n\r\n"),
		"a switch of protocols":   respond("HTTP/1.1 101 Switching\r\nuserid: ann\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello"),
		"endless informational":   endless("", "HTTP/1.1 103 Early Hints\r\nuserid: ann\r\n\r\n"),
		"endless headers":         endless(ok, "X-More: "+strings.Repeat("a", 1000)+"\r\n"),
		"one endless header":      endless(ok+"X-More: ", strings.Repeat("a", 1000)),
		"an endless body":         endless(ok+"\r\n", strings.Repeat("a", 1000)),
		"endless chunks":          endless(ok+"Transfer-Encoding: chunked\r\n\r\n", "a\r\naaaaaaaaaa\r\n"),
		"a body that is too long": respond(ok + "Content-Length: 1048577\r\n\r\n" + strings.Repeat("a", maxAnswer+1)),
		"a wrong length":          respond(ok + "Content-Length: 99999999999\r\n\r\na"),
		"an endless refusal":      endless("HTTP/1.1 403 No\r\n\r\n", strings.Repeat("a", 1000)),
		"header with a control":   respond(ok + "X-Bad: a\x00b\r\nContent-Length: 0\r\n\r\n"),
		"another protocol":        respond("\x15\x03\x01\x00\x02\x02\x16"),
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, rawUsers(t, f))
			g.call("POST", "/token", "x").isText(t, 503, textNoUsers)
			if g.store.created != 0 {
				t.Error("a session was opened")
			}
			if n := g.counter("gatepost_logins_total", "unreachable"); n != 1 {
				t.Errorf("%v counted", n)
			}
			if strings.Contains(g.log.String(), "garbage") || strings.Contains(g.log.String(), "Early") {
				t.Errorf("its answer is in the log:\n%s", g.log)
			}
		})
	}
}

func TestUnusualUserServicesWork(t *testing.T) {
	for name, c := range map[string]struct{ answer, body string }{
		"HTTP/1.0, until the connection closes": {"HTTP/1.0 200 OK\r\nuserid: ann\r\n\r\nbody", "body"},
		"early hints":                           {"HTTP/1.1 103 Hints\r\ntoken: theirs\r\nuserid: eve\r\n\r\nHTTP/1.1 200 OK\r\nuserid: ann\r\nContent-Length: 4\r\n\r\nbody", "body"},
		"trailers": {"HTTP/1.1 200 OK\r\nuserid: ann\r\nTrailer: token\r\nTransfer-Encoding: chunked\r\n\r\n" +
			"4\r\nbody\r\n0\r\ntoken: theirs\r\nuserid: eve\r\n\r\n", "body"},
		"the longest body":      {"HTTP/1.1 200 OK\r\nuserid: ann\r\n\r\n" + strings.Repeat("a", maxAnswer), strings.Repeat("a", maxAnswer)},
		"an upper-case name":    {"HTTP/1.1 200 OK\r\nUSERID:ann\r\nContent-Length: 4\r\n\r\nbody", "body"},
		"bytes after the body":  {"HTTP/1.1 200 OK\r\nuserid: ann\r\nContent-Length: 4\r\n\r\nbodyHTTP/1.1 200 OK\r\nuserid: eve\r\n\r\n", "body"},
		"a compressed body":     {"HTTP/1.1 200 OK\r\nuserid: ann\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\x01", "\x1f\x8b\x00\x01"},
		"a header beyond ASCII": {"HTTP/1.1 200 OK\r\nuserid: ann\r\nX-Name: \xc3\xa4\r\nContent-Length: 4\r\n\r\nbody", "body"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, rawUsers(t, respond(c.answer)))
			a := g.call("POST", "/token", "x")
			a.is(t, 200)
			if a.body != c.body || len(a.Trailer) != 0 {
				t.Errorf("body %.100q, trailer %v", a.body, a.Trailer)
			}
			a.has(t, "userid", "ann")
			if !g.isLive(a.Header.Get("token")) {
				t.Error("the token is not live")
			}
		})
	}
}

func TestSlowUserServiceTimesOut(t *testing.T) {
	for name, start := range map[string]string{
		"silent": "", "in its header": "HTTP/1.1 200 OK\r\nuserid:", "in its body": "HTTP/1.1 200 OK\r\nuserid: ann\r\nContent-Length: 9\r\n\r\na",
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, rawUsers(t, func(c net.Conn) {
				_, _ = io.WriteString(c, start)
				_, _ = io.Copy(io.Discard, c) // until the gateway closes it
			}))
			g.settings.Authenticator.Timeout = 50 * time.Millisecond
			g.call("POST", "/token", "x").isText(t, 504, textSlow)
			if g.store.created != 0 {
				t.Error("a session was opened")
			}
		})
	}
}

func TestUserServiceDown(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	g := newGateway(t, "http://"+address)
	for range g.settings.Shield.Breaker.Failures {
		g.call("POST", "/token", "x").isText(t, 503, textNoUsers)
	}
	a := g.call("POST", "/token", "x") // the breaker is open now
	a.isText(t, 503, textNoUsers)
	if n := g.counter("gatepost_logins_total", "breaker_open"); n != 1 {
		t.Errorf("%v counted; log:\n%s", n, g.log)
	}
	if !strings.Contains(g.log.String(), "connection refused") {
		t.Errorf("the log has no reason:\n%s", g.log)
	}
}

// If the user service closes an idle connection, no login fails and no login is sent twice.
func TestClosedConnectionIsReplaced(t *testing.T) {
	closed := make(chan struct{}, 40)
	g := newGateway(t, rawUsers(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nuserid: ann\r\nContent-Length: 0\r\n\r\n")
		_ = c.(*net.TCPConn).CloseWrite() // without a Connection header
		_, _ = io.Copy(io.Discard, c)     // until the gateway closes it
		closed <- struct{}{}
	}))
	for range 20 {
		g.call("POST", "/token", "x").is(t, 200)
		<-closed
	}
	if n := len(closed); n != 0 {
		t.Errorf("%d requests for 20 logins", 20+n)
	}
}

// The user service may have counted a login that it did not answer, so a login is sent only once.
// net/http would repeat a request with an idempotency key if a persistent connection breaks.
func TestLoginIsNeverReplayed(t *testing.T) {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		for _, body := range []string{"", "password=x"} {
			t.Run(name+" with the body "+body, func(t *testing.T) {
				keys := make(chan string, 10)
				g := newGateway(t, keepAliveUsers(t, func(c net.Conn, r *http.Request) {
					keys <- r.Header.Get(name)
					if r.Header.Get(name) == "" { // the second login breaks the connection instead
						_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nuserid: ann\r\nContent-Length: 0\r\n\r\n")
						return
					}
					_ = c.Close()
				}))
				g.call("POST", "/token", body).is(t, 200)
				g.call("POST", "/token", body, name, "k1").isText(t, 503, textNoUsers)
				if first, second := <-keys, <-keys; first != "" || second != "k1" {
					t.Errorf("the user service got the keys %q and %q", first, second)
				}
				if len(keys) > 0 {
					t.Error("the login was sent twice")
				}
			})
		}
	}
}

func TestConnectionsToUserServiceAreReused(t *testing.T) {
	var mu sync.Mutex
	ports := map[string]bool{}
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		ports[r.RemoteAddr] = true
		mu.Unlock()
		ann(w, r)
	}))
	for range 50 {
		g.login()
	}
	if len(ports) != 1 {
		t.Errorf("%d connections for 50 logins", len(ports))
	}
}

func TestWrongPasswordsAreThrottled(t *testing.T) {
	for name, unknownUser := range map[string]int{"like wrong passwords": 401, "with another status": 404} {
		t.Run("unknown users answered "+name, func(t *testing.T) {
			var mu sync.Mutex
			requests := 0
			g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				requests++
				mu.Unlock()
				switch r.FormValue("user") {
				case "ann":
					w.WriteHeader(401)
				case "bob":
					ann(w, r)
				default:
					w.WriteHeader(unknownUser)
				}
			}))
			g.settings.Authenticator.UserField = "user"
			g.settings.Shield.User.Base = time.Hour
			for user, status := range map[string]int{"ann": 401, "nobody": unknownUser} {
				for range 6 {
					g.call("POST", "/token", "user="+user, "Content-Type", formType).is(t, status)
				}
				before := requests
				a := g.call("POST", "/token", "user="+strings.ToUpper(user), "Content-Type", formType)
				a.isText(t, 429, textTooMany)
				if after, _ := strconv.Atoi(a.Header.Get("Retry-After")); after < 800 || after > 900 {
					t.Errorf("Retry-After: %d, want the cap", after)
				}
				if requests != before {
					t.Error("the user service got a request")
				}
			}
			g.call("POST", "/token", "user=bob", "Content-Type", formType).is(t, 200)
			if strings.Contains(g.log.String(), "nobody") {
				t.Errorf("the log has the user name of a failed login:\n%s", g.log)
			}
		})
	}
}

func TestAddressIsThrottledWithoutUserName(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Good") == "" {
			w.WriteHeader(403)
			return
		}
		ann(w, r)
	}))
	g.settings.Shield.Address = definitions.Limit{Failures: 10, Forgive: time.Hour, Base: time.Minute, Cap: time.Hour}
	from := func(address, good string) answerOf {
		return g.call("POST", "/token", "x", "X-Forwarded-For", "203.0.113.9, "+address, "X-Good", good)
	}
	for range 11 {
		from("192.0.2.1", "").is(t, 403)
	}
	from("192.0.2.1", "yes").isText(t, 429, textTooMany)
	from("192.0.2.2", "yes").is(t, 200)
	if n := g.counter("gatepost_logins_total", "throttled"); n != 1 {
		t.Errorf("%v counted", n)
	}
}

func TestTooManyConcurrentLogins(t *testing.T) {
	arrived, release := make(chan bool), make(chan bool)
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- true
		<-release
		ann(w, r)
	}))
	g.settings.Shield.Concurrent = 1
	first := make(chan int)
	go func() {
		r, _ := http.NewRequest("POST", g.URL+"/token", nil)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			first <- 0
			return
		}
		response.Body.Close()
		first <- response.StatusCode
	}()
	<-arrived
	g.call("POST", "/token", "x").isText(t, 503, textNoUsers)
	close(release)
	if status := <-first; status != 200 {
		t.Errorf("the first login was answered %d", status)
	}
}

// If a user service answers before it has read the login, the transport may still be sending it.
func TestUserServiceThatDoesNotReadLogin(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(401)
	}))
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			body := strings.Repeat("a", 1000+i*25_000)
			r, err := http.NewRequest("POST", g.URL+"/token", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			response, err := noRedirects.Do(r)
			if err != nil {
				return // the server closed the connection while the client was sending
			}
			defer response.Body.Close()
			// 503: the close arrived before the answer
			if response.StatusCode != 401 && response.StatusCode != 503 {
				t.Errorf("answered %d", response.StatusCode)
			}
		})
	}
	all.Wait()
	if g.store.created != 0 {
		t.Error("a session was opened")
	}
}
