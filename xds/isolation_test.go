package xds

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// settings has a change of each field of a service, in the order in which they are made. UP and OTHER are upstreams.
// statuses, if given, are those of two requests to the service after it.
var settings = []struct{ field, service, statuses string }{
	{"upstreams", `authenticate: false, upstreams: [UP, OTHER]`, "200 200"},
	{"allowed_methods", `authenticate: false, upstreams: [UP], allowed_methods: [POST]`, "405 405"},
	{"keep_prefix", `authenticate: false, upstreams: [UP], keep_prefix: true`, "200 200"},
	{"forward_token", `authenticate: false, upstreams: [UP], forward_token: true`, "200 200"},
	{"timeout", `authenticate: false, upstreams: [UP], timeout: 7s`, "200 200"},
	{"rate_limits", `authenticate: false, upstreams: [UP], rate_limits: [{requests: 1, per: 24h, by: service}]`, "200 429"},
	{"max_request_bytes", `authenticate: false, upstreams: [UP], max_request_bytes: 1KB`, "200 200"},
	{"compression", `authenticate: false, upstreams: [UP], compression: true`, "200 200"},
	{"maintenance", `authenticate: false, upstreams: [UP], maintenance: {}`, "503 503"},
	{"response_headers", `authenticate: false, upstreams: [UP], response_headers: {set: {X-Changed: 1}}`, "200 200"},
	{"request_headers", `authenticate: false, upstreams: [UP], request_headers: {set: {X-Changed: 1}}`, "200 200"},
	{"rate_limits", `authenticate: false, upstreams: [UP], rate_limits: [{requests: 1, per: 24h, by: address}]`, "200 429"},
	{"rate_limits", `authenticate: false, upstreams: [UP], rate_limits: [{requests: 1, by: address, scope: cluster}]`, ""},
	{"health_check", `authenticate: false, upstreams: [UP], health_check: /healthz`, ""},
	{"outlier_detection", `authenticate: false, upstreams: [UP, OTHER], outlier_detection: false`, "200 200"},
	{"retries", `authenticate: false, upstreams: [UP], retries: {count: 2, on: [reset]}`, "200 200"},
	{"limits", `authenticate: false, upstreams: [UP], limits: {connections: 9, pending: 9, requests: 9}`, "200 200"},
	{"canary", `authenticate: false, upstreams: [UP], canary: {upstreams: [OTHER], percent: 50}`, "200 200"},
	{"affinity", `authenticate: false, upstreams: [UP, OTHER], affinity: cookie`, "200 200"},
	{"websocket", `authenticate: false, upstreams: [UP], websocket: true`, "200 200"},
	{"hosts", `authenticate: false, upstreams: [UP], hosts: [b.example]`, "404 404"},
	{"grpc", `authenticate: false, upstreams: ["h2c://127.0.0.1:1"], grpc: true`, ""},
	{"upstream_tls", `authenticate: false, upstreams: ["https://127.0.0.1:1"], upstream_tls: {server_name: b.example}`, ""},
	{"redirect", `authenticate: false, redirect: {to: "https://new.example", status: 308}`, "308 308"},
	{"authenticate", `upstreams: [UP]`, ""},
	{"scopes", `upstreams: [UP], scopes: [read]`, ""},
}

// TestAChangeOfAServiceTouchesNoConnection: neither of another service, a WebSocket among them, nor of its own. All
// settings of a service are in routes and clusters, and none in a listener. None is worth a warning of Envoy.
func TestAChangeOfAServiceTouchesNoConnection(t *testing.T) {
	t.Parallel()
	other := envoytest.Upstream(t)
	options := testOptions
	options.ClusterLimits = true
	snapshot := func(listen, upstream, b string) *Snapshot {
		chat := fmt.Sprintf("  - {name: chat, path: /chat, authenticate: false, websocket: true, upstreams: [%q]}\n", upstream)
		b = strings.NewReplacer("UP", fmt.Sprintf("%q", upstream), "OTHER", fmt.Sprintf("%q", other.URL())).Replace(b)
		return buildWith(t, openServices(listen, upstream, chat+"  - {name: b, path: /b, "+b+"}\n", "a"), options)
	}
	const first = "authenticate: false, upstreams: [UP]"
	l := startLive(t, func(listen, upstream string) *Snapshot { return snapshot(listen, upstream, first) })
	l.upstream.SetHandler(echo)
	// All requests use one connection. Go's client opens another one if it is late for the first, on a busy machine.
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	get := func(path string) int {
		t.Helper()
		_, _ = conn.Write(request("GET", path))
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("%s: the connection was closed: %v", path, err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil || response.Close {
			t.Errorf("%s: the connection is closed", path)
		}
		return response.StatusCode
	}
	get("/a")
	chat := l.chats("/chat")
	chat("first")
	listener := snapshot(l.addr, l.upstream.URL(), first).listeners.version
	updates := l.envoy.Stat("listener_manager.lds.update_success")
	for _, change := range settings {
		next := snapshot(l.addr, l.upstream.URL(), change.service)
		if next.listeners.version != listener {
			t.Errorf("%s: the listener changes", change.field)
		}
		l.publish(next)
		l.delivered(next)
		if got := get("/a"); got != 200 {
			t.Errorf("after %s: %d", change.field, got)
		}
		chat(change.field)
		if got := fmt.Sprint(get("/b"), get("/b")); change.statuses != "" && got != change.statuses {
			t.Errorf("%s: %s, want %s", change.field, got, change.statuses)
		}
	}
	for _, name := range []string{"listener_modified", "listener_in_place_updated", "listener_removed"} {
		if n := l.envoy.Stat("listener_manager." + name); n != 0 {
			t.Errorf("%s: %d, want 0", name, n)
		}
	}
	if n := l.envoy.Stat("listener_manager.lds.update_success"); n != updates {
		t.Errorf("%d updates of listeners, want %d", n, updates)
	}
	for line := range strings.Lines(l.envoy.Log()) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			t.Errorf("a setting makes Envoy log %s", line)
		}
	}
}

