package xds

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatepost/envoy/envoytest"
)

// TestEachRefusalBeforeARouteHasALine: with the decision and the reason that `gatepost explain` gives.
func TestEachRefusalBeforeARouteHasALine(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "access_log: {format: ecs}\n"+shop+"  - {name: any, path: /any, authenticate: false, upstreams: [\"PUBLIC\"]}\n")
	const rest = "host: a\r\nconnection: close\r\n\r\n"
	many := ""
	for n := range maxHeaders {
		many += fmt.Sprintf("x-%d: y\r\n", n)
	}
	cases := []struct{ request, want string }{
		{"GET /items HTTP/1.1\r\nx: " + strings.Repeat("x", maxHeadersKiB<<10) + "\r\n" + rest, "431 deny malformed"},
		{"GET /items HTTP/1.1\r\n" + many + rest, "431 deny malformed"},
		{"GET /items HTTP/1.1\r\nhost: a b\r\n\r\n", "400 deny malformed"},
		{"GET /items HTTP/1.1\r\nconnection: close\r\n\r\n", "400 deny malformed"},
		{"GET /items HTTP/1.0\r\n" + rest, "426 deny malformed"},
		{"junk\r\n\r\n", "400 deny malformed"},
		{"BREW /items HTTP/1.1\r\n" + rest, "400 deny malformed"},
		{"GET /items HTTP/1.1\r\nx_y: 1\r\n" + rest, "400 deny malformed"},
		{"GET /items HTTP/1.1\r\nx: a\x00b\r\n" + rest, "400 deny malformed"},
		{"POST /items HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n" + rest, "400 deny malformed"},
		{"POST /items HTTP/1.1\r\ntransfer-encoding: gzip\r\n" + rest, "501 deny malformed"},
		{"GET https://a/items HTTP/1.1\r\n" + rest, "403 deny malformed"},
		{"OPTIONS * HTTP/1.1\r\n" + rest, "404 deny malformed"},
		{"CONNECT a:80 HTTP/1.1\r\n" + rest, "404 deny not_found"},
		// A part of the body that cannot be read comes after the decision, and counts.
		{"POST /any HTTP/1.1\r\ntransfer-encoding: chunked\r\n" + rest + "x\r\n", "400 any deny malformed"},
	}
	var want, got []string
	for _, c := range cases {
		envoytest.RawRequest(t, g.addr, []byte(c.request))
		want = append(want, c.want)
	}
	for _, line := range g.log.await(t, len(cases)) {
		got = append(got, endOf(t, line))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestARefusalByHTTP2HasALine: Envoy resets the stream, and there is no response.
func TestARefusalByHTTP2HasALine(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "access_log: {format: ecs}\n"+shop)
	client := &http.Client{Transport: &http.Transport{Protocols: new(http.Protocols)}}
	client.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	request, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+g.addr+"/items", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("x_y", "1")
	if answer, err := client.Do(request); err == nil {
		t.Errorf("the response is %s", answer.Status)
	}
	if end := endOf(t, g.log.await(t, 1)[0]); end != "0 deny malformed" {
		t.Error(end)
	}
}

// TestARequestThatDoesNotArriveHasALine: with the reason.
func TestARequestThatDoesNotArriveHasALine(t *testing.T) {
	long(t)
	t.Parallel()
	g := startGateway(t, "access_log: {format: ecs}\n"+shop)
	envoytest.RawRequest(t, g.addr, []byte("GET /items HTTP/1.1\r\nhost: a\r\n"))
	if end := endOf(t, g.log.await(t, 1)[0]); end != "408 deny timed_out" {
		t.Error(end)
	}
}

// TestTooManyHeadersHaveALine: ext_authz counts them again after Gatepost has allowed the request.
func TestTooManyHeadersHaveALine(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, "access_log: {format: ecs}\n"+decidingShop, 1)
	headers := []string{"authorization: bearer " + d.login("ada", time.Hour)}
	for len(headers) < maxHeaders-6 {
		headers = append(headers, fmt.Sprintf("x-%d: y", len(headers)))
	}
	d.do("GET", "/orders/1", headers[:maxHeaders/2]...)
	d.do("GET", "/orders/1", headers...)
	lines := d.log.await(t, 2)
	want := []string{"200 orders allow token_known ada", "431 orders deny too_many_headers ada"}
	if diff := cmp.Diff(want, []string{endOf(t, lines[0]), endOf(t, lines[1])}); diff != "" {
		t.Error(diff)
	}
}
