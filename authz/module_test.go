package authz

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// decisions records what is granted, and the order of the calls.
type decisions struct {
	ticket  func(h tokens.Hash)
	granted []table.Entry
	tickets []table.Ticket
	hits    map[string]uint64 // by service
}

func (d *decisions) Hits() func(service string) uint64 {
	return func(service string) uint64 { return d.hits[service] }
}

func (d *decisions) Ticket(h tokens.Hash) table.Ticket {
	if d.ticket != nil {
		d.ticket(h)
	}
	return table.Ticket{Epoch: 7, Generation: uint64(h[0])}
}

func (d *decisions) Grant(t table.Ticket, e table.Entry) {
	d.tickets, d.granted = append(d.tickets, t), append(d.granted, e)
}

// withDecisions is a server whose Envoy decides by itself.
func withDecisions(t testing.TB) (*testServer, *decisions) {
	g, d := newTestServer(t), &decisions{}
	g.decisions, g.counts.hits = d, d.Hits
	return g, d
}

const ruleID = "ab0000000000000000000000000000cd"

// TestOnlyAPlainAllowIsGranted: for a token in Authorization, on a route that needs one, with no other header changed.
func TestOnlyAPlainAllowIsGranted(t *testing.T) {
	g, d := withDecisions(t)
	text := g.store.open(t, tokens.FormatUUID, "ann", "a").Reveal()
	stranger, _ := tokens.Mint(tokens.FormatUUID)
	with := func(headers ...string) map[string]string {
		h := map[string]string{"origin": "https://shop.example"}
		for i := 0; i < len(headers); i += 2 {
			h[headers[i]] = headers[i+1]
		}
		return h
	}
	rule := func(change func(*Rule)) Rule {
		r := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, ID: ruleID}
		change(&r)
		return r
	}
	plain := rule(func(*Rule) {})
	for name, c := range map[string]struct {
		rule    Rule
		headers map[string]string
		want    bool
	}{
		"the token":                     {plain, with("authorization", text), true},
		"Bearer":                        {plain, with("authorization", "Bearer "+text), true},
		"a scope that it has":           {rule(func(r *Rule) { r.Scopes = []string{"a"} }), with("authorization", text), true},
		"forward_token":                 {rule(func(r *Rule) { r.ForwardToken = true }), with("authorization", text), true},
		"another cookie beside it":      {plain, with("authorization", text, "cookie", "a=b"), true},
		"another subprotocol":           {plain, with("authorization", text, "sec-websocket-protocol", "chat"), true},
		"a public service":              {rule(func(r *Rule) { r.Authenticate = false }), with("authorization", text), false},
		"a scope that it has not":       {rule(func(r *Rule) { r.Scopes = []string{"b"} }), with("authorization", text), false},
		"another origin":                {plain, with("authorization", text, "origin", "https://evil.example"), false},
		"no token":                      {plain, with(), false},
		"a malformed one":               {plain, with("authorization", "x"), false},
		"an unknown one":                {plain, with("authorization", stranger.Reveal()), false},
		"the token in a cookie":         {plain, with("cookie", "__Host-s="+text), false},
		"in a cookie too":               {plain, with("authorization", text, "cookie", "a=b; __Host-s="+text), false},
		"a cookie that was cleared":     {plain, with("authorization", text, "cookie", "__Host-s="), false},
		"the token in a subprotocol":    {plain, with("sec-websocket-protocol", "gatepost.bearer."+text), false},
		"the subprotocol's name only":   {plain, with("authorization", text, "sec-websocket-protocol", "gatepost.bearer"), false},
		"a rule without an id":          {rule(func(r *Rule) { r.ID = "" }), with("authorization", text), false},
		"a rule whose id is none":       {rule(func(r *Rule) { r.ID = strings.Repeat("x", 32) }), with("authorization", text), false},
		"a rule whose id is cut short":  {rule(func(r *Rule) { r.ID = ruleID[2:] }), with("authorization", text), false},
		"a rule whose id is far longer": {rule(func(r *Rule) { r.ID = ruleID[:30] }), with("authorization", text), false},
	} {
		d.granted, d.tickets = nil, nil
		g.check(t, asking(everywhere, c.rule, c.headers)) // in both ways
		if !c.want {
			if d.granted != nil {
				t.Errorf("%s: granted %v", name, d.granted)
			}
			continue
		}
		if len(d.granted) != 2 {
			t.Errorf("%s: granted %d times", name, len(d.granted))
			continue
		}
		session := g.store.live[d.granted[0].Token]
		want := table.Entry{
			Rule: [16]byte{0: 0xab, 15: 0xcd}, User: "ann", Token: session.Hash, Expires: session.Expires.UTC().Round(0),
			Inputs: [4]string{c.headers["authorization"], c.headers["origin"], c.headers["cookie"], c.headers["sec-websocket-protocol"]},
		}
		for i, e := range d.granted {
			if e != want || d.tickets[i] != (table.Ticket{Epoch: 7, Generation: uint64(session.Hash[0])}) {
				t.Errorf("%s: granted %+v by %v\nwant %+v", name, e, d.tickets[i], want)
			}
		}
	}
	d.granted = nil
	g.store.outage = func(context.Context) error { return errDown }
	g.check(t, asking(everywhere, plain, with("authorization", text)))
	if d.granted != nil {
		t.Error("granted while the store is down")
	}
}