// TestAChangeOfTheTimeoutEndsNoRequestOfItsService: the timeout is in the cluster too. Envoy makes another one of an
// upstream with an IP address, and Gatepost another one of an upstream with a health check, whose old one is removed.
func TestAChangeOfTheTimeoutEndsNoRequestOfItsService(t *testing.T) {
	t.Parallel()
	held, release := hold()
	snapshot := func(listen, upstream, timeout string) *Snapshot {
		return build(t, openServices(listen, upstream, fmt.Sprintf(`
  - {name: plain, path: /plain, authenticate: false, timeout: %[2]s, upstreams: [%[1]q]}
  - {name: checked, path: /checked, authenticate: false, timeout: %[2]s, upstreams: [%[1]q], health_check: {path: /healthz, timeout: 2s}}
`, upstream, timeout)))
	}
	l := startLiveWith(t, patient, func(listen, upstream string) *Snapshot { return snapshot(listen, upstream, "100s") })
	reached := make(chan struct{}, 2)
	l.upstream.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			reached <- struct{}{}
			<-held
		}
	})
	t.Cleanup(release)
	envoytest.Eventually(t, "a healthy upstream", func() bool { return l.envoy.Stat("cluster.service/checked.membership_healthy") == 1 })
	client := envoytest.Client(t)
	answers := make(chan string, 2)
	for _, service := range []string{"plain", "checked"} {
		go func() {
			status, _, err := l.get(client, "/"+service+"/slow")
			answers <- fmt.Sprint(status, " ", err)
		}()
		<-reached
	}
	l.serves(snapshot(l.addr, l.upstream.URL(), "200s"))
	l.eventually("the old cluster to be removed", func(progress) bool { return l.envoy.Stat("cluster_manager.cluster_removed") >= 1 })
	if n := l.envoy.Stat("cluster_manager.cluster_modified"); n != 1 {
		t.Errorf("%d clusters have been changed in place, want 1", n)
	}
	for _, path := range []string{"/plain", "/checked"} {
		if status, _, err := l.get(client, path); err != nil || status != http.StatusOK {
			t.Errorf("a new request to %s: %d %v", path, status, err)
		}
	}
	release()
	for range 2 {
		if got := <-answers; got != "200 <nil>" {
			t.Errorf("a request under way: %s", got)
		}
	}
}

// TestEverySettingOfAServiceIsChanged holds the table to the schema.
func TestEverySettingOfAServiceIsChanged(t *testing.T) {
	elsewhere := []string{
		"name", "path", // another service
		"client_certificate", // TestAClientCertificateOfAServiceLeavesTheListener
	}
	fields := new(gatewayv1.Service).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		changed := false
		for _, c := range settings {
			changed = changed || c.field == name && strings.Contains(c.service, name+":") || name == "authenticate"
		}
		if !changed && !slices.Contains(elsewhere, name) {
			t.Errorf("no change of %s is tried", name)
		}
	}
}

// echo answers 200, or sends back what comes over a WebSocket.
func echo(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		return
	}
	conn, buffer, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
	_, _ = io.Copy(conn, buffer)
}

// chats opens a WebSocket, and returns a function that expects a text to come back over it.
func (l *live) chats(path string) func(text string) {
	l.t.Helper()
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	_, _ = conn.Write(request("GET", path, "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="))
	reader := bufio.NewReader(conn)
	if response, err := http.ReadResponse(reader, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		l.t.Fatalf("opening a WebSocket: %v, %v", response, err)
	}
	return func(text string) {
		l.t.Helper()
		_, _ = io.WriteString(conn, text)
		back := make([]byte, len(text))
		if _, err := io.ReadFull(reader, back); err != nil || string(back) != text {
			l.t.Fatalf("the WebSocket sends %q back for %q: %v", back, text, err)
		}
	}
}
