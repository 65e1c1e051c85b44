package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"gatepost/envoy/envoytest"
)

// oversized: requests with too large heads are rejected before authorization (CVE-2026-26998,
// CVE-2025-25207).
func (f *fortress) oversized(t *testing.T) {
	const tooLarge = http.StatusRequestHeaderFieldsTooLarge
	many := func(n int) (lines []string) {
		for i := range n {
			lines = append(lines, fmt.Sprintf("x-%d: y", i))
		}
		return lines
	}
	for name, lines := range map[string][]string{
		"hundreds of headers":      many(200),
		"a few headers too many":   many(70),
		"the same header for ever": slices.Repeat([]string{"x: y"}, 1000),
		"one long header":          {"x: " + strings.Repeat("y", 17<<10)},
		"one long name":            {strings.Repeat("y", 17<<10) + ": x"},
		"many long headers":        slices.Repeat([]string{"x: " + strings.Repeat("y", 4000)}, 10),
		"one long cookie":          {"cookie: " + strings.Repeat("a=b; ", 4000)},
		"a megabyte":               {"x: " + strings.Repeat("y", 1<<20)},
	} {
		for _, path := range []string{"/orders", "/items", "/token"} {
			// If the gateway does not read the rest of the head, the connection can be reset before
			// the response is read.
			f.refused(t, name, f.Raw(t, rawGet(path, lines...)), tooLarge, 0)
		}
		f.refused(t, name+" with a token", f.Raw(t, rawGet("/orders", append(lines, "authorization: "+f.token)...)), tooLarge, 0)
	}
	for _, path := range []string{"/items/" + strings.Repeat("a", 20<<10), "/orders?" + strings.Repeat("a", 20<<10), "/" + strings.Repeat("../", 8<<10) + "orders"} {
		f.refused(t, path, f.Raw(t, rawGet(path)), tooLarge, http.StatusRequestURITooLong, 0)
	}
	// Envoy adds its own headers and checks the limits again. A request that exceeds them only then
	// is also "too large", not an internal error.
	for n := 54; n <= 66; n += 2 {
		f.fits(t, fmt.Sprint(n, " headers"), rawGet("/orders", append(many(n), "authorization: "+f.token)...))
	}
	for size := 15_900; size <= 16_400; size += 100 {
		f.fits(t, fmt.Sprint("a header of ", size), rawGet("/orders", "authorization: "+f.token, "x: "+strings.Repeat("y", size)))
		f.fits(t, fmt.Sprint("a path of ", size), rawGet("/orders/"+strings.Repeat("a", size), "authorization: "+f.token))
	}
	got := f.Raw(t, rawGet("/items", many(70)...))
	if got.Status != tooLarge || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("too many headers: %+v, want a 431 in JSON", got)
	}
	var fields [][2]string
	for range 200 {
		fields = append(fields, [2]string{"x", "y"})
	}
	f.refused(t, "hundreds of headers over HTTP/2", f.H2(t, "GET", "/items", "", fields...), tooLarge, 0)
	f.refused(t, "one long header over HTTP/2", f.H2(t, "GET", "/items", "", [2]string{"x", strings.Repeat("y", 12<<10)}, [2]string{"z", strings.Repeat("y", 12<<10)}), tooLarge, 0)

	// One cookie in many small parts, which HTTP/2 joins.
	fields = nil
	for range 1000 {
		fields = append(fields, [2]string{"cookie", "a=b"})
	}
	f.refused(t, "crumbs of a cookie over HTTP/2", f.H2(t, "GET", "/orders", "", fields...), tooLarge, 0, http.StatusUnauthorized)

	login := f.Raw(t, rawWithBody("POST", "/token", `{"username":"`+strings.Repeat("a", 4<<20)+`"}`, "content-type: application/json"))
	if login.Status == http.StatusOK || login.Header.Get("token") != "" {
		t.Errorf("a login of four megabytes: %d", login.Status)
	}
}

// fits checks that a request is either served or rejected as too large.
func (f *fortress) fits(t *testing.T, what, request string) {
	t.Helper()
	got := f.Raw(t, request)
	if got.Status != http.StatusOK && (got.Status != http.StatusRequestHeaderFieldsTooLarge || got.Header.Get("Content-Type") != "application/json") {
		t.Errorf("%s: %d %.200s", what, got.Status, got.Body)
	}
	f.forget()
}

