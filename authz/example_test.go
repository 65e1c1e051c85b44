package authz_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatepost/authz"
	"gatepost/tokens"
)

// The route carries the rule, Envoy sends it with each Check, and only a well-formed token is looked up. "No" and
// "cannot tell" are different outcomes.
func ExampleDecide() {
	rule := authz.Rule{Service: "orders", Authenticate: true, Scopes: []string{"orders"}}.With(authz.Shared{UserHeader: "x-user-id"})
	check := func(authorization string) *authz.Request {
		return authz.NewRequest(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			ContextExtensions: rule.GetCheckSettings().GetContextExtensions(),
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
				Headers: map[string]string{"authorization": authorization},
			}},
		}})
	}
	known, _ := tokens.Parse("8fa5e23a-b272-40b0-8a36-974384357fa6")
	session, _ := tokens.NewSession(known.Hash(), "user-1", []string{"orders"}, time.Now(), time.Hour, time.Hour)
	store := tokens.LookupFunc(func(_ context.Context, h tokens.Hash) (*tokens.Session, error) {
		if h != known.Hash() {
			return nil, tokens.ErrUnknown
		}
		return session, nil
	})
	outage := tokens.LookupFunc(func(context.Context, tokens.Hash) (*tokens.Session, error) {
		return nil, errors.New("connection refused")
	})

	for _, c := range []struct {
		authorization string
		sessions      authz.Sessions
	}{
		{"Bearer 8fa5e23a-b272-40b0-8a36-974384357fa6", store},
		{"Bearer 00000000-0000-4000-8000-000000000000", store},
		{"Bearer 8fa5e23a-b272-40b0-8a36-974384357fa6", outage},
		{"Bearer password", store},
		{"", store},
	} {
		d := authz.Decide(context.Background(), check(c.authorization), c.sessions, time.Now)
		fmt.Printf("%s: %s %q\n", d.Outcome(), d.Reason, d.User)
	}
	// Output:
	// allow: token_known "user-1"
	// deny: token_unknown ""
	// error: store_unavailable ""
	// deny: token_malformed ""
	// deny: token_missing ""
}
