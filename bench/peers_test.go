package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// newLab returns a lab whose processes end with the test. If a program is missing, it skips the
// test.
func newLab(t *testing.T, programs ...string) *lab {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s, as `make bench` does", program)
		}
	}
	l := &lab{count: 1, during: time.Second, progress: io.Discard}
	t.Cleanup(func() { l.close() })
	return l
}

// opened returns a lab with all programs built.
func opened(t *testing.T) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and starts every design; not with -short")
	}
	l := newLab(t, "wrk", "nginx", "redis-server", "node", "npm")
	if err := l.open(t.Context()); err != nil {
		if errors.Is(err, errMissing) || strings.Contains(err.Error(), "Envoy") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	return l
}

// Each design must accept valid tokens only, and pass the user to the service. Otherwise the
// figures are not comparable.
func TestEveryDesignAppliesTheSameRule(t *testing.T) {
	l := opened(t)
	for _, name := range []string{bareNoAuth, bareAlwaysOK, bareRedisGet, nginxRule, nodeAsItWas, nodeKeepAlive, gateDefault, gatePublic, gateLogged, gateClustered, gateAsking} {
		s, err := l.subject(t.Context(), name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := s.check(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("a design that lets everyone pass is found out", func(t *testing.T) {
		address, _, err := l.bareEnvoy(t.Context(), "envoy-open", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := (visit{address: address, path: "/orders/5", tokens: []string{"any"}}).check(t.Context()); !errors.Is(err, errWrong) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the Node gateway matches its description", func(t *testing.T) { l.nodeDoesWhatItDid(t) })
	t.Run("one service more is served by the peer with one route table", func(t *testing.T) {
		peer, err := l.oneRoute(t.Context(), 20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := peer.add(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("one service more is served by Gatepost, and what Envoy was sent is counted", func(t *testing.T) {
		c, err := l.catalogue(t.Context(), 20)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.add(t.Context())
		if err != nil || got.bytes <= 0 || got.saved <= 0 || got.read <= 0 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("instructions are counted", func(t *testing.T) {
		if _, err := exec.LookPath("valgrind"); err != nil {
			t.Skip("needs valgrind, as G13 does")
		}
		envoy, err := l.countedEnvoy()
		if err != nil {
			t.Fatal(err)
		}
		defer func(plain string) { l.envoy = plain }(l.envoy)
		l.envoy = envoy
		address, p, err := l.bareEnvoy(t.Context(), "envoy-counted", nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.counter(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		visit := visits("http://" + address + "/orders/5")
		count := func(requests int) int {
			n, err := c.during(t.Context(), func() error {
				for range requests {
					if err := visit(t.Context()); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		count(20) // the first requests cost more
		if few, many := count(20), count(80); few < 20*100_000 || many < 3*few || many > 5*few {
			t.Errorf("%d instructions for 20 requests, %d for 80", few, many)
		}
	})
	t.Run("the build without traces decides the same", func(t *testing.T) {
		program, err := l.buildUntraced(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		socket, p, requests, err := l.serve(t.Context(), "serve-untraced", program)
		if err != nil {
			t.Fatal(err)
		}
		s, err := asked("untraced", socket, requests, true, p)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.check(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("a single check", func(t *testing.T) {
		gatepost, requests, err := l.aloneGatepost(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		alwaysOK, err := l.aloneAlwaysOK(t.Context(), requests)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []subject{gatepost, alwaysOK} {
			if err := s.check(t.Context()); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
	})
}

// nodeDoesWhatItDid compares the peer with the old gateway's description.
func (l *lab) nodeDoesWhatItDid(t *testing.T) {
	address, _, err := l.node(t.Context(), "node-tested", true)
	if err != nil {
		t.Fatal(err)
	}
	token, err := login(t.Context(), "http://"+address, "ann")
	if err != nil {
		t.Fatal(err)
	}
	const notAllowed = `"You are not allowed to access this API!"`
	for _, c := range []struct {
		name, method, path string
		headers            []string
		status             int
		text               string
	}{
		{"an unknown path", "GET", "/nothing", nil, 404, `"Could not find any resources for given path."`},
		{"a method that is not allowed", "PATCH", "/orders", nil, 405, `"Method not allowed"`},
		{"no token", "GET", "/orders/5", nil, 401, notAllowed},
		{"a token, the path in capitals", "GET", "/ORDERS/5", []string{"Authorization: " + token}, 200, `"id":5`},
		{"a public service", "GET", "/items/5", nil, 200, `"id":5`},
		{"a login of nobody", "POST", "/Token", nil, 401, notAllowed},
	} {
		status, _, text, err := ask(t.Context(), c.method, "http://"+address+c.path, "", c.headers...)
		if err != nil || status != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d %q, %v, want %d with %q", c.name, status, text, err, c.status, c.text)
		}
	}
	_, header, _, err := ask(t.Context(), "POST", "http://"+address+"/token", "{}", "X-Login: ann", "Origin: https://shop.example")
	if err != nil || header.Get("Access-Control-Allow-Origin") != "https://shop.example" || header.Get("Access-Control-Expose-Headers") != "token,expires_in,userid" {
		t.Errorf("a login from a page: %v, %v", header, err)
	}
}

func TestLoadSendsTheConfiguredRequests(t *testing.T) {
	l := newLab(t, "wrk")
	l.dir = t.TempDir()
	var mu sync.Mutex
	seen := map[string]int{}
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen[r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")+" "+r.Header.Get("X-Other")+" "+string(body)]++
		w.WriteHeader(status)
	}))
	defer server.Close()
	what := load{
		method: "POST", address: server.Listener.Addr().String(), path: "/token", header: "Authorization", values: []string{`Bearer "a"`, `b\c`},
		headers: [][2]string{{"X-Other", "1"}}, body: `{"x":1}`, connections: 2,
	}
	run := func() (outcome, error) { return l.run(context.Background(), what, time.Second) }
	got, err := run()
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	one, other := seen[`POST /token Bearer "a" 1 {"x":1}`], seen[`POST /token b\c 1 {"x":1}`]
	if len(seen) != 2 || one == 0 || other == 0 || got.Requests < 2 {
		t.Errorf("wrk reports %d requests, the server received %v", got.Requests, seen)
	}
	status = http.StatusServiceUnavailable
	mu.Unlock()
	if _, err := run(); !errors.Is(err, errWrong) {
		t.Errorf("a server that answers 503 is measured: %v", err)
	}
}
