package authz

import (
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/tokens"
)

// TestDecisionForTheAccessLog: each response has the decision, and the user and the session of a live token; never a
// token.
func TestDecisionForTheAccessLog(t *testing.T) {
	const session = "0b0e8c1e-7a5c-4f3e-9f57-0d7a5b4f2c11"
	g := newTestServer(t)
	token := g.store.open(t, tokens.FormatUUID, "ann")
	g.store.live[token.Hash()].ID = session
	bad := g.store.open(t, tokens.FormatUUID, "an\xffn")
	unknown, _ := tokens.Mint(tokens.FormatUUID)
	secured := Rule{Service: "orders", Authenticate: true, Longest: time.Minute}
	scoped := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, Scopes: []string{"write"}}
	logged := Shared{UserHeader: "x-user-id", Log: true}
	for name, c := range map[string]struct {
		shared  Shared
		rule    Rule
		headers map[string]string
		want    map[string]any
	}{
		"no access log":                       {shop, secured, authorization(token.Reveal()), nil},
		"allowed":                             {logged, secured, authorization(token.Reveal()), map[string]any{"decision": "allow", "reason": "token_known", "user": "ann", "session": session}},
		"public":                              {logged, Rule{Service: "items"}, authorization(token.Reveal()), nil},
		"no token":                            {logged, secured, nil, map[string]any{"decision": "deny", "reason": "token_missing"}},
		"unknown token":                       {logged, secured, authorization(unknown.Reveal()), map[string]any{"decision": "deny", "reason": "token_unknown"}},
		"no scope":                            {logged, scoped, authorization(token.Reveal()), map[string]any{"decision": "deny", "reason": "scope_missing", "user": "ann", "session": session}},
		"a user's id that is no header value": {logged, secured, authorization(bad.Reveal()), map[string]any{"decision": "error", "reason": "bad_user"}},
	} {
		got := g.check(t, asking(c.shared, c.rule, c.headers)).GetDynamicMetadata()
		if c.want == nil && got == nil {
			continue
		}
		if diff := cmp.Diff(c.want, got.AsMap()); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

// TestResponseWithTheMarkOfTheModuleIsNotSent: ext_authz passes by a request with that mark.
func TestResponseWithTheMarkOfTheModuleIsNotSent(t *testing.T) {
	mark, err := structpb.NewStruct(map[string]any{MetadataHit: "mallory"})
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*authv3.CheckResponse{"an allow": allow(headerChanges{}), "a denial": deny(5, 401, "no")} {
		r.DynamicMetadata = mark
		if err := validateResponse(r); err == nil {
			t.Errorf("%s with the mark is sent", name)
		}
	}
	for r := range reasons {
		if r.String() == ReasonModule {
			t.Errorf("reason %d is called as the mark is", r)
		}
	}
}
