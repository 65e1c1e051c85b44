package xds

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"gatepost/envoy/envoytest"
)

// A nameFault is a fault of the name of an upstream.
type nameFault struct {
	name string
	// begin makes the fault of the names, and seen reports whether Envoy has noticed that of a service.
	begin func(f *failingNames, name string)
	seen  func(o *observer) bool
	// want is what a client sees, and how long, in each of the columns.
	want [3]string
}

// failingNames are names in a name server, and upstreams at several addresses with one port.
type failingNames struct {
	*namedLive
	port string
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
	{"restarts with another address", func(*failingNames, string) {}, func(*observer) bool { return true },
		[3]string{untilLookup, untilLookup, "200"}},
	{"has a name that does not exist for a moment", func(f *failingNames, name string) { f.names.Remove(name) },
		func(o *observer) bool { return o.stat("membership_total") < o.total }, [3]string{untilLookup, untilLookup, "200"}},
	{"has a name for which the name server is silent", func(f *failingNames, name string) { f.names.Silence(name) },
		func(o *observer) bool { return o.stat("update_failure") > 0 }, [3]string{"200", "200", "200"}},
}

// TestWhatClientsSeeOfAFailingName: docs/reliability.md has the result as a table.
func TestWhatClientsSeeOfAFailingName(t *testing.T) {
	long(t)
	t.Parallel()
	f := &failingNames{namedLive: startNamed(t, patient)}
	_, f.port, _ = net.SplitHostPort(f.upstream.Addr())
	stopped := f.serveAt(stoppedAddress)
	f.serveAt(newAddress)
	f.names.Resolve("well.test", wellAddress)
	name := func(i, j int) string { return fmt.Sprintf("n%d-%d.test", i, j) }
	var text strings.Builder
	for i := range nameFaults {
		for j, c := range nameColumns {
			f.names.Resolve(name(i, j), [...]string{stoppedAddress, wellAddress, wellAddress}[i])
			settings := strings.Replace(fmt.Sprintf(c.settings, "http://"+name(i, j)+":"+f.port), "GOOD", `"http://well.test:`+f.port+`"`, 1)
			fmt.Fprintf(&text, "  - {name: n%d-%d, path: /n%[1]d-%d, authenticate: false, %s}\n", i, j, settings)
		}
	}
	f.serves(f.open(text.String(), "a"))
	header, table := []string{"an upstream that"}, [][]string{}
	for _, c := range nameColumns {
		header = append(header, c.title)
	}
	observers := make([][len(nameColumns)]*observer, len(nameFaults))
	for i, fault := range nameFaults {
		table = append(table, []string{fault.name, "", "", ""})
		for j := range nameColumns {
			o := &observer{t, f.envoy, envoytest.Client(t), fmt.Sprintf("http://%s/n%d-%d", f.addr, i, j), fmt.Sprintf("cluster.service/n%d-%d.", i, j), 1 + j/2}
			observers[i][j] = o
			envoytest.Eventually(t, "200 by all upstreams of "+o.url, func() bool { return o.healthy() == o.total && o.ten() == "200" })
		}
	}
	stopped.CloseClientConnections()
	stopped.Close()
	for i, fault := range nameFaults {
		for j := range nameColumns {
			fault.begin(f, name(i, j))
		}
	}
	var all sync.WaitGroup
	for i, fault := range nameFaults {
		for j, c := range nameColumns {
			all.Go(func() {
				o := observers[i][j]
				envoytest.Eventually(t, "a fault of "+o.url, func() bool { return fault.seen(o) })
				cell := f.observe(o, name(i, j))
				if table[i][1+j] = cell; cell != fault.want[j] {
					t.Errorf("an upstream that %s, as %s: %s, want %s", fault.name, c.title, cell, fault.want[j])
				}
			})
		}
	}
	all.Wait()
	checkTable(t, "FailingName", header, table)
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
