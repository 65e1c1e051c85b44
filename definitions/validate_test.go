package definitions

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files writes the texts into a directory, goes there, and returns nothing: their names are their paths.
func files(t *testing.T, texts map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range texts {
		if err := os.WriteFile(filepath.Clean(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestValidateListsEveryProblemOfEveryFile(t *testing.T) {
	files(t, map[string]string{
		"good.yaml": "tokens: {authenticator: {url: \"http://auth\"}}\n" + shop("orders"),
		"bad.yaml":  "listen: x\nservices: 1\n",
		"note.yaml": shop("orders", "items"),
	})
	var out bytes.Buffer
	ok, err := (Validation{Format: "text"}).Run(&out, "good.yaml", "bad.yaml", "none.yaml", "note.yaml")
	if ok || err != nil {
		t.Errorf("got %v, %v; want false and no error", ok, err)
	}
	want := `good.yaml: good, 1 service
bad.yaml:1:9: listen: "x" is not an address with a port (write an IP address and a port, such as 0.0.0.0:5500)
bad.yaml:2:11: services: is "1", not a list (write ["1"])
none.yaml:1:1: reading definitions: open none.yaml: no such file or directory
note.yaml:2:5: services[0].authenticate: note: nobody can log in to this or another secured service (set tokens.authenticator)
note.yaml: good, 2 services
see docs/troubleshooting.md#addresses, docs/troubleshooting.md#fields-and-values, docs/troubleshooting.md#the-file
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestValidateAsJSON(t *testing.T) {
	files(t, map[string]string{"good.yaml": shop(), "bad.yaml": "services: []\nlisten: x\n"})
	for _, test := range []struct {
		paths []string
		ok    bool
	}{{[]string{"good.yaml"}, true}, {[]string{"good.yaml", "bad.yaml"}, false}} {
		var out bytes.Buffer
		ok, err := (Validation{Format: "json"}).Run(&out, test.paths...)
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			OK    bool
			Files []Report
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if ok != test.ok || got.OK != test.ok || len(got.Files) != len(test.paths) {
			t.Errorf("%v: got %v and %s, want %v", test.paths, ok, &out, test.ok)
		}
		if bytes.Contains(out.Bytes(), []byte("null")) {
			t.Errorf("a list that is null: %s", &out)
		}
		if test.ok {
			continue
		}
		want := Problems{{File: "bad.yaml", Line: 2, Column: 9, Field: "listen", What: `"x" is not an address with a port`, Remedy: "write an IP address and a port, such as 0.0.0.0:5500", See: "docs/troubleshooting.md#addresses"}}
		if diff := cmp.Diff(want, got.Files[1].Problems); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

func TestValidateSaysWhenItCannotWrite(t *testing.T) {
	files(t, map[string]string{"good.yaml": shop()})
	if _, err := (Validation{Format: "xml"}).Run(&bytes.Buffer{}, "good.yaml"); err == nil {
		t.Error("took a format that there is not")
	}
	for _, format := range []string{"text", "json"} {
		if _, err := (Validation{Format: format}).Run(fullDisk{}, "good.yaml"); !errors.Is(err, errFull) {
			t.Errorf("%s: got %v, want that the disk is full", format, err)
		}
	}
}

var errFull = errors.New("disk full")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestPublicListsWhatNeedsNoToken(t *testing.T) {
	files(t, map[string]string{"gateway.yaml": `tokens: {path: /login}
services:
  - {name: orders, path: /orders, upstreams: ["http://a"]}
  - {name: items, path: /items, upstreams: ["http://a"], authenticate: false, allowed_methods: [POST, GET]}
  - {name: prices, path: /Items/Prices, upstreams: ["http://a"]}
  - {name: costs, path: /items/costs, upstreams: ["http://a"]}
  - {name: open, path: /items/costs/open, upstreams: ["http://a"], authenticate: false, allowed_methods: [GET]}
  - {name: about, path: /about, upstreams: ["http://a"], authenticate: false, allowed_methods: [OPTIONS]}
`})
	want := `* /.gatepost/version (gateway)
OPTIONS /about about
GET,HEAD,POST /items items except /Items/Prices /items/costs
GET,HEAD /items/costs/open open
POST /login (gateway)
POST /login/introspect (gateway)
POST /login/refresh (gateway)
POST /login/revoke (gateway)
DELETE,GET /login/sessions (gateway)
`
	var out bytes.Buffer
	if ok, err := (Validation{Format: "text", Public: true}).Run(&out, "gateway.yaml"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestPublicListHasHosts: a secured service under a more specific host is an exception.
func TestPublicListHasHosts(t *testing.T) {
	files(t, map[string]string{"gateway.yaml": `tokens: {path: /login, hosts: [login.example, api.example]}
services:
  - {name: items, path: /items, upstreams: ["http://a"], authenticate: false, allowed_methods: [GET]}
  - {name: api-items, path: /items, hosts: [api.example], upstreams: ["http://a"]}
  - {name: prices, path: /items/prices, hosts: ["*.shop.example"], upstreams: ["http://a"]}
  - {name: admin, path: /, hosts: [admin.example], upstreams: ["http://a"]}
  - {name: wiki, path: /wiki, hosts: [wiki.example, "*.wiki.example"], upstreams: ["http://a"], authenticate: false, allowed_methods: [GET]}
  - {name: edit, path: /wiki/edit, hosts: [wiki.example, en.wiki.example], upstreams: ["http://a"]}
  - {name: about, path: /items, hosts: [open.example], upstreams: ["http://a"], authenticate: false, allowed_methods: [GET]}
`})
	want := `* /.gatepost/version (gateway)
GET,HEAD /items items except *.shop.example/items/prices admin.example/items api.example/items
GET,HEAD open.example/items about
POST api.example/login (gateway)
POST login.example/login (gateway)
POST api.example/login/introspect (gateway)
POST login.example/login/introspect (gateway)
POST api.example/login/refresh (gateway)
POST login.example/login/refresh (gateway)
POST api.example/login/revoke (gateway)
POST login.example/login/revoke (gateway)
DELETE,GET api.example/login/sessions (gateway)
DELETE,GET login.example/login/sessions (gateway)
GET,HEAD *.wiki.example/wiki wiki except en.wiki.example/wiki/edit
GET,HEAD wiki.example/wiki wiki except /wiki/edit
`
	var out bytes.Buffer
	if ok, err := (Validation{Format: "text", Public: true}).Run(&out, "gateway.yaml"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestEnvoysVerdictCounts(t *testing.T) {
	files(t, map[string]string{"good.yaml": shop(), "bad.yaml": "services: 1"})
	for _, test := range []struct {
		verdict Verdict
		ok      bool
		says    string
	}{
		{Verdict{Asked: true}, true, "good.yaml: good, 0 services, to Envoy too\n"},
		{Verdict{Skipped: "no Envoy found"}, true, "good.yaml: good, 0 services; Envoy's own check skipped: no Envoy found\n"},
		{Verdict{Asked: true, Refused: "no such cluster"}, false, "good.yaml: Envoy refuses what is made of it: no such cluster\nsee docs/troubleshooting.md#warnings-notes-and-envoy\n"},
	} {
		var out bytes.Buffer
		asked := 0
		v := Validation{Format: "text", Envoy: func(*Definitions) Verdict { asked++; return test.verdict }}
		ok, err := v.Run(&out, "good.yaml")
		if ok != test.ok || err != nil || out.String() != test.says {
			t.Errorf("%+v: got %v, %v and %q; want %v and %q", test.verdict, ok, err, &out, test.ok, test.says)
		}
		if _, err := v.Run(&out, "bad.yaml"); err != nil || asked != 1 {
			t.Errorf("Envoy was asked %d times, want once: never about a file that has problems", asked)
		}
	}
}
