package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
)

// load is a bounded number of clients. Each sends one request after the other over a keep-alive
// connection.
type load struct {
	t       *testing.T
	stop    chan struct{}
	clients sync.WaitGroup
	sent    atomic.Int64
	closed  atomic.Int64 // connections that the gateway has closed

	mu     sync.Mutex
	failed []string
}

// call is one request of a load. right returns an error if a response is wrong.
type call struct {
	path    string
	headers []string
	right   func(answer) error
}

// pause is the delay between two requests of a client: the load is meant to detect failures, not to
// saturate the machine.
const pause = 10 * time.Millisecond

// startLoad starts clients that send the calls until End.
func startLoad(t *testing.T, url string, clients int, calls []call) *load {
	l := &load{t: t, stop: make(chan struct{})}
	for range clients {
		transport := &http.Transport{MaxConnsPerHost: 1, DialContext: (&net.Dialer{}).DialContext}
		dial := transport.DialContext
		transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return &loadConn{Conn: conn, closed: &l.closed}, err
		}
		one := &http.Client{Transport: transport, Timeout: envoytest.Deadline}
		l.clients.Go(func() {
			defer transport.CloseIdleConnections()
			for {
				select {
				case <-l.stop:
					return
				case <-time.After(pause):
				}
				l.send(one, url, calls[rand.IntN(len(calls))])
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

// loadConn counts itself when the other side closes it.
type loadConn struct {
	net.Conn
	closed *atomic.Int64
}

func (c *loadConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		c.closed.Add(1)
	}
	return n, err
}

func (l *load) send(client *http.Client, url string, c call) {
	l.sent.Add(1)
	got, err := envoytest.Send(context.Background(), client, "GET", url+c.path, "", c.headers...)
	if err == nil {
		err = c.right(got)
	}
	if err != nil {
		l.fail(c, err)
	}
}

func (l *load) fail(c call, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, fmt.Sprintf("%s: %s: %v", time.Now().Format("05.000"), c.path, err))
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.clients.Wait()
}

// End stops the load, after a hundred requests. It fails the test if a response was wrong or missing, or if the gateway
// has closed a connection.
func (l *load) End() {
	l.t.Helper()
	envoytest.Eventually(l.t, "a hundred requests", func() bool { return l.sent.Load() >= 100 })
	l.end()
	l.t.Logf("%d requests, %d failed", l.sent.Load(), len(l.failed))
	if len(l.failed) > 0 {
		l.t.Errorf("%d of %d requests failed, such as:\n%s", len(l.failed), l.sent.Load(), strings.Join(l.failed[:min(10, len(l.failed))], "\n"))
	}
	if n := l.closed.Load(); n > 0 {
		l.t.Errorf("the gateway has closed %d connections", n)
	}
}

// named starts an upstream that responds with its name.
func named(t *testing.T, name string) *envoytest.Recorder {
	t.Helper()
	upstream := envoytest.Upstream(t)
	upstream.SetHandler(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
	return upstream
}

// from accepts only a 200 from one of the named upstreams.
func from(names ...string) func(answer) error {
	return func(a answer) error {
		if a.Status == http.StatusOK {
			for _, name := range names {
				if a.Body == name {
					return nil
				}
			}
		}
		return fmt.Errorf("%d %s", a.Status, a.Body)
	}
}

// orNotFound also accepts the 404 of a missing service.
func orNotFound(right func(answer) error) func(answer) error {
	return func(a answer) error {
		if a.Status == http.StatusNotFound && a.Body == notFound {
			return nil
		}
		return right(a)
	}
}

// changing are definitions that change at each step. The responses of services that stay do not
// change.
type changing struct {
	users    *envoytest.Recorder
	upstream [3]*envoytest.Recorder
}

// definitions returns the definitions of a step. `steady` never changes; `moved` changes its
// upstream; `renamed` changes its name, and thereby its cluster; `methods` changes its list;
// `guest` is added and removed; `based` changes its base path; `named` has an upstream that is
// resolved by DNS.
func (c *changing) definitions(step int) string {
	at := func(i int) string { return c.upstream[i%3].URL() }
	methods := []string{"[GET]", "[GET, POST]", "[GET, PUT, DELETE]"}[step%3]
	port := c.upstream[step%2].Addr()[strings.LastIndex(c.upstream[step%2].Addr(), ":"):]
	text := fmt.Sprintf(`
tokens: {authenticator: {url: "%s/users/authenticate"}}
services:
  - {name: steady, path: /steady, authenticate: true, upstreams: ["%s"]}
  - {name: moved, path: /moved, authenticate: true, upstreams: ["%s"]}
  - {name: renamed-%d, path: /renamed, authenticate: false, upstreams: ["%s"]}
  - {name: methods, path: /methods, authenticate: false, allowed_methods: %s, upstreams: ["%s"]}
  - {name: based, path: /based, authenticate: false, upstreams: ["%s/v%d"]}
  - {name: named, path: /named, authenticate: false, upstreams: ["http://localhost%s"]}
`, c.users.URL(), at(0), at(step), step, at(1), methods, at(2), at(step), step%5, port)
	if step%2 == 0 {
		text += fmt.Sprintf("  - {name: guest, path: /guest, authenticate: false, upstreams: [%q]}\n", at(step))
	}
	return text
}

// TestChangesUnderLoad applies a sequence of changes, each verified before the next, while clients
// use every service. GATEPOST_CHANGES is the number of changes.
func TestChangesUnderLoad(t *testing.T) {
	t.Parallel()
	changes := 80
	if more, err := strconv.Atoi(os.Getenv("GATEPOST_CHANGES")); err == nil {
		changes = more
	}
	c := &changing{users: users(t), upstream: [3]*envoytest.Recorder{named(t, "a"), named(t, "b"), named(t, "c")}}
	g := start(t, c.definitions(0), setup{Program: racing(t)})
	auth := "Authorization: " + g.Login("alice")
	l := startLoad(t, g.URL, 24, []call{
		{"/steady/1", []string{auth}, from("a")},
		{"/moved/1", []string{auth}, from("a", "b", "c")},
		{"/renamed", nil, from("b")},
		{"/methods", nil, from("c")},
		{"/based/x", nil, from("a", "b", "c")},
		{"/named", nil, from("a", "b")},
		{"/guest/1", nil, orNotFound(from("a", "b", "c"))},
		{"/nobody", nil, orNotFound(from())},
		{"/moved/2", nil, func(a answer) error { // never public, at any time
			if a.Status != http.StatusUnauthorized {
				return fmt.Errorf("%d %s", a.Status, a.Body)
			}
			return nil
		}},
	})
	envoytest.Eventually(t, "the first definitions to be verified", g.Settled)
	version := g.Status().GetVersion()
	for step := 1; step <= changes; step++ {
		g.Define(c.definitions(step))
		version = g.AwaitChange(version)
		// From the moment a version is verified, clients are served by it.
		if got := g.Do("GET", "/moved", "", auth); got.Body != []string{"a", "b", "c"}[step%3] {
			t.Errorf("step %d is verified, and a request goes to %d %s", step, got.Status, got.Body)
		}
		if got, guest := g.Do("GET", "/guest", ""), step%2 == 0; (got.Status == http.StatusOK) != guest {
			t.Errorf("step %d is verified, and the guest returns %d", step, got.Status)
		}
	}
	l.End()
	for metric, want := range map[string]float64{
		"gatepost_definitions_apply_duration_seconds_count": float64(changes),
		"gatepost_definitions_failed_total":                 0,
		"gatepost_xds_nacks_total":                          0,
	} {
		if got := g.Metric(metric); got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
	g.Logged(changes, `"msg":"applied"`, `"seconds":`)
	t.Logf("from a save to verified: %.0f ms on average", 1000*g.Metric("gatepost_definitions_apply_duration_seconds_sum")/float64(changes))
}

// TestRapidChanges writes files faster than they can be applied. The last one must be served.
func TestRapidChanges(t *testing.T) {
	t.Parallel()
	c := &changing{users: users(t), upstream: [3]*envoytest.Recorder{named(t, "a"), named(t, "b"), named(t, "c")}}
	g := start(t, c.definitions(0), setup{Program: racing(t)})
	auth := "Authorization: " + g.Login("alice")
	l := startLoad(t, g.URL, 12, []call{
		{"/steady/1", []string{auth}, from("a")},
		{"/moved/1", []string{auth}, from("a", "b", "c")},
		{"/renamed", nil, from("b")},
		{"/guest/1", nil, orNotFound(from("a", "b", "c"))},
	})
	const last = 61
	for step := 1; step <= last; step++ {
		g.Define(c.definitions(step))
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
	}
	envoytest.Eventually(t, "the last definitions to be served", func() bool {
		return g.Do("GET", "/moved", "", auth).Body == "b" && g.Do("GET", "/guest", "").Status == http.StatusNotFound
	})
	envoytest.Eventually(t, "them to be verified", g.Settled)
	l.End()
}

// editors replace a file in different ways.
var editors = map[string]func(t *testing.T, file, text string){
	"in place": func(t *testing.T, file, text string) {
		must(t, os.WriteFile(file, []byte(text), 0o644))
	},
	"in place, in two writes": func(t *testing.T, file, text string) {
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0o644)
		must(t, err)
		half := strings.Index(text, "services:") + len("services:")
		_, err = f.WriteString(text[:half])
		must(t, err)
		time.Sleep(20 * time.Millisecond)
		_, err = f.WriteString(text[half:])
		must(t, err)
		must(t, f.Close())
	},
	"a rename over it": func(t *testing.T, file, text string) {
		must(t, os.WriteFile(file+".tmp", []byte(text), 0o644))
		must(t, os.Rename(file+".tmp", file))
	},
	"the old one moved away first": func(t *testing.T, file, text string) { // as vim does
		must(t, os.Rename(file, file+"~"))
		must(t, os.WriteFile(file, []byte(text), 0o644))
		must(t, os.Remove(file+"~"))
	},
	"removed and created again": func(t *testing.T, file, text string) {
		must(t, os.Remove(file))
		must(t, os.WriteFile(file, []byte(text), 0o600))
	},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEditors(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	n := 0
	for name, save := range editors {
		t.Run(name, func(t *testing.T) {
			n++
			path := fmt.Sprintf("/new-%d", n)
			save(t, shop.File, "listen: "+shop.Addr+"\n"+shop.definitions(fmt.Sprintf(`  - {name: new, path: %s, authenticate: false, upstreams: ["%s"]}`, path, shop.items.URL())))
			shop.Await("the new service", http.StatusOK, "GET", path, "")
		})
	}
	if failed := shop.Metric("gatepost_definitions_failed_total"); failed != 0 {
		t.Errorf("%v saves counted as broken files:\n%s", failed, lines(shop.Log(), `"level":"ERROR"`))
	}
}

// TestAMountedDirectory: Kubernetes replaces a symbolic link in the path of the file, and touches
// neither the file nor its directory.
func TestAMountedDirectory(t *testing.T) {
	t.Parallel()
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	shop.gateway = prepare(t, shop.definitions(), setup{})
	dir := filepath.Dir(shop.File)
	put := func(n int, text string) {
		made := filepath.Join(dir, "..data-"+strconv.Itoa(n))
		must(t, os.Mkdir(made, 0o755))
		must(t, os.WriteFile(filepath.Join(made, "gatepost.yaml"), []byte("listen: "+shop.Addr+"\n"+text), 0o644))
		must(t, os.Symlink(filepath.Base(made), filepath.Join(dir, "..next")))
		must(t, os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, "..data")))
	}
	put(0, shop.definitions())
	must(t, os.Remove(shop.File))
	must(t, os.Symlink("..data/gatepost.yaml", shop.File))
	shop.Run()
	shop.AwaitReady()
	for n := 1; n <= 3; n++ {
		path := fmt.Sprintf("/new-%d", n)
		put(n, shop.definitions(fmt.Sprintf(`  - {name: new, path: %s, authenticate: false, upstreams: ["%s"]}`, path, shop.items.URL())))
		must(t, os.RemoveAll(filepath.Join(dir, "..data-"+strconv.Itoa(n-1))))
		shop.Await("the new service", http.StatusOK, "GET", path, "")
	}
}

// brokenFiles are invalid in different ways; mistakes is the number of problems.
var brokenFiles = map[string]struct {
	text     string
	mistakes int
}{
	"an unknown field":           {brokenThrice, 3},
	"no YAML":                    {"services: [\n", 1},
	"two of the same path":       {"services:\n  - {name: a, path: /a, upstreams: [\"http://127.0.0.1:1\"]}\n  - {name: b, path: /A, upstreams: [\"http://127.0.0.1:1\"]}\n", 1},
	"an upstream that is a file": {"services:\n  - {name: a, path: /a, upstreams: [\"file:///etc/passwd\"]}\n", 1},
	"an empty file":              {"", 1},
}

func TestBrokenFileChangesNothingAndIsReported(t *testing.T) {
	t.Parallel()
	for name, broken := range brokenFiles {
		t.Run(name, func(t *testing.T) {
			shop := startShop(t, setup{})
			token := shop.Login("alice")
			envoytest.Eventually(t, "the definitions to be verified", shop.Settled)
			version := shop.Status().GetVersion()
			shop.DefineExactly(broken.text)
			envoytest.Eventually(t, "the status to report it", func() bool { return shop.Status().GetRejected() != "" })
			shop.wantLoud(t, broken.mistakes)
			well(t, shop, token)
			if now := shop.Status().GetVersion(); now != version {
				t.Errorf("version %s is served, want %s still", now, version)
			}
			shop.AwaitReady() // a bad newest file does not make a serving gateway unready

			shop.Define(shop.definitions())
			envoytest.Eventually(t, "the mistake to be forgotten", func() bool { return shop.Status().GetRejected() == "" })
			shop.wantHealth(t, `"ok"`, 1, 0)
		})
	}
}

func TestTheFileIsRemoved(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	token := shop.Login("alice")
	envoytest.Eventually(t, "the definitions to be verified", shop.Settled)
	must(t, os.Remove(shop.File))
	envoytest.Eventually(t, "the status to report it", func() bool { return strings.Contains(shop.Status().GetRejected(), shop.File) })
	if failed := shop.Metric("gatepost_definitions_failed_total"); failed != 1 {
		t.Errorf("the metric counts %v failures, want 1", failed)
	}
	well(t, shop, token)

	// A restart without the file works too.
	shop.Stop()
	shop.Run()
	shop.AwaitReady()
	well(t, shop, token)

	shop.Define(shop.definitions())
	envoytest.Eventually(t, "the file to be there again", func() bool { return shop.Status().GetRejected() == "" })
}
