package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"gatepost/admin"
)

// Only services that need a look are listed. A gateway that does not know, or is from before, is no error.
func TestStatusListsUpstreamsThatNeedALook(t *testing.T) {
	t.Parallel()
	const services = `{"services":[
		{"name":"a","path":"/a","upstreams":[{"address":"10.0.0.1:80","health":"healthy","requests":7,"errors":0}]},
		{"name":"b","path":"/b","upstreams":[{"address":"10.0.0.2:80","name":"b","health":"healthy"},{"address":"10.0.0.3:80","health":"resting","requests":9,"errors":5}]},
		{"name":"c","path":"/c","canary_percent":10,"upstreams":[{"address":"10.0.0.4:80","health":"healthy","canary":true}]},
		{"name":"d","path":"/d","limits_reached":["requests"],"upstreams":[{"address":"10.0.0.5:80","health":"unhealthy"}]},
		{"name":"e","path":"/e","no_address":["ordres"],"upstreams":[]}]}`
	for _, c := range []struct {
		args, services string
		code           int
		want, not      []string
	}{
		{"status", services, 200, []string{
			"3 of 6 upstreams are healthy", "b        10.0.0.2:80 b  healthy", "resting     9         5", "canary, 10 %", "at its limit of requests", "e        ordres         no address",
		}, []string{"10.0.0.1"}},
		{"status --upstreams", services, 200, []string{"a        10.0.0.1:80    healthy     7         0       -"}, nil},
		{"status", strings.Replace(services, `"healthy"`, `"unchecked"`, 1), 200, []string{
			"2 of 5 checked upstreams are healthy, 1 unchecked (no health_check)",
		}, []string{"10.0.0.1"}},
		{"status", `{"services":[{"name":"a","path":"/a","upstreams":[{"address":"10.0.0.1:80","health":"unchecked"}]}]}`, 200, []string{
			"0 of 1 upstreams are checked (no health_check)",
		}, []string{"10.0.0.1"}},
		{"status", `{"services":[],"unknown":"no address"}`, 200, []string{"upstreams  not known: no address"}, []string{"healthy"}},
		{"status", `404 page not found`, 404, nil, []string{"upstreams"}},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != admin.PathStatus {
				w.WriteHeader(c.code)
				_, _ = io.WriteString(w, c.services)
				return
			}
			_, _ = io.WriteString(w, `{"version":"v1"}`)
		}))
		var stdout, stderr bytes.Buffer
		code := gatepost(t.Context(), append(strings.Fields(c.args), "--admin", server.Listener.Addr().String()), &stdout, &stderr)
		server.Close()
		if code != 0 {
			t.Errorf("%s: exit code %d: %s", c.args, code, &stderr)
		}
		for _, want := range c.want {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s does not print %q:\n%s", c.args, want, &stdout)
			}
		}
		for _, not := range c.not {
			if strings.Contains(stdout.String(), not) {
				t.Errorf("%s prints %q:\n%s", c.args, not, &stdout)
			}
		}
	}
}
