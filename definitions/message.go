package definitions

import (
	"strconv"

	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// Message returns g in the form of the schema, for output. Every default is written out.
func (g *Gateway) Message() *gatewayv1.Gateway {
	m := &gatewayv1.Gateway{
		Listen:  g.Listen.String(),
		Origins: g.Origins,
		Cors: &gatewayv1.Cors{
			AllowHeaders:     g.Cors.AllowHeaders,
			ExposeHeaders:    g.Cors.ExposeHeaders,
			AllowCredentials: g.Cors.AllowCredentials,
			MaxAge:           durationpb.New(g.Cors.MaxAge),
		},
		Tokens:   g.Tokens.message(),
		Identity: &gatewayv1.Identity{UserHeader: g.Identity.UserHeader},
	}
	if a := g.AccessLog; a.On() {
		m.AccessLog = &gatewayv1.AccessLog{Format: a.Format, To: a.To, Sample: new(a.Sample), ErrorsOnly: a.ErrorsOnly}
	}
	if g.Tracing.TrustIncoming {
		m.Tracing = &gatewayv1.Tracing{TrustIncoming: true}
	}
	if c := g.ClientAddresses; len(c.TrustedProxies) > 0 {
		m.ClientAddresses = &gatewayv1.ClientAddresses{ProxyProtocol: c.ProxyProtocol}
		for _, proxies := range c.TrustedProxies {
			m.ClientAddresses.TrustedProxies = append(m.ClientAddresses.TrustedProxies, proxies.String())
		}
	}
	m.RateLimits, m.RateLimitHeaders = limitMessages(g.RateLimits), g.RateLimitHeaders
	m.ResponseHeaders = g.ResponseHeaders.message()
	if g.TLS != nil {
		m.Tls = g.TLS.message()
	}
	for _, s := range g.Services {
		m.Services = append(m.Services, s.Message())
	}
	return m
}

func (t *TLS) message() *gatewayv1.Tls {
	m := &gatewayv1.Tls{
		Listen:             t.Listen.String(),
		DefaultCertificate: t.DefaultCertificate,
		MinVersion:         t.MinVersion,
		Redirect:           new(t.Redirect),
		Hsts:               durationpb.New(t.HSTS),
		Http3:              t.HTTP3,
	}
	if c := t.ClientCertificates; c != nil {
		m.ClientCertificates = &gatewayv1.ClientCertificates{CaFile: c.CAFile, Mode: c.Mode()}
	}
	if t.ACME != nil {
		m.Acme = t.ACME.message()
	}
	for _, c := range t.Certificates {
		m.Certificates = append(m.Certificates, &gatewayv1.Certificate{CertFile: c.CertFile, KeyFile: c.KeyFile})
	}
	return m
}

func (t *Tokens) message() *gatewayv1.Tokens {
	m := &gatewayv1.Tokens{
		Path:            t.Path,
		Lifetime:        durationpb.New(t.Lifetime),
		SessionLifetime: durationpb.New(t.SessionLifetime),
		RefreshGrace:    durationpb.New(t.RefreshGrace),
		Format:          t.Format,
		Revocation:      t.Revocation,
		MaxSessions:     uint32(t.MaxSessions),
		Shield:          t.Shield.message(),
		Cookie:          t.Cookie,
		Subprotocol:     t.Subprotocol,
		Hosts:           t.Hosts,
	}
	if t.Lease > 0 { // has no effect
		m.Lease = durationpb.New(t.Lease)
	}
	if a := t.Authenticator; a != nil {
		m.Authenticator = &gatewayv1.Authenticator{
			Url:          a.URL.String(),
			Timeout:      durationpb.New(a.Timeout),
			UserHeader:   a.UserHeader,
			ScopesHeader: a.ScopesHeader,
			UserField:    a.UserField,
		}
	}
	return m
}

func (s *Shield) message() *gatewayv1.Shield {
	limit := func(l Limit) *gatewayv1.Limit {
		return &gatewayv1.Limit{Failures: new(uint32(l.Failures)), Forgive: durationpb.New(l.Forgive), Base: durationpb.New(l.Base), Cap: durationpb.New(l.Cap)}
	}
	return &gatewayv1.Shield{
		Address:    limit(s.Address),
		User:       limit(s.User),
		Concurrent: new(uint32(s.Concurrent)),
		Breaker: &gatewayv1.Breaker{
			Failures: new(uint32(s.Breaker.Failures)), Pause: durationpb.New(s.Breaker.Pause), Cap: durationpb.New(s.Breaker.Cap),
		},
	}
}

// Message returns s in the form of the schema, for output.
func (s *Service) Message() *gatewayv1.Service {
	m := &gatewayv1.Service{
		Name:           s.Name,
		Path:           s.Path,
		Hosts:          s.Hosts,
		Authenticate:   new(s.Authenticate),
		AllowedMethods: s.Methods,
		KeepPrefix:     s.KeepPrefix,
		ForwardToken:   s.ForwardToken,
		Scopes:         s.Scopes,
		Websocket:      s.WebSocket,
		Grpc:           s.GRPC,
		Compression:    s.Compression,

		ClientCertificate: s.ClientCertificate,

		RequestHeaders:  s.RequestHeaders.message(),
		ResponseHeaders: s.ResponseHeaders.message(),
	}
	if s.MaxRequestBytes > 0 {
		m.MaxRequestBytes = strconv.FormatUint(s.MaxRequestBytes, 10)
	}
	m.RateLimits = limitMessages(s.RateLimits)
	if d := s.Maintenance; d != nil {
		m.Maintenance = &gatewayv1.Maintenance{Message: d.Message}
		if d.RetryAfter > 0 {
			m.Maintenance.RetryAfter = durationpb.New(d.RetryAfter)
		}
	}
	if r := s.Redirect; r != nil {
		m.Redirect = &gatewayv1.Redirect{To: r.To.String(), Status: new(uint32(r.Status))}
		return m
	}
	if !s.GRPC {
		m.Timeout = durationpb.New(s.Timeout)
	}
	if u := s.UpstreamTLS; u != nil {
		m.UpstreamTls = &gatewayv1.UpstreamTls{CaFile: u.CAFile, CertFile: u.CertFile, KeyFile: u.KeyFile, ServerName: u.ServerName}
	}
	for _, u := range s.Upstreams {
		m.Upstreams = append(m.Upstreams, u.String())
	}
	s.resilienceMessage(m)
	return m
}

func limitMessages(limits []RateLimit) (out []*gatewayv1.RateLimit) {
	for _, l := range limits {
		m := &gatewayv1.RateLimit{
			Requests: uint32(l.Requests), Per: durationpb.New(l.Per), Burst: uint32(l.Burst), By: l.By, Header: l.Header, Scope: limitScopeGateway,
		}
		if l.Cluster {
			m.Scope, m.WithoutRedis = limitScopeCluster, withoutRedisAllows
		}
		if l.RefuseWithoutRedis {
			m.WithoutRedis = withoutRedisRefuses
		}
		out = append(out, m)
	}
	return out
}

// message returns nil if nothing is changed.
func (h Headers) message() *gatewayv1.Headers {
	if len(h.Set)+len(h.Remove) == 0 {
		return nil
	}
	m := &gatewayv1.Headers{Remove: h.Remove, Set: make(map[string]string, len(h.Set))}
	for _, header := range h.Set {
		m.Set[header.Name] = header.Value
	}
	return m
}
