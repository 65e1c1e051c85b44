package definitions

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/testrun"
)

// checkNext holds Next to its promise: it returns what Parse does, and unchanged services keep their pointer.
func checkNext(t *testing.T, before *Definitions, text string) (next *Definitions, err error) {
	t.Helper()
	next, err = before.Next("after.yaml", []byte(text))
	want, wantErr := Parse("after.yaml", []byte(text))
	if fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Fatalf("after\n%s\nthe text\n%s\nis said to be\n%v\nand is\n%v", before.Text, text, err, wantErr)
	}
	if err != nil {
		return nil, err
	}
	if next.Name != want.Name || string(next.Text) != text || !reflect.DeepEqual(next.Gateway, want.Gateway) || !slices.Equal(next.places, want.places) || next.end != want.end {
		t.Fatalf("after\n%s\nthe text\n%s\nbecomes\n%v %v %v\nand is\n%v %v %v",
			before.Text, text, next.Gateway.Message(), next.places, next.end, want.Gateway.Message(), want.places, want.end)
	}
	for _, s := range next.Gateway.Services {
		if former := before.service(s.Name); former != s && reflect.DeepEqual(former, s) {
			t.Fatalf("after\n%s\nthe unchanged service %q of\n%s\nhas another pointer", before.Text, s.Name, text)
		}
	}
	return next, nil
}

// TestWhatComesNextIsReadAsAnythingElse: whatever was done to the lines of a file, also where they are YAML that
// nobody writes.
func TestWhatComesNextIsReadAsAnythingElse(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(0, uint64(seed)))
	good, edited, edits := 0, 0, 150 // edits of each seed
	if testing.Short() {
		edits = 50
	}
	pool := strings.SplitAfter(strings.Join(nextSeeds, "\n")+nastyLines, "\n")
	for _, start := range nextSeeds {
		var before *Definitions
		var lines []string
		for i := range edits {
			if i%10 == 0 { // else little is left
				before, lines = mustParse(t, start), strings.SplitAfter(start, "\n")
			}
			now := slices.Clone(lines)
			for range 1 + random.IntN(2) {
				at, from := random.IntN(len(now)), random.IntN(len(pool))
				switch random.IntN(5) {
				case 0:
					now = slices.Insert(now, at, pool[from:min(from+1+random.IntN(3), len(pool))]...)
				case 1:
					now[at] = strings.ReplaceAll(now[at], fmt.Sprint(random.IntN(5)), fmt.Sprint(random.IntN(9)))
				case 2:
					now[at] = pool[from]
				case 3:
					other := random.IntN(len(now))
					now[at], now[other] = now[other], now[at]
				}
				if random.IntN(3) == 0 {
					at = random.IntN(len(now))
					now = slices.Delete(now, at, min(at+1+random.IntN(2), len(now)))
				}
				if len(now) == 0 {
					now = []string{"services: []"}
				}
			}
			text := strings.Join(now, "")
			if before.edited("after.yaml", []byte(text)) != nil {
				edited++
			}
			if next, err := checkNext(t, before, text); err == nil {
				good++
				before, lines = next, now
			}
		}
	}
	t.Logf("%d were good, of which %d were read in part", good, edited)
	if edited == 0 {
		t.Error("none was read in part")
	}
}

// nextSeeds are files to begin with, in several styles.
var nextSeeds = []string{
	"services:\n" +
		"  - {name: s0, path: /s0, upstreams: [\"http://h0\"]}\n  - {name: s1, path: /s1, upstreams: [\"http://h1\"]}\n" +
		"  - {name: s2, path: /s2, upstreams: [\"http://h2\"]}\n  - {name: s3, path: /s3, upstreams: [\"http://h3\"]}\n",
	"# a shop\nlisten: :1234\nservices:\n- name: s0\n  path: /s0 # here\n\n  upstreams:\n  - http://h0\n  - http://h1\n" +
		"- name: s1\n  path: >-\n    /s1\n  upstreams: [\n\"http://h1\"]\n  scopes: [a,\n    b]\n# between\n- name: \"s2\"\n  path: '/s2'\n  upstreams: [http://h2]\n  timeout: 5s\n" +
		"tokens:\n  path: /login\n  lease: 1s\norigins:\n- https://a.example\n",
	"tokens: {path: /s9}\nservices:\n  # first\n  -   name: s0\n      path: /s0\n      upstreams: &x [\"http://h0\"]\n  -\n    name: s1\n    path: /s1\n    upstreams: [\"http://h1\"]\n" +
		"  - name: s2\n    path: |-\n      /s2\n    upstreams: [\"http://h2\"]\n\n\nidentity:\n  user_header: x-uid\n",
	"%YAML 1.1\n---\nservices:\n  - {name: s0, path: /s0, upstreams: [\"http://h0\"]}\n  - {name: s1, path: /s1, upstreams: [\"http://h1\"]}\n",
	"{\"services\": [\n  {\"name\": \"s0\", \"path\": \"/s0\", \"upstreams\": [\"http://h0\"]},\n  {\"name\": \"s1\", \"path\": \"/s1\", \"upstreams\": [\"http://h1\"]}\n]}\n",
	"services: [\n  {name: s0, path: /s0, upstreams: [\"http://h0\"]},\n  {name: s1, path: /s1, upstreams: [\"http://h1\"]}]\nlisten: :99",
	"services:\n  - {name: s0, path: /s0, upstreams: [\"http://h0\"]}\n  - {name: s1, path: /s1, upstreams: [\"http://h1\"]}",
	"tokens: {hosts: [h9.example]}\nservices:\n  - {name: s0, path: /s0, hosts: [h0.example], upstreams: [\"http://h0\"]}\n" +
		"  - {name: s1, path: /s0, hosts: [h1.example, \"*.h0.example\"], upstreams: [\"http://h1\"]}\n  - {name: s2, path: /s0, upstreams: [\"http://h2\"]}\n" +
		"  - name: s3\n    path: /s0\n    hosts:\n      - h3.example\n      - h4.example\n    upstreams: [\"http://h2\"]\n",
}

