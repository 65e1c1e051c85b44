package xds

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/testrun"
)

// TestSettingsOfRetries: what each of them adds, on a service with upstreams of which not all are well.
func TestSettingsOfRetries(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	envoytest.Require(t)
	var acted atomic.Int64
	var slow, wrong bad
	handle(hang)(t, &slow)
	handle(respond(http.StatusInternalServerError))(t, &wrong)
	addr, well := envoytest.Addr(t), good(t, &acted)
	service := func(name, retries string, ups ...string) string {
		text := fmt.Sprintf("  - {name: %s, path: /%[1]s, authenticate: false, outlier_detection: false, retries: %s, upstreams: [", name, retries)
		for _, up := range append(ups, well) {
			text += fmt.Sprintf("%q, ", "http://"+up)
		}
		return text + "]}\n"
	}
	dead := []string{envoytest.Addr(t), envoytest.Addr(t)}
	envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf("listen: %q\nservices:\n", addr)+
		service("once", "1", dead...)+service("twice", "2", dead...)+
		service("gateway", "{on: [gateway-error]}", wrong.addr)+service("any", "{on: [5xx]}", wrong.addr)+
		service("slow", "{on: [reset], per_try_timeout: 1s}", slow.addr)))})
	client := envoytest.Client(t)
	for _, c := range []struct {
		path     string
		requests int
		want     string
	}{
		{"/once", 6, "3 × 503"}, // the two that are dead take turns
		{"/twice", 6, "200"},
		{"/gateway", 6, "3 × 500"},
		{"/any", 6, "200"},
		{"/slow", 2, "200"}, // the time limit of a service is 15 s
	} {
		if got := seen(statuses(t, client, http.MethodGet, "http://"+addr+c.path, "", c.requests)); got != c.want {
			t.Errorf("%s: %s, want %s", c.path, got, c.want)
		}
	}
}

// TestBudgetOfRetries: as a part of the requests that there are at the moment, and always three.
func TestBudgetOfRetries(t *testing.T) {
	t.Parallel()
	envoytest.Require(t)
	for budget, want := range map[int]int{1: 3, 100: 8} {
		t.Run(fmt.Sprint(budget), func(t *testing.T) {
			t.Parallel()
			held, release := hold()
			defer release()
			reached := make(chan struct{}, 64)
			var failing atomic.Bool
			var one, other bad
			wait := func(http.ResponseWriter, *http.Request) { reached <- struct{}{}; <-held }
			handle(wait)(t, &other)
			handle(func(w http.ResponseWriter, r *http.Request) {
				if failing.Load() {
					reset(w, r)
				} else {
					wait(w, r)
				}
			})(t, &one)
			addr := envoytest.Addr(t)
			envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf(`
listen: %q
services:
  - {name: a, path: /a, authenticate: false, outlier_detection: false, retries: {on: [reset], budget: %d}, upstreams: ["http://%s", "http://%s"]}
`, addr, budget, one.addr, other.addr)))})
			client, answered := envoytest.Client(t), make(chan int, 64)
			// send returns whether a request was refused. If not, it waits at an upstream.
			send := func() bool {
				go func() {
					response, _ := envoytest.Send(t.Context(), client, http.MethodGet, "http://"+addr+"/a", "")
					answered <- response.Status
				}()
				select {
				case <-reached:
					return false
				case status := <-answered:
					if status != http.StatusServiceUnavailable {
						t.Errorf("a request that no upstream has got: %d, want 503", status)
					}
					return true
				}
			}
			for range 10 {
				send()
			}
			failing.Store(true)
			retried := 0
			for retried < 8 {
				before := one.acted.Load()
				isRefused := send()
				if isRefused {
					break
				}
				if one.acted.Load() > before { // it did not go to the other one at once
					retried++
				}
			}
			if retried != want {
				t.Errorf("%d retries, want %d", retried, want)
			}
		})
	}
}
