package xds

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/net/http2"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/testcert"
	"gatepost/testrun"
)

// A fault is one upstream of two that fails in its own way.
type fault struct {
	name, scheme string
	start        func(t *testing.T, b *bad)
	// more are settings of the service. There are others if all depends on a time, which a busy machine may exceed: the
	// cell is then measured again with them.
	more []string
	// want is what a client sees, and how long: of ten requests by GET in each of the columns.
	want [4]string
}

// bad is an upstream that fails.
type bad struct {
	addr string
	// acted counts the requests that it has read, checks its health checks, and failed those to which flap responded 503.
	acted, checks, failed atomic.Int64
	// well, if set, is whether it responds 200 at the moment.
	well *atomic.Bool
}

// The columns of the table in docs/reliability.md, as settings of a service.
var columns = [4]struct{ title, settings string }{
	{"`retries: 0`, `outlier_detection: false`", "retries: 0, outlier_detection: false"},
	{"default", "retries: 1"},
	{"`retries: {on: [reset, gateway-error]}`", "retries: {on: [reset, gateway-error]}"},
	{"`health_check: /healthz` alone", "retries: 0, outlier_detection: false, health_check: {path: /healthz, interval: 100ms, timeout: 10s}"},
}

// once is no further settings, and no second measurement.
var once = []string{""}

var faults = []fault{
	{"refuses connections", "http", func(t *testing.T, b *bad) { b.addr = envoytest.Addr(t) }, once,
		[4]string{"5 × 503, while it lasts", "200", "200", "200"}},
	{"does not answer connections", "http", blackHole, once,
		[4]string{"5 × 503, while it lasts", "200", "200", "200"}},
	{"refuses streams (HTTP/2)", "h2c", refuseStreams, once,
		[4]string{"5 × 503, while it lasts", "200", "200", "200"}},
	// Each handshake, also with the other upstream, must end within 2 s.
	{"resets connections in the TLS handshake", "https", resetHandshakes, []string{"", "", ""},
		[4]string{"5 × 503, while it lasts", "200", "200", "200"}},
	{"reads the request and resets the connection", "http", handle(reset), once,
		[4]string{"5 × 503, while it lasts", "5 × 503, then 200", "200", "200"}},
	{"responds 503", "http", handle(respond(http.StatusServiceUnavailable)), once,
		[4]string{"5 × 503, while it lasts", "5 × 503, then 200", "200", "200"}},
	{"responds 500", "http", handle(respond(http.StatusInternalServerError)), once,
		[4]string{"5 × 500, while it lasts", "5 × 500, while it lasts", "5 × 500, while it lasts", "200"}},
	{"takes longer than `timeout`", "http", handle(hang), []string{", timeout: 1s", ", timeout: 10s", ", timeout: 30s"},
		[4]string{"5 × 504, while it lasts", "5 × 504, then 200", "5 × 504, then 200", "200"}},
	{"responds 503, recovers, and responds 503 again", "http", flap, once,
		[4]string{"5 × 503, while it lasts", "5 × 503, then 200", "200", "503 until 2 checks fail, then 200"}},
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
	conn, err := net.Dial("tcp", b.addr) // a queue of length 0 has room for one
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}

// accept starts an upstream that does something else than HTTP/1.1 with its connections.
func accept(t *testing.T, b *bad, serve func(net.Conn)) {
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
				serve(conn)
			})
		}
	})
}

func resetHandshakes(t *testing.T, b *bad) {
	accept(t, b, func(conn net.Conn) {
		_, _ = io.ReadFull(conn, make([]byte, 1))
		_ = conn.(*net.TCPConn).SetLinger(0)
	})
}

