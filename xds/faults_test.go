package xds

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"gatepost/envoy/envoytest"
)

// A fault is one upstream of two that fails in its own way.
type fault struct {
	name, scheme string
	start        func(t *testing.T, b *bad)
	// more are settings of the service.
	more string
	// want is what a client sees: of ten requests by GET in each of the columns.
	want [4]string
}

// bad is an upstream that fails.
type bad struct {
	addr string
	// acted counts the requests that it has read.
	acted atomic.Int64
}

// The columns of the table in docs/reliability.md, as settings of a service.
var columns = [4]struct{ title, settings string }{
	{"`retries: 0`, `outlier_detection: false`", "retries: 0, outlier_detection: false"},
	{"default", "retries: 1"},
	{"`retries: {on: [reset, gateway-error]}`", "retries: {on: [reset, gateway-error]}"},
	{"`health_check: /healthz` alone", "retries: 0, outlier_detection: false, health_check: {path: /healthz, interval: 100ms, timeout: 200ms}"},
}

var faults = []fault{
	{"refuses connections", "http", func(t *testing.T, b *bad) { b.addr = envoytest.Addr(t) }, "",
		[4]string{"5 × 503", "200", "200", "200"}},
	{"does not answer connections", "http", blackHole, "",
		[4]string{"5 × 503", "200", "200", "200"}},
	{"refuses streams (HTTP/2)", "h2c", refuseStreams, "",
		[4]string{"5 × 503", "200", "200", "200"}},
	{"reads the request and resets the connection", "http", handle(reset), "",
		[4]string{"5 × 503", "5 × 503, then 200", "200", "200"}},
	{"responds 503", "http", handle(respond(http.StatusServiceUnavailable)), "",
		[4]string{"5 × 503", "5 × 503, then 200", "200", "200"}},
	{"responds 500", "http", handle(respond(http.StatusInternalServerError)), "",
		[4]string{"5 × 500", "5 × 500", "5 × 500", "200"}},
	{"takes longer than `timeout`", "http", handle(hang), ", timeout: 300ms",
		[4]string{"5 × 504", "5 × 504, then 200", "5 × 504, then 200", "200"}},
}

// blackHole is a socket whose queue is full: Linux drops the first packet of each further connection.
func blackHole(t *testing.T, b *bad) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	b.addr = fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for { // until the queue is full
		conn, err := net.DialTimeout("tcp", b.addr, 200*time.Millisecond)
		if err != nil {
			return
		}
		t.Cleanup(func() { conn.Close() })
	}
}

func refuseStreams(t *testing.T, b *bad) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			context := t.Context()
			serving.Go(func() {
				defer conn.Close()
				go func() { <-context.Done(); conn.Close() }()
				preface := make([]byte, len(http2.ClientPreface))
				framer := http2.NewFramer(conn, conn)
				if _, err := io.ReadFull(conn, preface); err != nil || framer.WriteSettings() != nil {
					return
				}
				for {
					frame, err := framer.ReadFrame()
					if err != nil {
						return
					}
					switch frame := frame.(type) {
					case *http2.SettingsFrame:
						if !frame.IsAck() {
							err = framer.WriteSettingsAck()
						}
					case *http2.HeadersFrame:
						err = framer.WriteRSTStream(frame.StreamID, http2.ErrCodeRefusedStream)
					}
					if err != nil {
						return
					}
				}
			})
		}
	})
}

// handle starts an upstream with a handler.
func handle(h func(http.ResponseWriter, *http.Request)) func(*testing.T, *bad) {
	return func(t *testing.T, b *bad) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if r.URL.Path != "/healthz" {
				b.acted.Add(1)
			}
			h(w, r)
		}))
		t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
		b.addr = server.Listener.Addr().String()
	}
}