// TestInputsAreThoseOfTheRule: a header that no decision by the rule depends on is no part of the entry.
func TestInputsAreThoseOfTheRule(t *testing.T) {
	g, d := withDecisions(t)
	text := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	r := Rule{Service: "orders", Authenticate: true, ID: ruleID}
	g.check(t, asking(shop, r, map[string]string{"authorization": text, "origin": "https://a.example", "cookie": "a=b", "sec-websocket-protocol": "chat"}))
	if len(d.granted) != 2 || d.granted[0].Inputs != [4]string{text} {
		t.Errorf("granted %+v", d.granted)
	}
}

// TestTicketIsTakenBeforeTheLookUp: what is revoked between the two is noticed.
func TestTicketIsTakenBeforeTheLookUp(t *testing.T) {
	g, d := withDecisions(t)
	text := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	d.ticket = func(tokens.Hash) {
		if g.store.asked != 0 {
			t.Error("the token was looked up first")
		}
	}
	r := Rule{Service: "orders", Authenticate: true, ID: ruleID}
	if _, err := g.Check(t.Context(), asking(shop, r, authorization(text))); err != nil || len(d.granted) != 1 {
		t.Errorf("%v, granted %v", err, d.granted)
	}
}

// TestHitsOfTheModuleAreCounted: those of the moment at which the counters are read.
func TestHitsOfTheModuleAreCounted(t *testing.T) {
	g, d := withDecisions(t)
	text := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	d.hits = map[string]uint64{secured.Service: 3, "unchecked": 5}
	counted := func() string {
		t.Helper()
		all, err := g.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, f := range all {
			for _, m := range f.GetMetric() {
				labels := map[string]string{}
				for _, l := range m.GetLabel() {
					labels[l.GetName()] = l.GetValue()
				}
				if labels["reason"] == "module" {
					out = append(out, fmt.Sprint(labels["service"], " ", labels["decision"], " ", m.GetCounter().GetValue()))
				}
			}
		}
		return strings.Join(out, ", ")
	}
	if got := counted(); got != "" {
		t.Errorf("before the first check: %q", got)
	}
	g.check(t, asking(shop, secured, authorization(text)))
	for _, step := range []struct {
		hits uint64
		want string
	}{{3, "3"}, {3, "3"}, {10, "10"}, {4, "10"}, {11, "11"}} { // a count that falls is none of this table
		d.hits[secured.Service] = step.hits
		if got, want := counted(), secured.Service+" allow "+step.want; got != want {
			t.Errorf("after %d hits: %q, want %q", step.hits, got, want)
		}
	}
}
