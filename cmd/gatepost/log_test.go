package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// Each error of Gatepost names the page that explains it; what Envoy logs, and what is no error, does not.
func TestErrorsInTheLogNameTheirPage(t *testing.T) {
	var out bytes.Buffer
	log, queue, err := (&settings{logLevel: "info", logFormat: "json"}).startLog(&out)
	if err != nil {
		t.Fatal(err)
	}
	log.Error("publishing failed", "error", "empty")
	log.With("service", "orders").Error("panic")
	log.Error("login", "see", "docs/troubleshooting.md#outcomes-of-logins-and-calls")
	log.Error("cannot bind", "from", "envoy")
	log.Warn("request could not be decided")
	if err := queue.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		var record struct{ See string }
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		got = append(got, record.See)
		if strings.Count(line, `"see"`) > 1 {
			t.Errorf("two pages: %s", line)
		}
	}
	want := []string{"docs/troubleshooting.md#log-events", "docs/troubleshooting.md#log-events", "docs/troubleshooting.md#outcomes-of-logins-and-calls", "", ""}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got %q, want %q", got, want)
	}
}
