package endpoint

import (
	"testing"
	"time"

	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"

	"google.golang.org/protobuf/types/known/durationpb"
)

func TestSettingsAreTheDefinitions(t *testing.T) {
	definitions := &gatewayv1.Tokens{
		Lifetime: durationpb.New(time.Hour), SessionLifetime: durationpb.New(24 * time.Hour), Format: "secret", MaxSessions: 7,
		Authenticator: &gatewayv1.Authenticator{
			Url: "http://users.example/authenticate?x=1", Timeout: durationpb.New(5 * time.Second), UserHeader: "userid", ScopesHeader: "scopes",
		},
	}
	s, err := SettingsFrom(definitions)
	if err != nil {
		t.Fatal(err)
	}
	if s.Lifetime != time.Hour || s.SessionLifetime != 24*time.Hour || s.Format != tokens.FormatSecret || s.MaxSessions != 7 {
		t.Errorf("got %+v", s)
	}
	a := s.Authenticator
	if a.URL.String() != definitions.Authenticator.Url || a.Timeout != 5*time.Second || a.UserHeader != "userid" || a.ScopesHeader != "scopes" {
		t.Errorf("got %+v", a)
	}
	if got := target(a.URL, "y=2").String(); got != "http://users.example/authenticate?x=1&y=2" {
		t.Errorf("a login goes to %s", got)
	}
	definitions.Authenticator.Url = "http://%zz"
	if _, err := SettingsFrom(definitions); err == nil {
		t.Error("an address that is none is taken")
	}
	definitions.Authenticator = nil
	if s, err := SettingsFrom(definitions); err != nil || s.Authenticator != nil {
		t.Errorf("got %+v, %v", s, err)
	}
}