func respond(status int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func reset(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// good starts an upstream that answers everything, by HTTP/1.1 and HTTP/2.
func good(t *testing.T, acted *atomic.Int64) (addr string) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path != "/healthz" {
			acted.Add(1)
		}
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// statuses sends requests one after the other, and counts the statuses.
func statuses(t *testing.T, client *http.Client, method, url, body string, n int) map[int]int {
	t.Helper()
	got := map[int]int{}
	for range n {
		response, err := envoytest.Send(t.Context(), client, method, url, body)
		if err != nil {
			t.Errorf("%s %s: %v", method, url, err)
			return got
		}
		got[response.Status]++
	}
	return got
}

// seen is what a client sees, in the words of the table.
func seen(counts map[int]int) string {
	if len(counts) == 1 && counts[200] > 0 {
		return "200"
	}
	var out []string
	for _, status := range slices.Sorted(maps.Keys(counts)) {
		if status != 200 {
			out = append(out, fmt.Sprintf("%d × %d", counts[status], status))
		}
	}
	return strings.Join(out, ", ")
}

// TestWhatClientsSeeOfAFaultyUpstream sends ten requests to a service of which one of two upstreams fails, and ten more
// when the gateway has had the time to find out. docs/reliability.md has the result as a table.
func TestWhatClientsSeeOfAFaultyUpstream(t *testing.T) {
	t.Parallel()
	envoytest.Require(t)
	addr := envoytest.Addr(t)
	var text strings.Builder
	fmt.Fprintf(&text, "listen: %q\nservices:\n", addr)
	bads := make([][len(columns) + 1]*bad, len(faults))
	var acted atomic.Int64
	for i, f := range faults {
		for j, c := range columns {
			bads[i][j] = new(bad)
			f.start(t, bads[i][j])
			fmt.Fprintf(&text, "  - {name: s%d.%d, path: /s%[1]d.%d, authenticate: false, upstreams: [%q, %q], %s%s}\n",
				i, j, f.scheme+"://"+bads[i][j].addr, f.scheme+"://"+good(t, &acted), c.settings, f.more)
		}
	}
	envoy := envoytest.Start(t, envoytest.Options{Resources: messages(build(t, text.String())), Listen: []string{addr}})
	table := [][]string{}
	for range faults {
		table = append(table, make([]string, len(columns)))
	}
	var all sync.WaitGroup
	for i, f := range faults {
		for j := range columns {
			all.Go(func() {
				url, stat := fmt.Sprintf("http://%s/s%d.%d", addr, i, j), fmt.Sprintf("cluster.service/s%d.%d.", i, j)
				if j == 3 {
					envoytest.Eventually(t, "the health check of "+f.name, func() bool {
						return envoy.Stat(stat+"membership_healthy") == 1 && envoy.Stat(stat+"health_check.failure") > 0 && envoy.Stat(stat+"health_check.success") > 0
					})
				}
				client := envoytest.Client(t)
				cell := seen(statuses(t, client, http.MethodGet, url, "", 10))
				if envoy.Stat(stat+"outlier_detection.ejections_enforced_total") > 0 && cell != "200" {
					envoytest.Eventually(t, "the ejection for "+f.name, func() bool { return envoy.Stat(stat+"membership_healthy") == 1 })
					cell += ", then " + seen(statuses(t, client, http.MethodGet, url, "", 10))
				}
				table[i][j] = cell
			})
		}
	}
	all.Wait()
	for i, f := range faults {
		for j, c := range columns {
			if table[i][j] != f.want[j] {
				t.Errorf("an upstream that %s, with %s: %s, want %s", f.name, c.title, table[i][j], f.want[j])
			}
		}
	}
	checkTable(t, table)
}

// checkTable compares the table with docs/reliability.md, or writes it there.
func checkTable(t *testing.T, cells [][]string) {
	t.Helper()
	const page, begin, end = "../docs/reliability.md", "<!-- table: go test ./xds -run Faulty -update -->\n", "<!-- end -->"
	var b strings.Builder
	b.WriteString("| one of two upstreams | ")
	for _, c := range columns {
		b.WriteString(c.title + " | ")
	}
	b.WriteString("\n|---" + strings.Repeat("|---", len(columns)) + "|\n")
	for i, f := range faults {
		fmt.Fprintf(&b, "| %s | %s |\n", f.name, strings.Join(cells[i], " | "))
	}
	made := strings.ReplaceAll(b.String(), " | \n", " |\n")
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	written, after, closed := strings.Cut(rest, end)
	switch {
	case !found || !closed:
		t.Fatalf("%s has no place for the table", page)
	case *update:
		if err := os.WriteFile(page, []byte(before+begin+made+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
	case written != made:
		t.Errorf("the table of %s is not what was measured (-update writes it):\n%s", page, made)
	}
}

// TestNoUpstreamActsTwice: what an upstream may have acted on is not sent again, unless it is idempotent and asked for.
func TestNoUpstreamActsTwice(t *testing.T) {
	t.Parallel()
	envoytest.Require(t)
	var one, other bad
	handle(reset)(t, &one)
	handle(reset)(t, &other)
	addr := envoytest.Addr(t)
	ups := fmt.Sprintf(`authenticate: false, outlier_detection: false, upstreams: ["http://%s", "http://%s"]`, one.addr, other.addr)
	envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf(`
listen: %q
services:
  - {name: usual, path: /usual, %s}
  - {name: asked, path: /asked, retries: {count: 1, on: [reset]}, %[2]s}
  - {name: always, path: /always, retries: {count: 1, on: [reset], idempotent_only: false}, %[2]s}
`, addr, ups)))})
	client := envoytest.Client(t)
	for _, c := range []struct {
		method, path string
		tries        int64
	}{
		{"GET", "/usual", 1}, {"POST", "/usual", 1}, {"DELETE", "/usual", 1},
		{"GET", "/asked", 2}, {"PUT", "/asked/5", 2}, {"HEAD", "/asked", 2}, {"POST", "/asked", 1}, {"PATCH", "/asked/5", 1}, {"POST", "/ASKED", 1},
		{"POST", "/always", 2},
	} {
		one.acted.Store(0)
		other.acted.Store(0)
		got := statuses(t, client, c.method, "http://"+addr+c.path, "", 1)
		if got[503] != 1 || one.acted.Load()+other.acted.Load() != c.tries || one.acted.Load() > 1 || other.acted.Load() > 1 {
			t.Errorf("%s %s: %v after tries at %d and %d, want 503 after %d", c.method, c.path, got, one.acted.Load(), other.acted.Load(), c.tries)
		}
	}
}