const nastyLines = `
---
...
%TAG ! tag:yaml.org,2002:
cors: {}
listen: :77
services: []
tokens:
  - {name: s5, path: /s5, upstreams: ["http://h5"]}
  - {name: s6, path: /s6, upstreams: ["http://h6"], description: x}
  - {name: s3, path: /s3, upstreams: ["http://localhost:1234"]}
  - {name: S1, path: /S1, upstreams: ["http://h1"]}
  - {name: s7, path: /s1/x, upstreams: *x}
  - <<: {name: s8}
  - !!map {name: s9, path: /s9, upstreams: ["http://h9"]}
  - &y {name: s4, path: !!str /s4, upstreams: ["http://h4"]}
   - {name: s4}
 - {name: s4}
- {name: s4, path: /s4, upstreams: ["http://h4"]}
  - "open
  - [
  ]
  - |
  - |2
    name: s5
      path: /s5
    scopes: [a, a]
    keep_prefix: true
  timeout: 1h
	- {name: s4}
  - {name: "s` + "\u00e9" + `", path: /x, upstreams: ["http://h"]}
# {name: s4}
  # ` + "\u2028" + `
`

// TestOneServiceMoreIsReadByItself: where it is added to a long list, wherever.
func TestOneServiceMoreIsReadByItself(t *testing.T) {
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint("s", i)
	}
	before := mustParse(t, shop(names...))
	for _, at := range []int{0, 1, 50, 99, 100} {
		text := shop(slices.Insert(slices.Clone(names), at, "more")...)
		if before.edited("after.yaml", []byte(text)) == nil {
			t.Errorf("one more at %d has the whole read", at)
		}
		if _, err := checkNext(t, before, text); err != nil {
			t.Error(err)
		}
	}
	if _, err := checkNext(t, before, shop(append(names, "s7")...)); err == nil {
		t.Error("two of one name are taken")
	}
	if _, err := checkNext(t, before, "listen: :1\n"+shop(names...)); err != nil {
		t.Error(err)
	}
	own := strings.Replace(shop(names...), "services:", "listen: :1\nservices:", 1)
	before = mustParse(t, own)
	if _, err := checkNext(t, before, own+"  - {name: own, path: /own, upstreams: [\"http://localhost:1\"]}\n"); err == nil {
		t.Error("an upstream that is the gateway's own address is taken")
	}
}

// TestNoMoreServicesThanTheModelAllows: though few of them are read.
func TestNoMoreServicesThanTheModelAllows(t *testing.T) {
	services := make([]*Service, 20_001)
	for i := range services {
		services[i] = &Service{Name: fmt.Sprint("s", i), Path: fmt.Sprint("/s", i)}
	}
	if !validTogether(services[:20_000]) || validTogether(services) {
		t.Error("the model allows 20,000")
	}
}

func FuzzNext(f *testing.F) {
	for _, seed := range nextSeeds {
		f.Add(seed, 1, 1, "  - {name: s5, path: /s5, upstreams: [\"http://h5\"]}\n")
	}
	f.Fuzz(func(t *testing.T, text string, from, length int, with string) {
		before, err := Parse("before.yaml", []byte(text))
		if err != nil || from < 0 || length < 0 || from > len(text) || length > len(text)-from {
			t.Skip()
		}
		_, _ = checkNext(t, before, text[:from]+with+text[from+length:])
	})
}

// BenchmarkNext: to so many services one is added.
func BenchmarkNext(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf("service-%d", i)
		}
		before := mustParse(b, shop(names...))
		text := []byte(shop(append(names, "more")...))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := before.Next("f.yaml", text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
