package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

// under sends a request with a host, and returns the status and whether it was sent on a kept connection.
func (g *gateway) under(host, method, path, body string, headers ...string) (got answer, kept bool) {
	g.t.Helper()
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { kept = info.Reused }}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(g.t.Context(), trace), method, g.URL+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	r.Host = host
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	response, err := client.Do(r)
	if err != nil {
		g.t.Fatalf("%s %s%s: %v", method, host, path, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return answer{Status: response.StatusCode, Header: response.Header, Body: string(text)}, kept
}

// TestADecisionIsThatOfTheHost: a token is valid under every host, and what it may do is decided by the service of the
// host, also by the module's table and in whatever way the path is written.
func TestADecisionIsThatOfTheHost(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, s setup) {
		users, one, two := usersWithScopes(t), envoytest.Upstream(t), envoytest.Upstream(t)
		g := start(t, fmt.Sprintf(`
tokens: {hosts: [login.example], authenticator: {url: %q, scopes_header: x-roles}}
services:
  - {name: staff, path: /orders, hosts: [staff.example], scopes: [staff], upstreams: [%q]}
  - {name: orders, path: /orders, upstreams: [%q]}
`, users.URL(), one.URL(), two.URL()), s)
		const credentials = `{"username":"ada:","password":"right"}`
		if got, _ := g.under("other.example", "POST", "/token", credentials); got.Status != http.StatusNotFound {
			t.Errorf("a login under another host: %d", got.Status)
		}
		login, _ := g.under("login.example", "POST", "/token", credentials)
		token := "Authorization: Bearer " + login.Header.Get("token")
		for range 3 { // the first decision is kept for the next
			for host, want := range map[string]int{"other.example": 200, "login.example": 200, "staff.example": 403, "STAFF.example:5500": 403, "staff.example.": 403} {
				for _, path := range []string{"/orders/5", "/ORDERS/5"} {
					if got, _ := g.under(host, "GET", path, "", token); got.Status != want {
						t.Errorf("%s%s: %d, want %d", host, path, got.Status, want)
					}
				}
			}
			// HTTP/2 has two fields for a host. The one that chose the service is the one that its upstream gets.
			for _, c := range []struct {
				authority, host string
				statuses        []int
			}{{"staff.example", "other.example", []int{403}}, {"other.example", "staff.example", []int{200, 400}}, {"", "staff.example", []int{403, 400}}} {
				got, err := g.TryH2("GET", "/orders/5", "", [2]string{":authority", c.authority}, [2]string{"host", c.host}, [2]string{"authorization", "Bearer " + login.Header.Get("token")})
				if err != nil || !slices.Contains(c.statuses, got.Status) {
					t.Errorf("%+v: %d %v", c, got.Status, err)
				}
			}
			if got, _ := g.under("user@staff.example", "GET", "/orders", "", token); got.Status != http.StatusBadRequest {
				t.Errorf("a host that is none: %d", got.Status)
			}
		}
		if got := len(one.Requests()); got != 0 {
			t.Errorf("%d requests came to the staff's upstream", got)
		}
		for _, r := range two.Requests() {
			if strings.Contains(strings.ToLower(r.Host), "staff") {
				t.Errorf("the upstream got a request for %s", r.Host)
			}
			if r.Header.Get("x-user-id") != "ada" || r.Header.Get("authorization") != "" {
				t.Errorf("the upstream got %v", r.Header)
			}
		}
	})
}

// TestAHostIsAddedToARunningGateway: the other services stay as they were, and connections stay open.
func TestAHostIsAddedToARunningGateway(t *testing.T) {
	t.Parallel()
	plain, admin := envoytest.Upstream(t), envoytest.Upstream(t)
	services := func(more string) string {
		return fmt.Sprintf("services:\n  - {name: items, path: /items, authenticate: false, upstreams: [%q]}\n%s", plain.URL(), more)
	}
	g := start(t, services(""), setup{})
	g.under("admin.example", "GET", "/items", "")
	version := g.Status().GetVersion()
	g.Define(services(fmt.Sprintf("  - {name: admin, path: /, hosts: [admin.example], authenticate: false, upstreams: [%q]}\n", admin.URL())))
	g.AwaitChange(version)
	plain.Reset()
	for _, host := range []string{"admin.example", "other.example"} {
		got, kept := g.under(host, "GET", "/items/5", "")
		if got.Status != http.StatusOK || !kept {
			t.Errorf("%s: %d on a kept connection: %t", host, got.Status, kept)
		}
	}
	if got := admin.Requests(); len(got) != 1 || got[0].Path != "/items/5" {
		t.Errorf("the service of the host got %v", got)
	}
	if got := plain.Requests(); len(got) != 1 || got[0].Path != "/5" || got[0].Host != "other.example" {
		t.Errorf("the service without a host got %v", got)
	}
}
