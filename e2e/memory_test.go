package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// mostGrowth limits the growth of a process's memory under constant load, in bytes. A leak of a
// hundred bytes per request exceeds it several times in ten minutes; Go's heap and the arenas of
// Envoy's threads vary by a few megabytes.
const mostGrowth = 24 << 20

// TestMemoryStaysFlat lets users log in, use their tokens and revoke them for the duration of
// GATEPOST_SOAK. Envoy checks tokens by itself, and services are added and removed meanwhile. The
// test compares the memory of both processes after a third of the time and at the end.
func TestMemoryStaysFlat(t *testing.T) {
	t.Parallel()
	c := startChecking(t, setup{Redis: redistest.Start(t).URL(), Args: []string{"--concurrency", "2"}})
	g := c.gateways[0]
	stop := make(chan struct{})
	var all sync.WaitGroup
	each := func(do func(round int)) {
		all.Go(func() {
			for round := 0; !t.Failed(); round++ {
				select {
				case <-stop:
					return
				default:
					do(round)
				}
			}
		})
	}
	for i := range 6 {
		client := envoytest.Client(t)
		each(func(int) {
			token := g.Login(fmt.Sprint("user-", i))
			for range 200 {
				u := &user{client: client, url: g.URL, authorization: "Bearer " + token}
				if status, err := u.get(t.Context()); err != nil || status != http.StatusOK {
					t.Errorf("using a token: %d %v", status, err)
				}
			}
			g.Do("POST", "/token/revoke", "", "Authorization: "+token)
		})
	}
	each(func(round int) {
		before := g.Status().GetVersion()
		g.Define(c.definitions("", fmt.Sprintf("identity: {user_header: x-user-%d}", round%2)))
		g.AwaitChange(before)
		c.orders.Reset() // the memory of this process is not measured
		time.Sleep(time.Second)
	})
	lasts := soak(t)
	memory := map[string]func() int64{
		"gatepost": func() int64 { return envoytest.AnonymousMemory(t, g.command.Process.Pid) },
		"envoy":    func() int64 { return envoytest.AnonymousMemory(t, envoyOf(g.command.Process.Pid)) },
	}
	time.Sleep(lasts / 3)
	early := map[string]int64{}
	for name, bytes := range memory {
		early[name] = bytes()
	}
	hits := c.hits()
	time.Sleep(lasts - lasts/3)
	for name, bytes := range memory {
		late := bytes()
		t.Logf("%s: %.1f MiB after %v, %.1f MiB after %v", name, float64(early[name])/(1<<20), lasts/3, float64(late)/(1<<20), lasts)
		if late-early[name] > mostGrowth {
			t.Errorf("the memory of %s has grown by %d bytes", name, late-early[name])
		}
	}
	close(stop)
	all.Wait()
	t.Logf("%.0f hits, %.0f of them after the first third", c.hits(), c.hits()-hits)
	if c.hits() == hits {
		t.Error("the module allowed no request")
	}
}

// mostOfMany is the anonymous memory of an idle gateway with 10,000 services, in bytes. It is 44 to 49 MiB, by the time
// of the last collection of garbage, and was 126 MiB before memory was given back.
const mostOfMany = 56 << 20

// What reading, building, sending and saving 10,000 services took is given back once they are served.
func TestTenThousandServicesFitIntoMemory(t *testing.T) {
	t.Parallel()
	var services strings.Builder
	services.WriteString("services:\n")
	for i := range 10_000 {
		fmt.Fprintf(&services, "  - {name: svc%d, path: /svc%[1]d, authenticate: false, upstreams: [\"http://127.0.0.1:9\"]}\n", i)
	}
	g := start(t, services.String(), setup{})
	var bytes int64
	defer func() { t.Logf("%.1f MiB", float64(bytes)/(1<<20)) }()
	envoytest.Eventually(t, "the memory of an idle gateway", func() bool {
		bytes = envoytest.AnonymousMemory(t, g.command.Process.Pid)
		return bytes <= mostOfMany
	})
}
