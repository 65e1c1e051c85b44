package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/tokens"
)

// renewing has the lease filter ask for a lease with the Check, and name other requests beside it.
func renewing(t testing.TB, r *authv3.CheckRequest, said ...any) *authv3.CheckRequest {
	t.Helper()
	ask, err := structpb.NewStruct(map[string]any{"number": 7, "renew": said})
	if err != nil {
		t.Fatal(err)
	}
	wanting(t, r, nil).GetAttributes().GetMetadataContext().GetFilterMetadata()[LeaseNamespace].Fields["ask"] = structpb.NewStructValue(ask)
	return r
}

// renewed is what an answer says of the requests named, as "lease user left"; "" where nothing is said.
func renewed(r *authv3.CheckResponse) []string {
	var all []string
	for _, one := range r.GetDynamicMetadata().GetFields()["renewed"].GetListValue().GetValues() {
		f := one.GetStructValue().GetFields()
		if len(f) == 0 {
			all = append(all, "")
			continue
		}
		all = append(all, fmt.Sprint(f["lease"].GetNumberValue(), " ", f["user"].GetStringValue(), " ", f["left"].GetNumberValue()))
	}
	return all
}

// TestARenewalIsDecidedAsTheRequestItself: by the same rule, and by all that is said of it.
func TestARenewalIsDecidedAsTheRequestItself(t *testing.T) {
	g := newLeasing(t)
	ann, bob := g.store.open(t, tokens.FormatUUID, "ann", "a").Reveal(), g.store.open(t, tokens.FormatUUID, "bob").Reveal()
	stranger, _ := tokens.Mint(tokens.FormatUUID)
	said := func(lines ...string) string { return strings.Join(lines, "\n") }
	for name, c := range map[string]struct {
		shared Shared
		rule   Rule
		said   string
		want   string
	}{
		"another token":               {shop, secured, said("192.0.2.1", "Bearer "+bob), "1000 bob 0"},
		"the same one":                {shop, secured, said("192.0.2.1", "Bearer "+ann), "1000 ann 0"},
		"an unknown one":              {shop, secured, said("192.0.2.1", "Bearer "+stranger.Reveal()), ""},
		"a malformed one":             {shop, secured, said("192.0.2.1", "Bearer x"), ""},
		"none":                        {shop, secured, said("192.0.2.1", ""), ""},
		"too little said":             {shop, secured, said("Bearer " + bob), ""},
		"too much said":               {shop, secured, said("192.0.2.1", "Bearer "+bob, "https://shop.example"), ""},
		"nothing said":                {shop, secured, "", ""},
		"a scope that it has not":     {shop, Rule{Service: "orders", Authenticate: true, Scopes: []string{"a"}}, said("192.0.2.1", "Bearer "+bob), ""},
		"an origin, and other inputs": {everywhere, secured, said("192.0.2.1", "Bearer "+bob, "https://shop.example", "a=b", "chat"), "1000 bob 0"},
		"another origin":              {everywhere, secured, said("192.0.2.1", "Bearer "+bob, "https://evil.example", "", ""), ""},
		"no origin":                   {everywhere, secured, said("192.0.2.1", "Bearer "+bob, "", "", ""), ""},
		"a token in a cookie":         {everywhere, secured, said("192.0.2.1", "Bearer "+bob, "https://shop.example", "__Host-s="+bob, ""), ""},
		"inputs left out":             {everywhere, secured, said("192.0.2.1", "Bearer "+bob), ""},
	} {
		c.rule.Longest = time.Minute
		headers := map[string]string{"authorization": "Bearer " + ann, "origin": "https://shop.example"}
		got := g.check(t, renewing(t, asking(c.shared, c.rule, headers), c.said, c.said))
		if want := []string{c.want, c.want}; leaseOf(got) != 1000 || !slices.Equal(renewed(got), want) {
			t.Errorf("%s: a lease of %v, and renewed %q, want %q", name, leaseOf(got), renewed(got), want)
		}
	}
}

