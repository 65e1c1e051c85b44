package authz

import (
	"context"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/tokens"
)

// wanting has the lease filter ask for a lease with the Check, and tell of hits.
func wanting(t testing.TB, r *authv3.CheckRequest, hits map[string]any) *authv3.CheckRequest {
	t.Helper()
	ask := map[string]any{"number": 7}
	if hits != nil {
		ask["hits"] = hits
	}
	said, err := structpb.NewStruct(map[string]any{"ask": ask})
	if err != nil {
		t.Fatal(err)
	}
	r.Attributes.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{LeaseNamespace: said}}
	return r
}

// leaseOf is what an answer says that may be remembered: milliseconds, 0 for not at all.
func leaseOf(r *authv3.CheckResponse) float64 {
	return r.GetDynamicMetadata().GetFields()["lease"].GetNumberValue()
}

// newLeasing is a gate that may grant leases of a second.
func newLeasing(t testing.TB) *gate {
	g := newGate(t)
	g.lease = func() time.Duration { return time.Second }
	return g
}

// TestOnlyAPlainAllowMayBeRemembered: of a token in Authorization, on a route that needs one, where a lease was asked for.
func TestOnlyAPlainAllowMayBeRemembered(t *testing.T) {
	g := newLeasing(t)
	text := g.store.open(t, tokens.FormatUUID, "ann", "a").Reveal()
	stranger, _ := tokens.Mint(tokens.FormatUUID)
	with := func(headers ...string) map[string]string {
		h := map[string]string{"origin": "https://shop.example"}
		for i := 0; i < len(headers); i += 2 {
			h[headers[i]] = headers[i+1]
		}
		return h
	}
	scoped := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, Scopes: []string{"a"}}
	more := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, Scopes: []string{"b"}}
	forward := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, ForwardToken: true}
	for name, c := range map[string]struct {
		rule    Rule
		headers map[string]string
		want    bool
	}{
		"the token":                   {secured, with("authorization", text), true},
		"Bearer":                      {secured, with("authorization", "Bearer "+text), true},
		"a scope that it has":         {scoped, with("authorization", text), true},
		"forward_token":               {forward, with("authorization", text), true},
		"another cookie beside it":    {secured, with("authorization", text, "cookie", "a=b"), true},
		"another subprotocol":         {secured, with("authorization", text, "sec-websocket-protocol", "chat"), true},
		"a public service":            {publicRule, with("authorization", text), false},
		"a scope that it has not":     {more, with("authorization", text), false},
		"another origin":              {secured, with("authorization", text, "origin", "https://evil.example"), false},
		"no token":                    {secured, with(), false},
		"a malformed one":             {secured, with("authorization", "x"), false},
		"an unknown one":              {secured, with("authorization", stranger.Reveal()), false},
		"the token in a cookie":       {secured, with("cookie", "__Host-s="+text), false},
		"in a cookie too":             {secured, with("authorization", text, "cookie", "a=b; __Host-s="+text), false},
		"a cookie that was cleared":   {secured, with("authorization", text, "cookie", "__Host-s="), false},
		"the token in a subprotocol":  {secured, with("sec-websocket-protocol", "gatepost.bearer."+text), false},
		"the subprotocol's name only": {secured, with("authorization", text, "sec-websocket-protocol", "gatepost.bearer"), false},
	} {
		r := asking(everywhere, c.rule, c.headers)
		if got := g.check(t, r); got.GetDynamicMetadata() != nil {
			t.Errorf("%s: a lease that nobody asked for: %v", name, got.GetDynamicMetadata())
		}
		got := g.check(t, wanting(t, r, nil))
		if !c.want && got.GetDynamicMetadata() != nil {
			t.Errorf("%s: may be remembered: %v", name, got.GetDynamicMetadata())
		}
		if c.want && (leaseOf(got) != 1000 || got.GetDynamicMetadata().GetFields()["user"].GetStringValue() != "ann") {
			t.Errorf("%s: %v, want a second of ann", name, got.GetDynamicMetadata())
		}
	}
	g.store.outage = func(context.Context) error { return errDown }
	if got := g.check(t, wanting(t, asking(shop, secured, authorization(text)), nil)); got.GetDynamicMetadata() != nil {
		t.Errorf("a store that is down: %v", got.GetDynamicMetadata())
	}
}