// floods are attacks that exhausted HTTP/2 servers. Other clients must still be served (unharmed),
// and nothing may reach an upstream.
func (f *fortress) floods(t *testing.T) {
	head := func(fields ...string) []byte {
		var block bytes.Buffer
		encoder := hpack.NewEncoder(&block)
		for _, field := range append([]string{":method GET", ":scheme http", ":authority h"}, fields...) {
			name, value, _ := strings.Cut(field, " ")
			if err := encoder.WriteField(hpack.HeaderField{Name: name, Value: value}); err != nil {
				t.Fatal(err)
			}
		}
		return block.Bytes()
	}
	for name, flood := range map[string]func(*http2.Framer, int) error{
		"CVE-2023-44487 streams that are reset at once": func(framer *http2.Framer, i int) error {
			stream := uint32(2*i + 1)
			if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head(":path /orders"), EndHeaders: true, EndStream: true}); err != nil {
				return err
			}
			return framer.WriteRSTStream(stream, http2.ErrCodeCancel)
		},
		"CVE-2024-30255 a head that goes on for ever": func(framer *http2.Framer, i int) error {
			if i == 0 {
				return framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head(":path /orders"), EndStream: true})
			}
			return framer.WriteContinuation(1, false, nil)
		},
		"CVE-2019-9512 pings": func(framer *http2.Framer, _ int) error { return framer.WritePing(false, [8]byte{}) },
		"CVE-2019-9515 settings": func(framer *http2.Framer, _ int) error {
			return framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		},
		"CVE-2019-9518 empty frames": func(framer *http2.Framer, i int) error {
			if i == 0 {
				return framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head(":path /items"), EndHeaders: true})
			}
			return framer.WriteData(1, false, nil)
		},
		"CVE-2019-9513 priorities": func(framer *http2.Framer, i int) error {
			return framer.WritePriority(uint32(2*i+1), http2.PriorityParam{Weight: 1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f.forget()
			const frames = 100_000 // enough even if a busy machine lets Envoy flush its replies in between
			if !f.endsConnection(t, frames, flood) {
				t.Errorf("the gateway took %d frames", frames)
			}
			if raw := f.secured.Raw(); raw != "" {
				t.Errorf("the secured service got %q", raw)
			}
			want(t, "another client", f.Do("GET", "/items", ""), http.StatusOK, "")
		})
	}
}

// endsConnection writes frames until the gateway closes the connection, and reports whether it did.
func (f *fortress) endsConnection(t *testing.T, frames int, write func(*http2.Framer, int) error) bool {
	t.Helper()
	conn, err := f.dial(http2.NextProtoTLS)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(envoytest.Deadline)); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn) // discards the replies until the gateway closes the connection
	}()
	framer := http2.NewFramer(conn, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		if err := write(framer, i); err != nil {
			return true
		}
	}
	select {
	case <-gone:
		return true
	case <-time.After(2 * time.Second): // it has had all the frames and goes on listening
		return false
	}
}

