package redisconn

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"gatepost/tokens/redistest"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

// A call is limited by CallTimeout and by the caller's deadline.
func TestCallIsBoundedByEarlierDeadline(t *testing.T) {
	conn := Open(&Options{hosts: []string{"127.0.0.1:1"}, Timeout: defaultTimeout})
	defer conn.Close()
	limit := conn.CallTimeout()
	for _, left := range []time.Duration{0, limit / 2, 2 * limit, -1} {
		caller, cancel := t.Context(), context.CancelFunc(func() {})
		if left >= 0 {
			caller, cancel = context.WithTimeout(caller, left)
		}
		before := time.Now()
		call, done := conn.Bound(caller)
		end, bound := call.Deadline()
		if !bound || end.After(time.Now().Add(limit)) {
			t.Errorf("with %v left a call has the deadline %v, at %v", left, end, before)
		}
		if theirs, ok := caller.Deadline(); ok && (end.After(theirs) || left < limit && call != caller) {
			t.Errorf("with %v left, a call has the deadline %v, its caller %v", left, end, theirs)
		}
		done()
		cancel()
	}
}

func TestCheck(t *testing.T) {
	server := redistest.Start(t)
	options, err := ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	s := Open(options)
	t.Cleanup(func() { _ = s.Close() })
	names := func() (all []string) {
		warnings, err := s.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range warnings {
			all = append(all, w.Name)
			if !strings.Contains(w.Text, server.Addr) || !strings.Contains(w.Text, ": ") {
				t.Errorf("%s: %s", w.Name, w.Text)
			}
		}
		return all
	}
	if got := fmt.Sprint(names()); got != "[persistence]" {
		t.Errorf("warned of %s", got)
	}
	server.Do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	if got := fmt.Sprint(names()); got != "[eviction persistence]" {
		t.Errorf("warned of %s", got)
	}
	server.Do("CONFIG", "SET", "maxmemory-policy", "noeviction")
	server.Do("CONFIG", "SET", "appendonly", "yes")
	if got := names(); len(got) != 0 {
		t.Errorf("warnings for correct settings: %v", got)
	}
	for info, want := range map[string]string{
		"":                                  "unchecked",
		"redis_version:5.0.14\r\n":          "version",
		"redis_version:2.8.1\r\nrole:slave": "replica",
		"redis_version:x\r\n":               "version",
	} {
		if got := fmt.Sprint(warningsFor("r:1", info)); !strings.Contains(got, want+": ") {
			t.Errorf("INFO %q: %s", info, got)
		}
	}
}
