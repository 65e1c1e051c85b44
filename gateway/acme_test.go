package gateway

import (
	"log/slog"
	"testing"

	"gatepost/certs"
	"gatepost/definitions"
)

// TestTheCAIsAskedOnceEnvoyAnswersChallenges: a challenge that arrives at an Envoy without its route fails, and the
// next attempt is a minute later.
func TestTheCAIsAskedOnceEnvoyAnswersChallenges(t *testing.T) {
	t.Parallel()
	with := func(text string) *definitions.Definitions {
		d, err := definitions.Parse("gateway.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	one := "tls: {acme: {domains: [a.test], email: a@a.test}}\n"
	two := "tls: {acme: {domains: [a.test, b.test], email: a@a.test}}\n"
	a, err := newACMERunner(Config{Data: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}, certs.NewSet(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	asks := func(what string, want bool) {
		t.Helper()
		if got := a.activated() != nil; got != want {
			t.Errorf("%s: the CA is asked: %t, want %t", what, got, want)
		}
		if m := a.current(); want && m != a.activated() {
			t.Errorf("%s: another manager than the one that answers challenges", what)
		}
	}
	a.follow(with(one + "services: []\n"))
	asks("published", false)
	a.activate()
	asks("active", true)
	a.follow(with(one + "services: [{name: a, path: /a, upstreams: [\"http://127.0.0.1:1\"]}]\n"))
	asks("another service is published", true)
	a.follow(with(two + "services: []\n"))
	asks("another domain is published", false)
	a.follow(with(one + "services: []\n"))
	asks("the former ones are published in the place of rejected ones", false)
	a.activate()
	asks("active again", true)
	a.follow(with("services: []\n"))
	asks("without ACME", false)
	a.activate()
	asks("active without ACME", false)
	a.follow(with(one + "services: []\n"))
	asks("ACME is added", false)
}
