package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatepost/envoy/envoytest"
)

// accessLine is a line of the access log, in the form `ecs`.
type accessLine struct {
	Time string `json:"@timestamp"`
	URL  struct{ Path string }
	HTTP struct {
		Response struct {
			Status int `json:"status_code"`
		}
	}
	Client  struct{ Address string }
	User    struct{ ID string }
	Session struct{ ID string }
	Service struct{ Name, Address string }
	Gate    struct{ Decision, Reason, Route string } `json:"gatepost"`
}

// TestAccessLogOfARunningGateway: every line of standard output is a request, with who and why, and without a token
// or a query.
func TestAccessLogOfARunningGateway(t *testing.T) {
	t.Parallel()
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	var stdout logBuffer
	const origin = "Origin: https://shop.example"
	definitions := strings.Replace(shop.definitions(), "tokens:\n", "tokens:\n  cookie: session\n  subprotocol: gatepost.bearer\n", 1)
	shop.gateway = start(t, "origins: [https://shop.example]\naccess_log: {format: ecs}\n"+definitions, setup{Stdout: &stdout})
	login := shop.Do("POST", "/token", `{"username": "alice", "password": "right"}`, origin, "Content-Type: application/json")
	var grant struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(login.Body), &grant); err != nil {
		t.Fatalf("%v: %s", err, login.Body)
	}
	token := grant.Token
	for _, r := range []struct {
		path   string
		header string
		status int
	}{
		{"/orders/1?access_token=" + token, "Authorization: Bearer " + token, http.StatusOK},
		{"/orders/2?access_token=" + token, "Authorization: Bearer " + token, http.StatusOK},
		{"/orders/3", "Cookie: session=" + token, http.StatusOK},
		{"/orders/4", "Sec-WebSocket-Protocol: gatepost.bearer." + token, http.StatusOK},
		{"/orders/5", "Authorization: Bearer " + other(token), http.StatusUnauthorized},
		{"/items/6?access_token=" + token, "Authorization: Bearer " + token, http.StatusOK},
		{"/nobody?access_token=" + token, "Authorization: Bearer " + token, http.StatusNotFound},
	} {
		want(t, r.path, shop.Do("GET", r.path, "", origin, r.header), r.status, "")
	}
	var got []string
	envoytest.Eventually(t, "the lines of the requests", func() bool {
		got = shop.accessLines(t, stdout.String(), token)
		return len(got) >= 8
	})
	expected := []string{
		"200 /token token allow public",
		"200 /orders/1 orders allow token_known alice session",
		"200 /orders/2 orders allow module alice",
		"200 /orders/3 orders allow token_known alice session",
		"200 /orders/4 orders allow token_known alice session",
		"401 /orders/5 orders deny token_unknown",
		"200 /items/6 items allow public",
		"404 /nobody allow public", // Gatepost is asked about the origin
	}
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Errorf("%s\n%s", diff, stdout.String())
	}
}

// accessLines are the lines of requests that a test has made, in short. All of output must be whole lines, but for
// what is being written.
func (s *shop) accessLines(t *testing.T, output, token string) (short []string) {
	t.Helper()
	if strings.Contains(output, token) || strings.Contains(output, "access_token") {
		t.Fatalf("a token or a query is in the access log:\n%s", output)
	}
	for text := range strings.Lines(output) {
		if !strings.HasSuffix(text, "\n") {
			continue
		}
		var line accessLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if line.Gate.Route == "version" { // Gatepost asks Envoy which version it has
			continue
		}
		if line.Time == "" || line.Client.Address != "127.0.0.1" {
			t.Errorf("incomplete: %s", text)
		}
		fields := []string{fmt.Sprint(line.HTTP.Response.Status), line.URL.Path, line.Service.Name, line.Gate.Decision, line.Gate.Reason, line.User.ID}
		if line.Session.ID != "" {
			fields = append(fields, "session")
		}
		short = append(short, strings.Join(strings.Fields(strings.Join(fields, " ")), " "))
	}
	return short
}

// TestAnAccessLogThatNobodyReadsStopsNoTraffic: a full pipe as standard output delays no request and no exit.
func TestAnAccessLogThatNobodyReadsStopsNoTraffic(t *testing.T) {
	t.Parallel()
	_, stdout := fullPipe(t)
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	shop.gateway = start(t, "access_log: {format: ecs}\n"+shop.definitions(), setup{Stdout: stdout})
	trafficGoesOn(t, shop)
	ends(t, shop)
}