// TestALeaseIsNoLongerThanTheTokensLife: nor, where a request is not told when the token ends, than until it must be.
func TestALeaseIsNoLongerThanTheTokensLife(t *testing.T) {
	for name, c := range map[string]struct {
		granted, life, longest time.Duration
		lease, left            float64
	}{
		"nothing is granted":                     {0, time.Hour, time.Minute, 0, 0},
		"less than nothing":                      {-time.Second, time.Hour, time.Minute, 0, 0},
		"less than a millisecond":                {999 * time.Microsecond, time.Hour, time.Minute, 0, 0},
		"whole milliseconds":                     {10*time.Millisecond + 999*time.Microsecond, time.Hour, time.Minute, 10, 0},
		"the token lives long":                   {time.Second, time.Hour, time.Minute, 1000, 0},
		"until it must be told":                  {time.Second, time.Minute + 300*time.Millisecond, time.Minute, 300, 0},
		"it must be told at once":                {time.Second, time.Minute, time.Minute, 0, 0},
		"a request may outlast it":               {time.Second, 30 * time.Second, time.Minute, 1000, 30_000},
		"it ends soon":                           {time.Second, 250 * time.Millisecond, time.Minute, 250, 250},
		"a WebSocket may last for ever":          {time.Second, time.Hour, 0, 1000, 3_600_000},
		"a WebSocket, and a token that ends now": {time.Second, 1500 * time.Microsecond, 0, 1, 2},
	} {
		g := newGate(t)
		token := g.store.open(t, tokens.FormatUUID, "ann")
		now := time.Now()
		g.now = func() time.Time { return now }
		g.store.live[token.Hash()].Expires = now.Add(c.life)
		g.lease = func() time.Duration { return c.granted }
		rule := Rule{Service: "orders", Authenticate: true, Longest: c.longest}
		got := g.check(t, wanting(t, asking(shop, rule, authorization(token.Reveal())), nil))
		if lease, left := leaseOf(got), got.GetDynamicMetadata().GetFields()["left"].GetNumberValue(); lease != c.lease || left != c.left {
			t.Errorf("%s: a lease of %v ms for a token that ends in %v, want %v and %v", name, lease, left, c.lease, c.left)
		}
	}
}

// TestTheLeaseIsAskedForBeforeTheLookUp: what is revoked between the two is waited for.
func TestTheLeaseIsAskedForBeforeTheLookUp(t *testing.T) {
	g := newGate(t)
	token := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	looked := 0
	g.lease = func() time.Duration {
		looked = g.store.asked
		return time.Second
	}
	if got := g.check(t, wanting(t, asking(shop, secured, authorization(token)), nil)); leaseOf(got) != 1000 || looked != g.store.asked-1 {
		t.Errorf("a lease of %v ms, asked for after look-up %d of %d", leaseOf(got), looked, g.store.asked)
	}
	g.lease = nil
	if got := g.check(t, wanting(t, asking(shop, secured, authorization(token)), nil)); got.GetDynamicMetadata() != nil {
		t.Errorf("a lease where none is configured: %v", got.GetDynamicMetadata())
	}
}

// TestHitsAreCounted: what Envoy let pass by itself counts among the decisions, whatever becomes of the request that tells.
func TestHitsAreCounted(t *testing.T) {
	g := newLeasing(t)
	count := func(service string) float64 {
		return testutil.ToFloat64(g.counts.decisions.WithLabelValues(service, "allow", "lease"))
	}
	r := wanting(t, asking(shop, secured, authorization("malformed")), map[string]any{"orders": 5, "parts": 2, "odd": "x", "less": -1})
	if _, err := g.Check(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if got := g.check(t, asking(shop, secured, authorization("malformed"))); got.GetDeniedResponse() == nil {
		t.Error("let pass")
	}
	for service, want := range map[string]float64{"orders": 5, "parts": 2, "odd": 0, "less": 0} {
		if got := count(service); got != want {
			t.Errorf("%s: %v hits, want %v", service, got, want)
		}
	}
}

// TestADenialNeverBearsMetadata: Envoy could take it for a lease.
func TestADenialNeverBearsMetadata(t *testing.T) {
	for r := range reasons {
		v := verdict{reason: r, rule: rule{service: "orders", userHeader: "x-user-id"}}
		answer := v.response()
		if r.decision() != allowed {
			answer.DynamicMetadata = &structpb.Struct{}
			if err := soundResponse(answer); err == nil {
				t.Errorf("%v with metadata is sound", r)
			}
		}
	}
}
