package gateway_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"gatepost/admin"
	"gatepost/envoy/envoytest"
)

// TestTheAdminAPIShowsUpstreams: their health, the part of a canary, and a limit that is reached.
func TestTheAdminAPIShowsUpstreams(t *testing.T) {
	t.Parallel()
	well, sick, held := envoytest.Upstream(t), envoytest.Upstream(t), make(chan struct{})
	sick.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-held
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	dead := envoytest.Addr(t)
	url, operators := startWith(t, fmt.Sprintf(`
services:
  - {name: checked, path: /checked, authenticate: false, upstreams: ["%[1]s/base", "%[2]s/base"], health_check: {path: /healthz, interval: 100ms}}
  - {name: resting, path: /resting, authenticate: false, upstreams: ["%[1]s", "http://%[3]s"]}
  - {name: canary, path: /canary, authenticate: false, upstreams: ["http://localhost:%[4]s"], canary: {upstreams: ["%[2]s"], percent: 10}}
  - {name: misspelt, path: /misspelt, authenticate: false, upstreams: ["http://no-such-name.invalid:80"]}
  - {name: full, path: /full, authenticate: false, upstreams: ["%[2]s"], limits: {requests: 1}}
`, well.URL(), sick.URL(), dead, well.Addr()[strings.LastIndex(well.Addr(), ":")+1:]), slog.NewTextHandler(t.Output(), nil))
	done := make(chan struct{})
	go func() {
		defer close(done)
		request(t, http.MethodGet, url+"/full/hold", "", "")
	}()
	defer func() { close(held); <-done }()
	want := []string{
		"canary 127.0.0.1 healthy localhost, 10 %", "canary 127.0.0.1 healthy of the canary, 10 %", "checked 127.0.0.1 healthy", "checked 127.0.0.1 unhealthy",
		"full 127.0.0.1 unchecked, at [requests]", "misspelt no-such-name.invalid has no address", "resting 127.0.0.1 healthy", "resting 127.0.0.1 resting",
	}
	var got []string
	envoytest.Eventually(t, fmt.Sprintf("the states %q", want), func() bool {
		request(t, http.MethodGet, url+"/resting", "", "")
		var read admin.Services
		if err := json.Unmarshal([]byte(request(t, http.MethodGet, operators+"/api/v1/services", "", "").Body), &read); err != nil || read.Unknown != "" {
			t.Fatalf("%v %s", err, read.Unknown)
		}
		got = nil
		for _, s := range read.Services {
			if asked := s.Name == "resting" || s.Name == "full"; s.Name != "canary" && s.LastRequest.IsZero() == asked {
				return false // health checks are no requests
			}
			for _, name := range s.NoAddress {
				got = append(got, s.Name+" "+name+" has no address")
			}
			for _, u := range s.Upstreams {
				line := s.Name + " " + u.Address[:strings.LastIndex(u.Address, ":")] + " " + u.Health
				if u.Name != "" {
					line += " " + u.Name
				}
				if u.Canary {
					line += " of the canary"
				}
				if s.CanaryPercent != nil {
					line += fmt.Sprintf(", %d %%", *s.CanaryPercent)
				}
				if len(s.LimitsReached) > 0 {
					line += fmt.Sprintf(", at %v", s.LimitsReached)
				}
				got = append(got, line)
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// TestACanaryKeepsAUser: also if the module in Envoy has set the user instead of Gatepost. The client's own header does
// not count.
func TestACanaryKeepsAUser(t *testing.T) {
	t.Parallel()
	users, stable, canary := envoytest.Upstream(t), envoytest.Upstream(t), envoytest.Upstream(t)
	users.SetHandler(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("userid", r.Header.Get("x-name")) })
	canary.SetHandler(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("x-by", "canary") })
	url := start(t, fmt.Sprintf(`
tokens: {authenticator: {url: "%s/authenticate"}}
services:
  - {name: orders, path: /orders, upstreams: ["%s"], canary: {upstreams: ["%s"], percent: 50}}
`, users.URL(), stable.URL(), canary.URL()))
	const callers = 16
	onCanary := 0
	for n := range callers {
		login, err := envoytest.Send(t.Context(), http.DefaultClient, http.MethodPost, url+"/token", "{}", fmt.Sprintf("x-name: user-%d", n))
		token := login.Header.Get("token")
		if err != nil || token == "" {
			t.Fatalf("the login: %v %+v", err, login)
		}
		first := ""
		for i := range 5 {
			got, err := envoytest.Send(t.Context(), http.DefaultClient, http.MethodGet, url+"/orders", "", "authorization: "+token, fmt.Sprintf("x-user-id: other-%d", i))
			if err != nil || got.Status != http.StatusOK {
				t.Fatalf("%d %v", got.Status, err)
			}
			switch by := got.Header.Get("x-by"); {
			case i == 0:
				first = by
			case by != first:
				t.Errorf("user %d came to %q, and then to %q", n, first, by)
			}
		}
		if first == "canary" {
			onCanary++
		}
	}
	if onCanary == 0 || onCanary == callers { // the keys are fixed, so this is not left to chance
		t.Errorf("%d of %d users came to the canary", onCanary, callers)
	}
}