func refuseStreams(t *testing.T, b *bad) {
	accept(t, b, func(conn net.Conn) {
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

// handle starts an upstream with a handler.
func handle(h func(http.ResponseWriter, *http.Request)) func(*testing.T, *bad) {
	return func(t *testing.T, b *bad) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if r.URL.Path == "/healthz" {
				b.checks.Add(1)
			} else {
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

// flap starts an upstream that is well until b.well says otherwise.
func flap(t *testing.T, b *bad) {
	b.well = new(atomic.Bool)
	b.well.Store(true)
	handle(func(w http.ResponseWriter, r *http.Request) {
		if !b.well.Load() {
			if r.URL.Path == "/healthz" {
				b.failed.Add(1)
			}
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})(t, b)
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// good starts an upstream that answers everything, by HTTP/1.1 and HTTP/2.
func good(t *testing.T, acted *atomic.Int64) (addr string) { return goodOf(t, acted, nil) }

// goodOf is good with a certificate of the CA, if there is one.
func goodOf(t *testing.T, acted *atomic.Int64, ca *testcert.CA) (addr string) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path != "/healthz" {
			acted.Add(1)
		}
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	if ca == nil {
		server.Start()
	} else {
		files := t.TempDir()
		ca.Issue(filepath.Join(files, "tls.crt"), filepath.Join(files, "tls.key"))
		pair, err := tls.LoadX509KeyPair(filepath.Join(files, "tls.crt"), filepath.Join(files, "tls.key"))
		if err != nil {
			t.Fatal(err)
		}
		server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		server.StartTLS()
	}
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

// An observer is a client of one service.
type observer struct {
	t      *testing.T
	envoy  *envoytest.Envoy
	client *http.Client
	// url is that of the service, and cluster what the names of its metrics in Envoy begin with.
	url, cluster string
	// total is how many upstreams the service has.
	total int
}

func (o *observer) stat(name string) int { return o.envoy.Stat(o.cluster + name) }

func (o *observer) healthy() int { return o.stat("membership_healthy") }

// ten sends ten requests.
func (o *observer) ten() string {
	o.t.Helper()
	return seen(statuses(o.t, o.client, http.MethodGet, o.url, "", 10))
}

// leftAlone waits until the upstream that fails gets no more requests. Half of them are its, in turn.
func (o *observer) leftAlone() {
	o.t.Helper()
	envoytest.Eventually(o.t, "an upstream that fails to be left alone by "+o.url, func() bool { return o.ten() == "200" })
}

// observe sends ten requests. If then is true, it waits until the upstream that fails is left alone, or else it sends
// ten more.
func (o *observer) observe(then bool) string {
	o.t.Helper()
	first := o.ten()
	if then {
		o.leftAlone()
		return first + ", then 200"
	}
	switch more := o.ten(); {
	case more != first:
		return first + ", then " + more
	case first == "200":
		return first
	}
	return first + ", while it lasts"
}

// flapping has an upstream fail twice, and observes that it gets requests between and after the faults.
func (o *observer) flapping(b *bad, then, checked bool) (cell string) {
	o.t.Helper()
	for range 2 {
		acted := b.acted.Load()
		envoytest.Eventually(o.t, "200 by the upstream that was not well", func() bool { return o.ten() == "200" && b.acted.Load() > acted })
		failed := b.failed.Load()
		b.well.Store(false)
		round := ""
		if checked {
			o.leftAlone()
			if n := b.failed.Load() - failed; n < unhealthyAfter {
				o.t.Errorf("%d checks have failed, want %d", n, unhealthyAfter)
			}
			round = fmt.Sprintf("503 until %d checks fail, then 200", unhealthyAfter)
		} else {
			round = o.observe(then)
		}
		b.well.Store(true)
		if cell != "" && cell != round {
			o.t.Errorf("first %s, and the next time %s", cell, round)
		}
		cell = round
	}
	return cell
}

// measure returns what a client sees of an upstream that fails, or of one that is checked from when its checks fail.
func (o *observer) measure(b *bad, then, checked bool) string {
	o.t.Helper()
	if b.well != nil {
		return o.flapping(b, then, checked)
	}
	if checked {
		envoytest.Eventually(o.t, "the health checks of "+o.url, func() bool {
			return o.healthy() == 1 && o.stat("health_check.failure") > 0 && o.stat("health_check.success") > 0
		})
		o.leftAlone() // the threads learn it after the statistics
	}
	return o.observe(then)
}

// unhealthyAfter is the default of health_check.unhealthy_after.
const unhealthyAfter = 2

// TestWhatClientsSeeOfAFaultyUpstream sends ten requests to a service of which one of two upstreams fails, and ten more
// when the gateway leaves that one alone. docs/reliability.md has the result as a table.
func TestWhatClientsSeeOfAFaultyUpstream(t *testing.T) {
	long(t)
	testrun.Plain(t)
	t.Parallel()
	envoytest.Require(t)
	addr := envoytest.Addr(t)
	var text strings.Builder
	fmt.Fprintf(&text, "listen: %q\nservices:\n", addr)
	ca, options := testcert.New(t), testOptions
	options.CAFile = ca.Write(filepath.Join(t.TempDir(), "ca.crt"))
	type cell struct {
		*bad
		name string
	}
	cells := make([][len(columns)][]cell, len(faults)) // one for each of the settings
	var acted atomic.Int64
	for i, f := range faults {
		for j, c := range columns {
			for try, more := range f.more {
				b := cell{new(bad), fmt.Sprintf("s%d.%d.%d", i, j, try)}
				f.start(t, b.bad)
				issuer := ca
				if f.scheme != definitions.SchemeHTTPS {
					issuer = nil
				}
				fmt.Fprintf(&text, "  - {name: %s, path: /%[1]s, authenticate: false, upstreams: [%q, %q], %s%s}\n",
					b.name, f.scheme+"://"+b.addr, f.scheme+"://"+goodOf(t, &acted, issuer), c.settings, more)
				cells[i][j] = append(cells[i][j], b)
			}
		}
	}
	envoy := envoytest.Start(t, envoytest.Options{Resources: messages(buildWith(t, text.String(), options)), Listen: []string{addr}})
	header, table := []string{"one of two upstreams"}, [][]string{}
	for _, c := range columns {
		header = append(header, c.title)
	}
	for _, f := range faults {
		table = append(table, append([]string{f.name}, make([]string, len(columns))...))
	}
	var all sync.WaitGroup
	for i, f := range faults {
		for j := range columns {
			all.Go(func() {
				for _, c := range cells[i][j] {
					o := observer{t, envoy, envoytest.Client(t), fmt.Sprintf("http://%s/%s", addr, c.name), "cluster.service/" + c.name + ".", 2}
					if table[i][1+j] = o.measure(c.bad, strings.HasSuffix(f.want[j], ", then 200"), j == 3); table[i][1+j] == f.want[j] {
						break
					}
					t.Logf("an upstream that %s, as %s: %s", f.name, c.name, table[i][1+j])
				}
			})
		}
	}
	all.Wait()
	for i, f := range faults {
		for j, c := range columns {
			if table[i][1+j] != f.want[j] {
				t.Errorf("an upstream that %s, with %s: %s, want %s", f.name, c.title, table[i][1+j], f.want[j])
			}
		}
	}
	checkTable(t, "Faulty", header, table)
}

// checkTable compares the table that a test measures with docs/reliability.md, or writes it there. run is the -run that
// the page names.
func checkTable(t *testing.T, run string, header []string, rows [][]string) {
	t.Helper()
	const page, end = "../docs/reliability.md", "<!-- end -->"
	begin := "<!-- table: go test ./xds -run " + run + " -update -->\n"
	made := "| " + strings.Join(header, " | ") + " |\n" + strings.Repeat("|---", len(header)) + "|\n"
	for _, row := range rows {
		made += "| " + strings.Join(row, " | ") + " |\n"
	}
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
	testrun.Plain(t)
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

// TestARetryGoesToAnotherUpstream: also if a key chose the first one, with which it is the likeliest again.
func TestARetryGoesToAnotherUpstream(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	envoytest.Require(t)
	var acted atomic.Int64
	addr := envoytest.Addr(t)
	ups := fmt.Sprintf(`authenticate: false, outlier_detection: false, upstreams: ["http://%s", "http://%s"]`, envoytest.Addr(t), good(t, &acted))
	canary := fmt.Sprintf(`canary: {upstreams: ["http://%s"], percent: 20`, good(t, &acted))
	envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf(`
listen: %q
services:
  - {name: turns, path: /turns, %s}
  - {name: key, path: /key, affinity: {by: header, header: X-Key}, %[2]s}
  - {name: user, path: /user, %[2]s, %s}}
  - {name: request, path: /request, %[2]s, %[3]s, by: request}}
`, addr, ups, canary)))})
	client := envoytest.Client(t)
	const requests = 100
	for _, path := range []string{"/turns", "/key", "/user", "/request"} {
		got := map[int]int{}
		for n := range requests {
			c := client
			if path == "/user" { // on a public service it is the address
				c = from(t, n+1)
			}
			response, err := envoytest.Send(t.Context(), c, http.MethodGet, "http://"+addr+path, "", fmt.Sprintf("x-key: %d", n))
			if err != nil {
				t.Fatal(err)
			}
			got[response.Status]++
		}
		if got[200] != requests {
			t.Errorf("%s, one of whose upstreams refuses connections: %v", path, got)
		}
	}
}

// TestABodyIsSentAgainUpToALimit: above it the answer is the 503 of a service without retries, and no 507.
func TestABodyIsSentAgainUpToALimit(t *testing.T) {
	testrun.Plain(t)
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

// TestLimitsRefuseWhatIsAbove: one service at its limit does not affect another. Requests wait for a connection.
func TestLimitsRefuseWhatIsAbove(t *testing.T) {
	testrun.Plain(t)
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
	envoy := envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf(`
listen: %q
services:
  - {name: queue, path: /queue, authenticate: false, upstreams: [%[2]q], limits: {connections: 1, pending: 1}}
  - {name: small, path: /small, authenticate: false, upstreams: [%[2]q], limits: {requests: 2}}
  - {name: large, path: /large, authenticate: false, upstreams: [%[2]q]}
`, addr, up.URL())))})
	var sent sync.WaitGroup
	get := func(path string) {
		sent.Go(func() {
			if got := statuses(t, envoytest.Client(t), http.MethodGet, "http://"+addr+path, "", 1); got[200] != 1 {
				t.Errorf("%s below the limit: %v", path, got)
			}
		})
	}
	refused := func(path string) {
		t.Helper()
		if got := statuses(t, envoytest.Client(t), http.MethodGet, "http://"+addr+path, "", 3); got[503] != 3 {
			t.Errorf("%s above the limit: %v, want 503", path, got)
		}
	}
	get("/small")
	<-reached
	get("/small")
	<-reached
	refused("/small")
	get("/queue")
	<-reached
	get("/queue")
	envoytest.Eventually(t, "a request to wait", func() bool { return envoy.Stat("cluster.service/queue.upstream_rq_pending_active") == 1 })
	refused("/queue")
	get("/large")
	<-reached
	release()
	sent.Wait()
}

// TestAnUpstreamThatSwitchesProtocolsUnaskedGetsNoTunnel: Envoy passes the status on, and no bytes of either side. What
// the client sends after it is a request.
func TestAnUpstreamThatSwitchesProtocolsUnaskedGetsNoTunnel(t *testing.T) {
	t.Parallel()
	envoytest.Require(t)
	received := make(chan string, 1)
	var b bad
	accept(t, &b, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nhello")
		rest, _ := io.ReadAll(in)
		received <- string(rest)
	})
	addr := envoytest.Addr(t)
	envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf(
		"listen: %q\nservices:\n  - {name: a, path: /a, authenticate: false, upstreams: [\"http://%s\"]}\n", addr, b.addr)))})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for _, c := range []struct {
		path string
		want int
	}{{"/a", http.StatusSwitchingProtocols}, {"/nothing", http.StatusNotFound}} {
		_, _ = io.WriteString(conn, "GET "+c.path+" HTTP/1.1\r\nhost: a\r\n\r\n")
		response, err := http.ReadResponse(in, nil)
		if err != nil || response.StatusCode != c.want {
			t.Fatalf("%s: %v, %v, want %d", c.path, response, err, c.want)
		}
	}
	if got := <-received; got != "" {
		t.Errorf("the upstream has received %q", got)
	}
}