// TestADenialRenewsNothing: nor does an answer that may not be remembered itself.
func TestADenialRenewsNothing(t *testing.T) {
	g := newLeasing(t)
	ann := "Bearer " + g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	stranger, _ := tokens.Mint(tokens.FormatUUID)
	for name, r := range map[string]*authv3.CheckRequest{
		"an unknown token": asking(shop, secured, authorization("Bearer "+stranger.Reveal())),
		"a public service": asking(shop, publicRule, authorization(ann)),
	} {
		if got := g.check(t, renewing(t, r, "192.0.2.1\n"+ann)); got.GetDynamicMetadata() != nil {
			t.Errorf("%s: %v", name, got.GetDynamicMetadata())
		}
	}
	g.lease = func() time.Duration { return 0 }
	if got := g.check(t, renewing(t, asking(shop, secured, authorization(ann)), "192.0.2.1\n"+ann)); got.GetDynamicMetadata() != nil {
		t.Errorf("while no lease may be given: %v", got.GetDynamicMetadata())
	}
}

// TestARenewalIsAUse: of the session that it is of, from the address that its requests come from, and is no decision that is counted.
func TestARenewalIsAUse(t *testing.T) {
	g := newLeasing(t)
	var uses []string
	g.seen = func(h tokens.Holder, address string) { uses = append(uses, h.User()+" "+address) }
	ann, bob := g.store.open(t, tokens.FormatUUID, "ann").Reveal(), g.store.open(t, tokens.FormatUUID, "bob").Reveal()
	stranger, _ := tokens.Mint(tokens.FormatUUID)
	r := renewing(t, asking(shop, secured, authorization(ann)), "192.0.2.1\n"+bob, "192.0.2.2\n"+stranger.Reveal())
	if _, err := g.Check(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if want := []string{"ann 192.0.2.7", "bob 192.0.2.1"}; !slices.Equal(uses, want) {
		t.Errorf("uses %q, want %q", uses, want)
	}
	if denials := g.Recent(); len(denials) != 0 {
		t.Errorf("denials %v", denials)
	}
	known := testutil.ToFloat64(g.counts.decisions.WithLabelValues("orders", "allow", "token_known"))
	if n := testutil.ToFloat64(g.renewals); n != 1 || known != 1 {
		t.Errorf("%v renewals and %v decisions are counted, want one of each", n, known)
	}
}

// TestAnUnreachableStoreRenewsNothing: and the request that asked waits no longer than a moment for others' look-ups.
func TestAnUnreachableStoreRenewsNothing(t *testing.T) {
	g := newLeasing(t)
	ann := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	var said []any
	for range 50 {
		said = append(said, "192.0.2.1\n"+g.store.open(t, tokens.FormatUUID, "bob").Reveal())
	}
	asked := 0
	g.sessions = tokens.LookupFunc(func(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
		if asked++; asked == 1 { // the request's own
			return g.store.Lookup(ctx, h)
		}
		<-ctx.Done()
		return nil, errDown
	})
	got, err := g.Check(t.Context(), renewing(t, asking(shop, secured, authorization(ann)), said...))
	if err != nil || leaseOf(got) != 1000 || !slices.Equal(renewed(got), []string{""}) {
		t.Errorf("%v: a lease of %v, and renewed %q, want nothing of the first", err, leaseOf(got), renewed(got))
	}
	if asked != 2 {
		t.Errorf("%d look-ups, want one for the request and one that took all the time there was", asked)
	}
}

// TestWhatIsRenewedIsBounded: whoever reaches the port could name any number.
func TestWhatIsRenewedIsBounded(t *testing.T) {
	g := newLeasing(t)
	ann := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	said := make([]any, mostRenewals+1)
	for i := range said {
		said[i] = "192.0.2.1\nmalformed"
	}
	if got := g.check(t, renewing(t, asking(shop, secured, authorization(ann)), said...)); leaseOf(got) != 1000 || len(renewed(got)) != 0 {
		t.Errorf("a lease of %v, and %d were decided about", leaseOf(got), len(renewed(got)))
	}
	if got := g.check(t, renewing(t, asking(shop, secured, authorization(ann)), "192.0.2.1\n"+ann, "192.0.2.1\nx\x00192.0.2.1\n"+ann)); len(renewed(got)) != 0 {
		t.Errorf("two requests in one: %q", renewed(got))
	}
}
