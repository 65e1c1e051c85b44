package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestAuthenticateAcceptsOnlyTheRightPassword(t *testing.T) {
	for _, c := range []struct {
		name, body string
		status     int
		user       string
	}{
		{"alice", `{"username":"alice","password":"wonderland"}`, 200, "user-1"},
		{"bob", `{"username":"bob","password":"builder"}`, 200, "user-2"},
		{"another's password", `{"username":"alice","password":"builder"}`, 401, ""},
		{"no password", `{"username":"alice"}`, 401, ""},
		{"nobody", `{"username":"","password":""}`, 401, ""},
		{"unknown", `{"username":"eve","password":"wonderland"}`, 401, ""},
		{"no JSON", `username=alice&password=wonderland`, 400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := call(userService(), "POST", "/users/authenticate", "", c.body)
			if res.Code != c.status || res.Header().Get("userid") != c.user {
				t.Errorf("%d with userid %q, want %d with %q", res.Code, res.Header().Get("userid"), c.status, c.user)
			}
			if res.Code == 200 && res.Body.Len() != 0 {
				t.Errorf("a body %q: the gateway's answer would not be seen", res.Body)
			}
		})
	}
}

func TestUsersSeeOnlyTheirOwnOrders(t *testing.T) {
	orders := orderService()
	for _, c := range []struct {
		method, path, user, body string
		status                   int
		answer                   string
	}{
		{"GET", "/", "user-1", "", 200, `{"user":"user-1","orders":[{"id":1,"item":"tea","quantity":2}]}`},
		{"GET", "/1", "user-1", "", 200, `{"id":1,"item":"tea","quantity":2}`},
		{"GET", "/1", "user-2", "", 404, `"No such order"`},
		{"DELETE", "/1", "user-2", "", 404, `"No such order"`},
		{"PUT", "/1", "user-2", `{"item":"tea","quantity":9}`, 404, `"No such order"`},
		{"GET", "/one", "user-1", "", 404, `"No such order"`},
		{"GET", "/", "", "", 403, `"No user: call through the gateway"`},
		{"POST", "/", "user-3", `{"item":"tea","quantity":1}`, 201, `{"id":3,"item":"tea","quantity":1}`},
		{"POST", "/", "user-3", `{"item":"tea"}`, 400, `"Send {\"item\": \"…\", \"quantity\": 1}"`},
		{"PUT", "/3", "user-3", `{"item":"tea","quantity":4}`, 200, `{"id":3,"item":"tea","quantity":4}`},
		{"DELETE", "/3", "user-3", "", 204, ""},
		{"GET", "/", "user-3", "", 200, `{"user":"user-3","orders":[]}`},
	} {
		res := call(orders, c.method, c.path, c.user, c.body)
		if got := strings.TrimSpace(res.Body.String()); res.Code != c.status || got != c.answer {
			t.Errorf("%s %s of %q: %d %s, want %d %s", c.method, c.path, c.user, res.Code, got, c.status, c.answer)
		}
	}
}

func TestItemsNeedNoUser(t *testing.T) {
	res := call(itemService(), "GET", "/", "", "")
	const want = `[{"name":"tea","cents":450},{"name":"bricks","cents":80}]`
	if got := strings.TrimSpace(res.Body.String()); res.Code != 200 || got != want {
		t.Errorf("%d %s, want 200 %s", res.Code, got, want)
	}
}

func TestRunServesAServiceUntilTheContextIsDone(t *testing.T) {
	address := freeAddress(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-items", address}) }()

	deadline := time.Now().Add(5 * time.Minute)
	for run(t.Context(), []string{"-check", "http://" + address}) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the items service is not healthy")
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	if err := run(t.Context(), []string{"-check", "http://" + address}); err == nil {
		t.Error("healthy after its end")
	}
}

func TestRunNamesTheServiceThatFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	err = run(t.Context(), []string{"-users", freeAddress(t), "-orders", taken.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "serving orders: ") {
		t.Errorf("ended with %v, want the orders service named", err)
	}
}

func call(h http.Handler, method, path, user, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if user != "" {
		r.Header.Set("x-user-id", user)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