// TestABodyIsSentAgainUpToALimit: above it the answer is the 503 of a service without retries, and no 507.
func TestABodyIsSentAgainUpToALimit(t *testing.T) {
	t.Parallel()
	envoytest.Require(t)
	var acted atomic.Int64
	addr := envoytest.Addr(t)
	envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf(`
listen: %q
services:
  - {name: half, path: /half, authenticate: false, outlier_detection: false, upstreams: ["http://%s", "http://%s"]}
  - {name: dead, path: /dead, authenticate: false, upstreams: ["http://%[2]s"]}
`, addr, envoytest.Addr(t), good(t, &acted))))})
	client := envoytest.Client(t)
	if got := statuses(t, client, http.MethodPost, "http://"+addr+"/half", strings.Repeat("x", retryBody), 8); got[200] != 8 || acted.Load() != 8 {
		t.Errorf("bodies up to the limit: %v, and the upstream acted on %d", got, acted.Load())
	}
	if got := statuses(t, client, http.MethodPost, "http://"+addr+"/dead", strings.Repeat("x", 8*retryBody), 4); got[503] != 4 {
		t.Errorf("bodies above the limit: %v, want 503", got)
	}
}

// TestLimitsRefuseWhatIsAbove: one service at its limit does not affect another.
func TestLimitsRefuseWhatIsAbove(t *testing.T) {
	t.Parallel()
	envoytest.Require(t)
	held, release := hold()
	reached := make(chan struct{}, 8)
	up := envoytest.Upstream(t)
	up.SetHandler(func(http.ResponseWriter, *http.Request) {
		reached <- struct{}{}
		<-held
	})
	t.Cleanup(release)
	addr := envoytest.Addr(t)
	envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf(`
listen: %q
services:
  - {name: small, path: /small, authenticate: false, upstreams: [%q], limits: {requests: 2}}
  - {name: large, path: /large, authenticate: false, upstreams: [%[2]q]}
`, addr, up.URL())))})
	var sent sync.WaitGroup
	get := func(path string) {
		sent.Go(func() {
			if got := statuses(t, envoytest.Client(t), http.MethodGet, "http://"+addr+path, "", 1); got[200] != 1 {
				t.Errorf("%s below the limit: %v", path, got)
			}
		})
		<-reached
	}
	get("/small")
	get("/small")
	if got := statuses(t, envoytest.Client(t), http.MethodGet, "http://"+addr+"/small", "", 3); got[503] != 3 {
		t.Errorf("above the limit: %v, want 503", got)
	}
	get("/large")
	release()
	sent.Wait()
}
