package endpoint

import (
	"fmt"
	"net/url"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"
	"gatepost/tokens/shield"
)

// Settings is what the definitions say about tokens, in the form in which a request needs it. It is not
// changed once it is in use.
type Settings struct {
	// Lifetime is how long a token opens services, SessionLifetime how long a session can be refreshed.
	Lifetime, SessionLifetime time.Duration
	// RefreshGrace is how long a refreshed token works on.
	RefreshGrace time.Duration
	// Format is the form of the tokens that are minted.
	Format tokens.Format
	// MaxSessions is how many sessions one user may have; 0: any number.
	MaxSessions int
	// Authenticator is the user service; nil: there is no login.
	Authenticator *Authenticator
	// Shield limits logins.
	Shield shield.Settings
}

// Authenticator is the user service that a login is sent to.
type Authenticator struct {
	// URL is its whole address.
	URL *url.URL
	// Timeout is how long it may take, from the first byte sent to the last received.
	Timeout time.Duration
	// UserHeader and ScopesHeader are the headers of its 200 that bear the user's id and the session's scopes.
	UserHeader, ScopesHeader string
	// UserField is the field of a login, JSON or form, that names the user; empty: logins are limited by
	// client address alone. Where it is set, a login whose user cannot be made out is refused, since it would
	// slip the limit for its user.
	UserField string
}

// SettingsFrom returns the settings in definitions, whose defaults are filled in.
func SettingsFrom(t *gatewayv1.Tokens) (*Settings, error) {
	s := &Settings{
		Lifetime:        t.GetLifetime().AsDuration(),
		SessionLifetime: t.GetSessionLifetime().AsDuration(),
		RefreshGrace:    t.GetRefreshGrace().AsDuration(),
		Format:          tokens.Format(t.GetFormat()),
		MaxSessions:     int(t.GetMaxSessions()),
		Shield:          shieldFrom(t.GetShield()),
	}
	a := t.GetAuthenticator()
	if a == nil {
		return s, nil
	}
	target, err := url.Parse(a.GetUrl())
	if err != nil {
		return nil, fmt.Errorf("reading tokens.authenticator.url: %w", err)
	}
	s.Authenticator = &Authenticator{
		URL:          target,
		Timeout:      a.GetTimeout().AsDuration(),
		UserHeader:   a.GetUserHeader(),
		ScopesHeader: a.GetScopesHeader(),
		UserField:    a.GetUserField(),
	}
	return s, nil
}

// shieldFrom returns the shield's defaults with what the definitions say put in their place.
func shieldFrom(d *gatewayv1.Shield) shield.Settings {
	s := shield.Defaults()
	limitFrom(&s.Address, d.GetAddress())
	limitFrom(&s.User, d.GetUser())
	if d.GetConcurrent() > 0 {
		s.Concurrent = int(d.GetConcurrent())
	}
	if b := d.GetBreaker(); b != nil {
		setCount(&s.Breaker.Failures, b.Failures)
		setTime(&s.Breaker.Pause, b.GetPause())
		setTime(&s.Breaker.Cap, b.GetCap())
	}
	return s
}

func limitFrom(l *shield.Limit, d *gatewayv1.Limit) {
	if d == nil {
		return
	}
	setCount(&l.Failures, d.Failures)
	setTime(&l.Forgive, d.GetForgive())
	setTime(&l.Base, d.GetBase())
	setTime(&l.Cap, d.GetCap())
}

func setCount(to *int, said *uint32) {
	if said != nil {
		*to = int(*said)
	}
}

func setTime(to *time.Duration, said *durationpb.Duration) {
	if said != nil {
		*to = said.AsDuration()
	}
}