// ownServers: no path leads to Envoy's or Gatepost's own servers, and a page of another origin
// cannot use the admin address (CVE-2025-24030, CVE-2021-32783, CVE-2026-27589).
func (f *fortress) ownServers(t *testing.T) {
	for _, path := range []string{
		"/config_dump", "/stats", "/stats/prometheus", "/clusters", "/ready", "/server_info", "/logging", "/quitquitquit", "/healthz", "/readyz", "/metrics", "/api/v1/status", "/admin", "/debug/pprof/",
		"/envoy.service.auth.v3.Authorization/Check", "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", "/grpc.health.v1.Health/Check",
		"/users/authenticate", "/token/../metrics", "/token/../api/v1/status", "/token/sessions/../../../metrics", "/token/metrics", "/token/healthz",
	} {
		for _, method := range []string{"GET", "POST"} {
			f.refused(t, method+" "+path, f.Raw(t, rawRequest(method, path, "content-length: 0")), http.StatusNotFound)
		}
		f.refused(t, "gRPC "+path, f.H2(t, "POST", path, "\x00\x00\x00\x00\x00", [2]string{"content-type", "application/grpc"}), http.StatusNotFound, http.StatusOK)
	}
	for _, header := range []string{"Sec-Fetch-Site: cross-site", "Origin: https://evil.example"} {
		name, value, _ := strings.Cut(header, ": ")
		r, err := http.NewRequest("DELETE", "http://"+f.Admin+"/api/v1/users/alice/sessions", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(name, value)
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusForbidden {
			t.Errorf("%s: the admin address returned %d, want 403", header, response.StatusCode)
		}
	}
	want(t, "alice's token afterwards", f.Do("GET", "/orders", "", "Authorization: "+f.token), http.StatusOK, "")
}

// TestHeadersNearTheLimitsLeaveEnvoyRunning sends requests whose lengths are close to the limits of the module in
// Envoy: of the message that it computes from four headers, of their number, and of all headers. The same process of
// Envoy must serve all of them.
//
// GATEPOST_SEED repeats a run; GATEPOST_CASES is the number of requests.
func TestHeadersNearTheLimitsLeaveEnvoyRunning(t *testing.T) {
	t.Parallel()
	const message, number, bytes = 4096 - 16 - 4*2, 64, 16 << 10
	seed, cases := uint64(envoytest.Number(t, "GATEPOST_SEED", time.Now().UnixNano())), int(envoytest.Number(t, "GATEPOST_CASES", 1000))
	t.Logf("to repeat this run: GATEPOST_SEED=%d GATEPOST_CASES=%d", seed, cases)
	c := &checking{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
	text := strings.Replace(c.definitions("", `origins: ["https://shop.example"]`), "tokens: {", "tokens: {cookie: __Host-s, subprotocol: gatepost.bearer, ", 1)
	g := start(t, text, setup{})
	c.gateways = []*gateway{g}
	login := g.Do("POST", "/token", `{"username":"alice","password":"right"}`, "Origin: https://shop.example")
	token, envoy := login.Header.Get("token"), envoyOf(g.command.Process.Pid)
	if token == "" {
		t.Fatalf("logging in: %d %v %s", login.Status, login.Header, login.Body)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	near := func(limit int) int { return max(0, limit+random.IntN(25)-12) }
	statuses := map[int]int{}
	for n := range cases {
		var fields [][2]string
		size := len(":method:scheme:authority:path:GEThttph/orders/5")
		add := func(name, value string) {
			fields, size = append(fields, [2]string{name, value}), size+len(name)+len(value)
		}
		left := message
		for i, name := range []string{"authorization", "origin", "cookie", "sec-websocket-protocol"} {
			value := ""
			switch kind := random.IntN(6); {
			case i == 0 && kind < 3:
				value = token
			case i == 1 && kind < 3:
				value = "https://shop.example"
			case kind < 2: // absent
			case kind == 2:
				value = strings.Repeat("x", random.IntN(8<<10))
			default:
				value = strings.Repeat("x", near(left))
			}
			left = max(0, left-len(value))
			if value != "" {
				add(name, value)
			}
		}
		for many := near(number - 8); n%4 == 0 && len(fields) < many; { // Envoy adds its own
			add(fmt.Sprint("x-", len(fields)), "")
		}
		if n%4 == 1 {
			add("x-long", strings.Repeat("x", near(max(0, bytes-200-size))+random.IntN(200)))
		}
		var lines []string
		for _, field := range fields {
			lines = append(lines, field[0]+": "+field[1])
		}
		send := func() (answer, error) { return g.TryRaw(rawGet("/orders/5", lines...)) }
		if random.IntN(2) == 0 {
			send = func() (answer, error) { return g.TryH2("GET", "/orders/5", "", fields...) }
		}
		got, err := send()
		if err != nil {
			t.Fatalf("request %d: %v", n, err)
		}
		statuses[got.Status]++
		if now := envoyOf(g.command.Process.Pid); now != envoy {
			t.Fatalf("request %d, with headers of %d bytes, ended Envoy:\n%.300q", n, size, lines)
		}
	}
	if starts, deaths := g.Metric("gatepost_envoy_starts_total"), g.Metric("gatepost_envoy_deaths_total"); starts != 1 || deaths != 0 {
		t.Errorf("%v starts and %v deaths of Envoy", starts, deaths)
	}
	if hits := c.hits(); hits == 0 || statuses[http.StatusUnauthorized] < cases/4 {
		t.Errorf("%v requests were let pass by the module, answers %v: little was tried", hits, statuses)
	}
	t.Logf("answers: %v, %v hits", statuses, c.hits())
}
