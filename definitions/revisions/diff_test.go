package revisions

import (
	"bytes"
	"fmt"
	"testing"

	"gatepost/definitions"
)

func parse(t *testing.T, text string) *definitions.Gateway {
	t.Helper()
	d, err := definitions.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d.Gateway
}

const (
	orders = `  - {name: orders, path: /orders, upstreams: ["http://127.0.0.1:8081"]}` + "\n"
	slow   = `  - {name: orders, path: /orders, upstreams: ["http://127.0.0.1:8081"], timeout: 20s}` + "\n"
	items  = `  - {name: items, path: /items, upstreams: ["http://127.0.0.1:8082"]}` + "\n"
)

func TestWhatDiffersIsToldByService(t *testing.T) {
	old := parse(t, "services:\n"+orders+items)
	for name, c := range map[string]struct{ text, change, diff string }{
		"nothing":        {"services:\n" + orders + items, "nothing that is served", ""},
		"order and form": {"# a comment\nservices:\n" + items + orders, "nothing that is served", ""},
		"a default":      {"listen: 0.0.0.0:5500\nservices:\n" + orders + items, "nothing that is served", ""},
		"a field": {"services:\n" + slow + items, "~orders", "--- a: service orders\n+++ b: service orders\n" +
			"@@ -11,7 +11,7 @@\n       - DELETE\n     upstreams:\n       - http://127.0.0.1:8081\n-    timeout: 15s\n+    timeout: 20s\n" +
			"     outlier_detection: false\n     retries:\n       count: 1\n"},
		"a listen address": {"listen: 0.0.0.0:80\nservices:\n" + orders + items, "~listen", "--- a: listen\n+++ b: listen\n@@ -1,1 +1,1 @@\n-listen: 0.0.0.0:5500\n+listen: 0.0.0.0:80\n"},
	} {
		t.Run(name, func(t *testing.T) {
			now := parse(t, c.text)
			if got := Change(old, now); got != c.change {
				t.Errorf("the change is %q, want %q", got, c.change)
			}
			if got, err := Diff("a", old, "b", now); err != nil || got != c.diff {
				t.Errorf("the difference is\n%s%v, want\n%s", got, err, c.diff)
			}
		})
	}
	if got := Change(old, parse(t, "services:\n"+slow+`  - {name: news, path: /news, upstreams: ["http://127.0.0.1:8083"]}`)); got != "-items +news ~orders" {
		t.Errorf("the change is %q", got)
	}
	if got := Change(nil, parse(t, "services: []")); got == "nothing that is served" {
		t.Errorf("the first revision changes %q", got)
	}
}

// Naming the changed services takes neither the messages nor the texts of the unchanged ones.
func TestUnchangedServicesCostNothing(t *testing.T) {
	services := func(n int) string {
		var b bytes.Buffer
		b.WriteString("services:\n" + orders)
		for i := range n {
			fmt.Fprintf(&b, "  - {name: s%d, path: /s%[1]d, upstreams: [\"http://127.0.0.1:8081\"]}\n", i)
		}
		return b.String()
	}
	const many = 1000
	old, now := parse(t, services(many)), parse(t, services(many)+items)
	if got := Change(old, now); got != "+items" {
		t.Fatalf("the change is %q", got)
	}
	if got := testing.AllocsPerRun(5, func() { Change(old, now) }); got > many {
		t.Errorf("%.0f allocations to find 1 added service among %d", got, many)
	}
	if got := testing.AllocsPerRun(5, func() { Change(nil, now) }); got > 10*many {
		t.Errorf("%.0f allocations to name the first of %d services", got, many)
	}
}
