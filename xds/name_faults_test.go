package xds

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/nameserver"
)

// A nameFault is a fault of the name of an upstream.
type nameFault struct {
	name string
	// If direct is true, Envoy asks the name server itself, as with gatepost serve. Otherwise it asks Gatepost, as with
	// gatepost run.
	direct bool
	// If restarts is true, the upstream is stopped, and comes back at another address.
	restarts bool
	// begin makes the fault of the names, and seen reports whether Envoy has noticed that of a service.
	begin func(f *failingNames, name string)
	seen  func(o *observer) bool
	// want is what a client sees, and how long, in each of the columns.
	want [3]string
}

// failingNames are names in a name server, and upstreams at several addresses with one port.
type failingNames struct {
	*namedLive
	direct bool // of the faults
	port   string
}

// The addresses of the upstreams.
const (
	wellAddress    = "127.0.0.1"
	stoppedAddress = "127.0.0.2"
	newAddress     = "127.0.0.3"
)

// The columns of the table, as the settings of a service with %s for the origin of the failing name.
var nameColumns = [3]struct{ title, settings string }{
	{"the only upstream", `upstreams: [%q]`},
	{"the only upstream, `health_check: /healthz`", `upstreams: [%q], health_check: {path: /healthz, interval: 100ms}`},
	{"one of two upstreams", `upstreams: [%q, GOOD]`},
}

const untilLookup = "503 until the next look-up"

var nameFaults = []nameFault{
	{"restarts with another address", false, true, func(*failingNames, string) {}, func(*observer) bool { return true },
		[3]string{untilLookup, untilLookup, "200"}},
	{"has a name that does not exist for a moment", false, false, func(f *failingNames, name string) { f.names.Remove(name); f.awaitLookups(name, 3) },
		func(*observer) bool { return true }, [3]string{"200", "200", "200"}},
	{"has a name that does not exist for a moment, with `gatepost serve` or in Docker", true, false,
		func(f *failingNames, name string) { f.names.Remove(name) },
		func(o *observer) bool { return o.stat("membership_total") < o.total }, [3]string{untilLookup, untilLookup, "200"}},
	{"has a name for which the name server is silent", false, false, func(f *failingNames, name string) { f.names.Silence(name) },
		func(o *observer) bool { return o.stat("update_failure") > 0 }, [3]string{"200", "200", "200"}},
}

// TestWhatClientsSeeOfAFailingName: docs/reliability.md has the result as a table.
func TestWhatClientsSeeOfAFailingName(t *testing.T) {
	long(t)
	t.Parallel()
	header := []string{"an upstream that"}
	for _, c := range nameColumns {
		header = append(header, c.title)
	}
	table := make([][]string, len(nameFaults))
	var all sync.WaitGroup
	for _, f := range []*failingNames{
		{namedLive: startNamedThroughGatepost(t, time.Now())}, {namedLive: startNamed(t, patient), direct: true},
	} {
		observers := f.serveAll(t)
		for i, fault := range nameFaults {
			if fault.direct != f.direct {
				continue
			}
			table[i] = []string{fault.name, "", "", ""}
			for j, c := range nameColumns {
				all.Go(func() {
					o := observers[i][j]
					fault.begin(f, nameOf(i, j))
					envoytest.Eventually(t, "a fault of "+o.url, func() bool { return fault.seen(o) })
					cell := f.observe(o, nameOf(i, j))
					if table[i][1+j] = cell; cell != fault.want[j] {
						t.Errorf("an upstream that %s, as %s: %s, want %s", fault.name, c.title, cell, fault.want[j])
					}
				})
			}
		}
	}
	all.Wait()
	checkTable(t, "FailingName", header, table)
}

func nameOf(i, j int) string { return fmt.Sprintf("n%d-%d.test", i, j) }

// serveAll serves a service for each fault and column, waits until all are well, and stops the upstream that restarts.
func (f *failingNames) serveAll(t *testing.T) (observers [][len(nameColumns)]*observer) {
	f.t.Helper()
	_, f.port, _ = net.SplitHostPort(f.upstream.Addr())
	stopped := f.serveAt(stoppedAddress)
	f.serveAt(newAddress)
	f.names.Resolve("well.test", wellAddress)
	var text strings.Builder
	for i, fault := range nameFaults {
		address := wellAddress
		if fault.restarts {
			address = stoppedAddress
		}
		for j, c := range nameColumns {
			f.names.Resolve(nameOf(i, j), address)
			settings := strings.Replace(fmt.Sprintf(c.settings, "http://"+nameOf(i, j)+":"+f.port), "GOOD", `"http://well.test:`+f.port+`"`, 1)
			fmt.Fprintf(&text, "  - {name: n%d-%d, path: /n%[1]d-%d, authenticate: false, %s}\n", i, j, settings)
		}
	}
	f.serves(f.open(text.String(), "a"))
	observers = make([][len(nameColumns)]*observer, len(nameFaults))
	for i := range nameFaults {
		for j := range nameColumns {
			o := &observer{t, f.envoy, envoytest.Client(t), fmt.Sprintf("http://%s/n%d-%d", f.addr, i, j), fmt.Sprintf("cluster.service/n%d-%d.", i, j), 1 + j/2}
			observers[i][j] = o
			envoytest.Eventually(f.t, "200 by all upstreams of "+o.url, func() bool { return o.healthy() == o.total && o.ten() == "200" })
		}
	}
	stopped.CloseClientConnections()
	stopped.Close()
	return observers
}

// serveAt starts an upstream at an address, with the port of all.
func (f *failingNames) serveAt(address string) *httptest.Server {
	f.t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(address, f.port))
	if err != nil {
		f.t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}}
	server.Start()
	f.t.Cleanup(server.Close)
	return server
}

// observe sends requests while the fault lasts, ends it for one look-up, and sends more.
func (f *failingNames) observe(o *observer, name string) string {
	f.t.Helper()
	cell := o.ten()
	asked := f.names.Asked(name)
	f.names.Resolve(name, newAddress)
	envoytest.Eventually(f.t, "a look-up of "+name, func() bool { return f.names.Asked(name) > asked })
	f.names.Silence(name)
	if cell == "10 × 503" {
		cell = untilLookup
	}
	envoytest.Eventually(f.t, "200 after a look-up of "+name, func() bool { return o.ten() == "200" })
	envoytest.Eventually(f.t, "the former address to be removed from "+o.url, func() bool { return o.stat("membership_total") == o.total && o.healthy() == o.total })
	return cell
}

// A request in the moment in which the name does not exist finds the only upstream. A name that stays away is followed
// after the moment.
func TestANameThatDoesNotExistForAMomentFailsNoRequest(t *testing.T) {
	t.Parallel()
	n := startNamedThroughGatepost(t, time.Now())
	requests := n.underLoad(t, http.StatusOK, []string{"/good"}, func() {
		n.names.Remove("good.test")
		n.awaitLookups("good.test", 3)
		n.names.Resolve("good.test", wellAddress)
		n.awaitLookups("good.test", 2)
	})
	t.Logf("%d requests", requests)
	n.names.Remove("good.test")
	envoytest.Eventually(t, "the address to be removed", func() bool {
		// The moment begins again if a reply from before is under way.
		n.clock.Store(new(n.clock.Load().Add(nameserver.Moment)))
		return n.envoy.Stat("cluster.service/good.membership_total") == 0
	})
}
