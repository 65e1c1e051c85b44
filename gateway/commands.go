package gateway

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gatepost/definitions"
	"gatepost/definitions/revisions"
	"gatepost/explain"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/redisconn"
	"gatepost/tokens"
	"gatepost/tokens/cache"
	"gatepost/tokens/redisstore"
	"gatepost/xds"
)

// This file assembles what commands need that run no gateway.

// SessionsConfig is what [OpenSessions] needs.
type SessionsConfig struct {
	// Redis has the sessions. Required.
	Redis *redisconn.Options
	// Author is who ends sessions, for the logs of the gateways.
	Author string
	// OnUnannounced receives why the gateways will not log that a session was ended. Nil: it is ignored.
	OnUnannounced func(error)
}

// Sessions are the sessions in a Redis. No gateway need run: those that do receive the invalidations from Redis, and a
// notice of each revoke for their logs.
type Sessions struct {
	tokens.Store
	redis  *redisstore.Store
	config SessionsConfig
}

// OpenSessions opens the sessions in a Redis, to which it does not connect yet. The caller closes them.
func OpenSessions(config SessionsConfig) (*Sessions, error) {
	conn := redisconn.Open(config.Redis)
	redis, err := redisstore.New(redisstore.Config{Conn: conn})
	if err != nil {
		return nil, err
	}
	store, err := cache.New(redis, cache.OfflineTracker{}, cache.Config{LookupTimeout: conn.CallTimeout()})
	if err != nil {
		return nil, fmt.Errorf("opening the token store: %w", err)
	}
	return &Sessions{store, redis, config}, nil
}

// RevokeSession implements [tokens.Store].
func (s *Sessions) RevokeSession(ctx context.Context, user, id string) error {
	err := s.Store.RevokeSession(ctx, user, id)
	if err == nil {
		s.announce(ctx, redisstore.Revoke{Session: id, Ended: 1})
	}
	return err
}

// RevokeUser implements [tokens.Store].
func (s *Sessions) RevokeUser(ctx context.Context, user string) (int, error) {
	n, err := s.Store.RevokeUser(ctx, user)
	if n > 0 {
		s.announce(ctx, redisstore.Revoke{User: user, Ended: n})
	}
	return n, err
}

func (s *Sessions) announce(ctx context.Context, notice redisstore.Revoke) {
	notice.Who, notice.When = s.config.Author, time.Now().UTC().Truncate(time.Second)
	if err := s.redis.PublishRevoke(ctx, notice); err != nil && s.config.OnUnannounced != nil {
		s.config.OnUnannounced(err)
	}
}

// OpenRevisions opens the definitions in a Redis, to which it does not connect yet.
func OpenRevisions(options *redisconn.Options) (store *revisions.Store, closeStore func() error, err error) {
	client := redisconn.Open(options).Client()
	store, err = revisions.New(revisions.Config{Client: client, Address: options.String()})
	return store, client.Close, err
}

// NewExplainer returns an explainer of definitions as the running gateway of the Config serves them or, if it has none,
// as one would that reads the same files of certificates.
func NewExplainer(config explain.Config) (*explain.Explainer, error) {
	if running := config.Gateway; running == nil {
		config.Options.Certificates = Certificates(config.Definitions)
	} else {
		config.Options.Certificates = served(config.Definitions.Gateway.TLS, running.Status.GetCertificates())
		// the version covers the paths of the module's files
		config.Options.Module = xds.Module{Library: running.Status.GetModule().GetLibrary(), Table: running.Status.GetModule().GetTable()}
	}
	return explain.New(config)
}

// served returns the certificates of a listener, which may be nil, that a gateway has.
func served(tls *definitions.TLS, all []*gatewayv1.CertificateStatus) (out []xds.Certificate) {
	if tls == nil {
		return nil
	}
	for _, c := range all {
		isDomain := tls.ACME != nil && slices.Contains(tls.ACME.Domains, c.GetName()) // which has a placeholder at least
		isDefault := c.GetName() == tls.DefaultCertificate
		if len(c.GetServices()) == 0 && (isDomain || c.GetNotAfter() != nil && len(c.GetNames()) > 0 || isDefault) {
			out = append(out, xds.Certificate{Name: c.GetName(), ServerNames: c.GetNames(), Default: isDefault})
		}
	}
	return out
}
