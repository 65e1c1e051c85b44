package definitions

import (
	"cmp"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// What a file need not say.
const (
	defaultListen          = "0.0.0.0:5500"
	defaultTokensPath      = "/token"
	defaultFormat          = "uuid"
	defaultRevocation      = "proven"
	defaultUserIDHeader    = "userid"
	defaultScopesHeader    = "scopes"
	defaultIdentityHeader  = "x-user-id"
	defaultMaxSessions     = 100
	defaultMaxAge          = 600 * time.Second
	defaultLifetime        = 3600 * time.Second
	defaultSessionLifetime = 30 * 24 * time.Hour
	defaultRefreshGrace    = 10 * time.Second
	defaultLoginTimeout    = 5 * time.Second
	defaultTimeout         = 15 * time.Second
)

var (
	defaultAllowHeaders = []string{"Authorization", "Content-Type", "Accept"}
	defaultMethods      = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
	sharedTimeout       = durationpb.New(defaultTimeout)
)

// emptyDefaults are the defaults that stand in for a value which a message cannot tell from a missing one: an
// empty text, an empty list, 0. A file must leave such a field out; to write it empty means something else.
var emptyDefaults = map[protoreflect.FullName]string{
	"gatepost.v1.Gateway.listen":              defaultListen,
	"gatepost.v1.Cors.allow_headers":          strings.Join(defaultAllowHeaders, ", "),
	"gatepost.v1.Tokens.path":                 defaultTokensPath,
	"gatepost.v1.Tokens.format":               defaultFormat,
	"gatepost.v1.Tokens.revocation":           defaultRevocation,
	"gatepost.v1.Tokens.max_sessions":         strconv.Itoa(defaultMaxSessions),
	"gatepost.v1.Authenticator.user_header":   defaultUserIDHeader,
	"gatepost.v1.Authenticator.scopes_header": defaultScopesHeader,
	"gatepost.v1.Identity.user_header":        defaultIdentityHeader,
	"gatepost.v1.Service.allowed_methods":     strings.Join(defaultMethods, ", "),
}

// defaultOf returns what an empty value of the field would be replaced by; "" where empty is a value like another.
func defaultOf(fd protoreflect.FieldDescriptor) string { return emptyDefaults[fd.FullName()] }

// fillDefaults makes good definitions whole: each default is filled in, and what can be written in several ways
// has one form. What it has done once it does not change again.
func fillDefaults(g *gatewayv1.Gateway) {
	g.Listen = canonicalListen(cmp.Or(g.GetListen(), defaultListen))
	g.Cors = cmp.Or(g.GetCors(), &gatewayv1.Cors{})
	g.Tokens = cmp.Or(g.GetTokens(), &gatewayv1.Tokens{})
	g.Identity = cmp.Or(g.GetIdentity(), &gatewayv1.Identity{})
	g.Identity.UserHeader = strings.ToLower(cmp.Or(g.Identity.GetUserHeader(), defaultIdentityHeader))

	if len(g.Cors.GetAllowHeaders()) == 0 {
		g.Cors.AllowHeaders = slices.Clone(defaultAllowHeaders)
	}
	g.Cors.MaxAge = duration(g.Cors.GetMaxAge(), defaultMaxAge)
	fillTokens(g.Tokens)
	for _, s := range g.GetServices() {
		fillService(s)
	}
}

func fillTokens(t *gatewayv1.Tokens) {
	t.Path = cmp.Or(t.GetPath(), defaultTokensPath)
	t.Lifetime = duration(t.GetLifetime(), defaultLifetime)
	t.Format = cmp.Or(t.GetFormat(), defaultFormat)
	t.Lease = duration(t.GetLease(), 0)
	t.Revocation = cmp.Or(t.GetRevocation(), defaultRevocation)
	t.SessionLifetime = duration(t.GetSessionLifetime(), max(defaultSessionLifetime, t.GetLifetime().AsDuration()))
	t.RefreshGrace = duration(t.GetRefreshGrace(), defaultRefreshGrace)
	t.MaxSessions = cmp.Or(t.GetMaxSessions(), defaultMaxSessions)
	if a := t.GetAuthenticator(); a != nil {
		a.Timeout = duration(a.GetTimeout(), defaultLoginTimeout)
		a.UserHeader = strings.ToLower(cmp.Or(a.GetUserHeader(), defaultUserIDHeader))
		a.ScopesHeader = strings.ToLower(cmp.Or(a.GetScopesHeader(), defaultScopesHeader))
	}
}

func fillService(s *gatewayv1.Service) {
	if s.Authenticate == nil {
		s.Authenticate = new(true) // secure unless it says otherwise
	}
	s.AllowedMethods = withHead(s.GetAllowedMethods())
	if s.Timeout == nil {
		s.Timeout = sharedTimeout
	}
	for i, u := range s.GetUpstreams() {
		s.Upstreams[i] = canonicalUpstream(u)
	}
}

// withHead returns the methods with HEAD behind GET (RFC 9110 §9.3.2: HEAD is GET without the content).
func withHead(methods []string) []string {
	if len(methods) == 0 {
		return defaultMethods // shared by all: definitions are never changed
	}
	if get := slices.Index(methods, "GET"); get >= 0 && !slices.Contains(methods, "HEAD") {
		return slices.Insert(methods, get+1, "HEAD")
	}
	return methods
}

func duration(d *durationpb.Duration, otherwise time.Duration) *durationpb.Duration {
	if d == nil {
		return durationpb.New(otherwise)
	}
	return d
}

// canonicalListen returns a good address as ip:port; without a host it is every IPv4 address.
func canonicalListen(listen string) string {
	if strings.HasPrefix(listen, ":") {
		listen = "0.0.0.0" + listen
	}
	if addr, err := netip.ParseAddrPort(listen); err == nil {
		return addr.String()
	}
	return listen
}

// canonicalUpstream returns a good upstream with scheme and host in lower case and no path that is only a slash.
func canonicalUpstream(upstream string) string {
	u, err := url.Parse(upstream)
	if err != nil {
		return upstream
	}
	u.Host = strings.ToLower(u.Host)
	return strings.TrimSuffix(u.String(), "/")
}
