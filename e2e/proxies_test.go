package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

// TestClientsBehindALoadBalancer: limits of logins, sessions, the last use of one and denials have the address that a
// trusted proxy names.
func TestClientsBehindALoadBalancer(t *testing.T) {
	t.Parallel()
	service, orders := users(t), envoytest.Upstream(t)
	g := start(t, fmt.Sprintf(`
client_addresses: {trusted_proxies: [127.0.0.1]}
tokens:
  authenticator: {url: "%s/users/authenticate"}
  shield: {address: {failures: 3}}
services:
  - {name: orders, path: /orders, upstreams: ["%s"]}
`, service.URL(), orders.URL()), setup{})
	from := func(address string) string { return "X-Forwarded-For: 192.0.2.66, " + address }
	login := func(address, password string) answer {
		return g.Do("POST", "/token", fmt.Sprintf(`{"username":"alice","password":%q}`, password), from(address), "Content-Type: application/json")
	}
	for range 4 {
		want(t, "a guess", login("198.51.100.1", "wrong"), http.StatusUnauthorized, "")
	}
	want(t, "a guess beyond the limit", login("198.51.100.1", "wrong"), http.StatusTooManyRequests, "")
	granted := login("198.51.100.2", "right")
	want(t, "a login of another address", granted, http.StatusOK, "")
	token := granted.Header.Get("token")

	want(t, "a request", g.Do("GET", "/orders/5", "", from("198.51.100.3"), "Authorization: "+token), http.StatusOK, "")
	envoytest.Eventually(t, "the session to have both addresses", func() bool {
		list := g.Do("GET", "/token/sessions", "", from("198.51.100.4"), "Authorization: "+token).Body
		return strings.Contains(list, `"client_address":"198.51.100.2"`) && strings.Contains(list, `"last_address":"198.51.100.3"`)
	})
	want(t, "a denial", g.Do("GET", "/orders/5", "", from("198.51.100.5")), http.StatusUnauthorized, "")
	denials, err := http.Get("http://" + g.Admin + "/api/v1/denials")
	if err != nil {
		t.Fatal(err)
	}
	defer denials.Body.Close()
	if body, err := io.ReadAll(denials.Body); err != nil || !strings.Contains(string(body), `"client":"198.51.100.5"`) {
		t.Errorf("the denials are %s (%v)", body, err)
	}
	// The way to --admin through the gateway stays closed for clients of a proxy too.
	if got := orders.Requests(); len(got) != 1 || got[0].Header.Get("X-Envoy-External-Address") != "198.51.100.3" {
		t.Errorf("the upstream received %+v", got)
	}
}

// TestClientsBehindThePROXYProtocol: the gateway becomes ready, though Gatepost is no proxy that Envoy trusts, and a
// session has the address in the PROXY header.
func TestClientsBehindThePROXYProtocol(t *testing.T) {
	t.Parallel()
	service := users(t)
	g := start(t, fmt.Sprintf(`
client_addresses: {trusted_proxies: [127.0.0.2], proxy_protocol: true}
tokens: {authenticator: {url: "%s/users/authenticate"}}
services: []
`, service.URL()), setup{})
	granted := g.proxied(t, rawWithBody("POST", "/token", `{"username":"alice","password":"right"}`, "x-forwarded-for: 192.0.2.66"))
	want(t, "a login", granted, http.StatusOK, "")
	list := g.proxied(t, rawGet("/token/sessions", "authorization: "+granted.Header.Get("token")))
	var sessions struct {
		Sessions []struct {
			Address string `json:"client_address"`
		}
	}
	if err := json.Unmarshal([]byte(list.Body), &sessions); err != nil || len(sessions.Sessions) != 1 || sessions.Sessions[0].Address != "198.51.100.7" {
		t.Errorf("the sessions are %+v (%v)", list, err)
	}
	want(t, "past the load balancer", g.Do("POST", "/token", `{"username":"alice","password":"right"}`), http.StatusForbidden, `"Connect to the load balancer."`)
}

// proxied sends a request over a connection of a proxy at 127.0.0.2, for a client at 198.51.100.7.
func (g *gateway) proxied(t *testing.T, request string) answer {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "PROXY TCP4 198.51.100.7 192.0.2.80 4321 443\r\n"+request); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{Status: response.StatusCode, Header: response.Header, Body: string(body)}
}
