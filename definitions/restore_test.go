package definitions

import (
	"slices"
	"strings"
	"testing"
)

func TestRestoreTakesTheFormerFormOfWhatIsNamedAndNothingElse(t *testing.T) {
	parse := func(services ...string) *Definitions {
		t.Helper()
		d, err := Parse("d.yaml", []byte("services:\n  - "+strings.Join(services, "\n  - ")+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	before := parse(`{name: a, path: /a, upstreams: ["http://old-a"]}`, `{name: b, path: /b, upstreams: ["http://old-b"]}`)
	after := parse(`{name: a, path: /a, authenticate: false, upstreams: ["https://new-a"]}`, `{name: b, path: /b, upstreams: ["http://new-b"]}`, `{name: c, path: /c, upstreams: ["https://c"]}`)

	restored, rest := after.Restore([]string{"a", "c"}, before)
	if !slices.Equal(rest, []string{"c"}) {
		t.Errorf("left over: %v, want c, which is new", rest)
	}
	for name, upstream := range map[string]string{"a": "http://old-a", "b": "http://new-b", "c": "https://c"} {
		if got := restored.service(name).Upstreams[0].String(); got != upstream {
			t.Errorf("%s goes to %s, want %s", name, got, upstream)
		}
	}
	if !restored.service("a").Authenticate {
		t.Error("a, which was secured, is public in its former form")
	}
	if after.service("a").Upstreams[0].String() != "https://new-a" {
		t.Error("the definitions that were given have changed")
	}

	if _, rest := after.Restore([]string{"a"}, nil); !slices.Equal(rest, []string{"a"}) {
		t.Errorf("with nothing before, left over: %v, want a", rest)
	}
	moved := parse(`{name: a, path: /elsewhere, upstreams: ["https://a"]}`, `{name: thief, path: /A, upstreams: ["http://t"]}`)
	same, rest := moved.Restore([]string{"a"}, before)
	if same != moved || !slices.Equal(rest, []string{"a"}) {
		t.Errorf("where the former path is another's now: left over %v, want a and all as it is", rest)
	}

	for name, closed := range map[string]string{
		"secured from now on":     `{name: p, path: /p, upstreams: ["https://p"]}`,
		"no more under a host":    `{name: h, path: /h, hosts: [a.example], upstreams: ["https://h"]}`,
		"also under another host": `{name: h, path: /h, hosts: [a.example, b.example, c.example], upstreams: ["https://h"]}`,
		"under a host, not all":   `{name: p, path: /p, authenticate: false, hosts: [a.example], upstreams: ["https://p"]}`,
		"a scope from now on":     `{name: s, path: /s, scopes: [read, write], upstreams: ["https://s"]}`,
	} {
		open := parse(`{name: p, path: /p, authenticate: false, upstreams: ["http://p"]}`, `{name: s, path: /s, scopes: [read], upstreams: ["http://s"]}`,
			`{name: h, path: /h, hosts: [a.example, b.example], upstreams: ["http://h"]}`)
		after := parse(closed)
		what := after.Gateway.Services[0].Name
		if _, rest := after.Restore([]string{what}, open); !slices.Equal(rest, []string{what}) {
			t.Errorf("%s: left over %v, want it and not its former form", name, rest)
		}
	}
}
