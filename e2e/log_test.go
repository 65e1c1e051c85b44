package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"gatepost/convention"
	"gatepost/envoy/envoytest"
)

// fullPipe returns the two ends of a full pipe.
func fullPipe(t *testing.T) (reader, writer *os.File) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close(); writer.Close() })
	for block := make([]byte, 4096); err == nil; {
		if err = writer.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err == nil {
			_, err = writer.Write(block)
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("filling a pipe: %v", err)
	}
	return reader, writer
}

func TestUnreadLogDoesNotBlockTraffic(t *testing.T) {
	t.Parallel()
	t.Run("a full pipe", func(t *testing.T) {
		_, stderr := fullPipe(t)
		shop := startShop(t, setup{Stderr: stderr})
		trafficGoesOn(t, shop)
		ends(t, shop)
	})
	t.Run("a pipe that nobody can read any more", func(t *testing.T) {
		reader, stderr, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stderr.Close()
		reader.Close()
		shop := startShop(t, setup{Stderr: stderr})
		trafficGoesOn(t, shop)
		envoytest.Eventually(t, "the lost lines to be counted", func() bool { return shop.Metric("gatepost_log_lines_dropped_total") > 0 })
		ends(t, shop)
	})
}

// trafficGoesOn sends requests that each write a log line.
func trafficGoesOn(t *testing.T, shop *shop) {
	t.Helper()
	for i := range 50 {
		want(t, fmt.Sprint("denied request ", i), shop.Do("GET", "/orders", ""), http.StatusUnauthorized, notAllowed)
	}
	token := shop.Login("alice")
	want(t, "a request", shop.Do("GET", "/orders", "", "Authorization: "+token), http.StatusOK, "")
}

// ends stops the gateway, which must exit by itself.
func ends(t *testing.T, shop *shop) {
	t.Helper()
	shop.Stop()
	if code := shop.ExitCode(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// withEvent is the part of a log record that names its event.
func withEvent(e convention.Event) string { return fmt.Sprintf(`"event.action":%q`, e) }

// TestEventsInTheLog: records have the name of their event. Those of operators are in TestAdminAPI, those of Redis and
// of a rejection by Envoy in the tests of these.
func TestEventsInTheLog(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{Args: []string{"--log-level", "debug"}})
	token := shop.Login("alice")
	want(t, "no token", shop.Do("GET", "/orders", ""), http.StatusUnauthorized, "")
	refreshed := shop.Do("POST", "/token/refresh", "", "Authorization: Bearer "+token)
	want(t, "a refresh", refreshed, http.StatusOK, "")
	bearer := "Authorization: Bearer " + refreshed.Header.Get("token")
	want(t, "a revoke", shop.Do("POST", "/token/revoke", "", bearer), http.StatusOK, "")
	bearer = "Authorization: Bearer " + shop.Login("alice")
	want(t, "an end of all sessions", shop.Do("DELETE", "/token/sessions", "", bearer), http.StatusOK, "")
	has := func(event convention.Event, fields ...string) func() bool {
		return func() bool {
			return len(lines(shop.Log(), append(fields, withEvent(event))...)) > 0
		}
	}
	envoytest.Eventually(t, "applied", has(convention.EventDefinitionsApplied, `"msg":"applied"`))
	shop.Define(shop.definitions("  - {name: added, path: /added, upstreams: [\"http://127.0.0.1:1\"]}"))
	envoytest.Eventually(t, "read", has(convention.EventDefinitionsRead, `"msg":"definitions read"`))
	shop.Define("services: 1")
	envoytest.Eventually(t, "rejected", has(convention.EventDefinitionsRejected, `"level":"ERROR"`))
	for event, message := range map[convention.Event]string{
		convention.EventLogin: "login", convention.EventRequestDenied: "request denied", convention.EventRefresh: "token call",
		convention.EventRevoke: "token call", convention.EventSessionEnded: "token call",
	} {
		if !has(event, fmt.Sprintf(`"msg":%q`, message))() {
			t.Errorf("no record %s has the event %s:\n%s", message, event, shop.Log())
		}
	}
}
