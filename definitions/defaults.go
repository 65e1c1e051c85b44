package definitions

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"gatepost/convention"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// The defaults.
const (
	defaultListen          = "0.0.0.0:5500"
	defaultTLSListen       = "0.0.0.0:443"
	defaultMinVersion      = TLS12
	defaultTokensPath      = convention.PathLogin
	defaultFormat          = "uuid"
	defaultRevocation      = RevocationStrict
	defaultUserIDHeader    = "userid"
	defaultScopesHeader    = "scopes"
	defaultIdentityHeader  = convention.HeaderIdentity
	defaultAccessLogFormat = AccessLogOff
	defaultAccessLogTo     = AccessLogStdout
	defaultMaxSessions     = 100
	defaultMaxAge          = 600 * time.Second
	defaultLifetime        = 3600 * time.Second
	defaultSessionLifetime = 30 * 24 * time.Hour
	defaultRefreshGrace    = 10 * time.Second
	defaultLoginTimeout    = 5 * time.Second
	defaultTimeout         = 15 * time.Second
	defaultPer             = time.Second
	defaultMaintenance     = "The service is down for maintenance."
	defaultRedirect        = http.StatusTemporaryRedirect
)

var (
	defaultAllowHeaders = []string{"Authorization", "Content-Type", "Accept"}
	defaultMethods      = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
	// Many people can share one address (an office, a mobile network), so an address has a hundred free failures, and a
	// hundred more per hour. A user has five, and then one in half an hour.
	defaultShield = Shield{
		Address:    Limit{Failures: 100, Forgive: 36 * time.Second, Base: time.Second, Cap: 15 * time.Minute},
		User:       Limit{Failures: 5, Forgive: 30 * time.Minute, Base: time.Second, Cap: 15 * time.Minute},
		Concurrent: 256,
		Breaker:    Breaker{Failures: 10, Pause: time.Second, Cap: 30 * time.Second},
	}
)

// emptyDefaults are the defaults of fields whose zero value (an empty text, an empty list, 0) a message cannot
// distinguish from a missing one. A file must leave out such a field instead of leaving it empty.
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
	"gatepost.v1.AccessLog.format":            defaultAccessLogFormat,
	"gatepost.v1.AccessLog.to":                defaultAccessLogTo,
	"gatepost.v1.Tls.listen":                  defaultTLSListen,
	"gatepost.v1.Tls.default_certificate":     "none",
	"gatepost.v1.Tls.min_version":             defaultMinVersion,
	"gatepost.v1.ClientCertificates.mode":     modeRequired,
	"gatepost.v1.Acme.directory":              defaultDirectory,
	"gatepost.v1.Acme.ca_file":                "none",
	"gatepost.v1.Service.allowed_methods":     strings.Join(defaultMethods, ", "),
	"gatepost.v1.Service.hosts":               "every host",
	"gatepost.v1.Tokens.hosts":                "every host",
	"gatepost.v1.RateLimit.burst":             "the number of requests",
	"gatepost.v1.RateLimit.scope":             limitScopeGateway,
	"gatepost.v1.RateLimit.without_redis":     withoutRedisAllows,
	"gatepost.v1.Service.max_request_bytes":   "any size",
	"gatepost.v1.Maintenance.message":         defaultMaintenance,
	"gatepost.v1.HealthCheck.unhealthy_after": strconv.Itoa(defaultUnhealthyAfter),
	"gatepost.v1.HealthCheck.healthy_after":   strconv.Itoa(defaultHealthyAfter),
	"gatepost.v1.HealthCheck.expect":          strconv.Itoa(defaultExpect),
	"gatepost.v1.Retries.on":                  "none",
	"gatepost.v1.Retries.budget":              strconv.Itoa(defaultRetries.Budget),
	"gatepost.v1.Limits.connections":          strconv.Itoa(defaultLimits.Connections),
	"gatepost.v1.Limits.pending":              strconv.Itoa(defaultLimits.Pending),
	"gatepost.v1.Limits.requests":             strconv.Itoa(defaultLimits.Requests),
	"gatepost.v1.Canary.by":                   CanaryByUser,
}

// defaultOf returns the default that would replace an empty value of the field. If empty is a valid value, it returns
// "".
func defaultOf(fd protoreflect.FieldDescriptor) string { return emptyDefaults[fd.FullName()] }

// The following functions parse a part of the schema that cannot be wrong by itself, and fill in the defaults.

func corsOf(m *gatewayv1.Cors) Cors {
	c := Cors{
		AllowHeaders:     m.GetAllowHeaders(),
		ExposeHeaders:    m.GetExposeHeaders(),
		AllowCredentials: m.GetAllowCredentials(),
		MaxAge:           orDuration(m.GetMaxAge(), defaultMaxAge),
	}
	if len(c.AllowHeaders) == 0 {
		c.AllowHeaders = defaultAllowHeaders
	}
	return c
}

// formerStrict is the former name of RevocationStrict.
const formerStrict = "proven"

func revocationOf(text string) string {
	if text == formerStrict {
		return RevocationStrict
	}
	return cmp.Or(text, defaultRevocation)
}

func tokensOf(m *gatewayv1.Tokens) Tokens {
	t := Tokens{
		Path:         cmp.Or(m.GetPath(), defaultTokensPath),
		Lifetime:     orDuration(m.GetLifetime(), defaultLifetime),
		RefreshGrace: orDuration(m.GetRefreshGrace(), defaultRefreshGrace),
		Format:       cmp.Or(m.GetFormat(), defaultFormat),
		Revocation:   revocationOf(m.GetRevocation()),
		Lease:        orDuration(m.GetLease(), 0),
		MaxSessions:  int(cmp.Or(m.GetMaxSessions(), defaultMaxSessions)),
		Shield:       shieldOf(m.GetShield()),
		Cookie:       m.GetCookie(),
		Subprotocol:  m.GetSubprotocol(),
	}
	t.SessionLifetime = orDuration(m.GetSessionLifetime(), max(defaultSessionLifetime, t.Lifetime))
	if a := m.GetAuthenticator(); a != nil {
		t.Authenticator = &Authenticator{
			Timeout:      orDuration(a.GetTimeout(), defaultLoginTimeout),
			UserHeader:   strings.ToLower(cmp.Or(a.GetUserHeader(), defaultUserIDHeader)),
			ScopesHeader: strings.ToLower(cmp.Or(a.GetScopesHeader(), defaultScopesHeader)),
			UserField:    a.GetUserField(),
		}
	}
	return t
}

func shieldOf(m *gatewayv1.Shield) Shield {
	b := m.GetBreaker()
	s := Shield{
		Address:    limitOf(m.GetAddress(), defaultShield.Address),
		User:       limitOf(m.GetUser(), defaultShield.User),
		Concurrent: int(cmp.Or(m.GetConcurrent(), uint32(defaultShield.Concurrent))),
		Breaker:    defaultShield.Breaker,
	}
	if b != nil {
		s.Breaker = Breaker{
			Failures: orCount(b.Failures, s.Breaker.Failures),
			Pause:    orDuration(b.GetPause(), s.Breaker.Pause),
			Cap:      orDuration(b.GetCap(), s.Breaker.Cap),
		}
	}
	return s
}

func limitOf(m *gatewayv1.Limit, otherwise Limit) Limit {
	if m == nil {
		return otherwise
	}
	return Limit{
		Failures: orCount(m.Failures, otherwise.Failures),
		Forgive:  orDuration(m.GetForgive(), otherwise.Forgive),
		Base:     orDuration(m.GetBase(), otherwise.Base),
		Cap:      orDuration(m.GetCap(), otherwise.Cap),
	}
}

func accessLogOf(m *gatewayv1.AccessLog) AccessLog {
	a := AccessLog{
		Format:     cmp.Or(m.GetFormat(), defaultAccessLogFormat),
		To:         cmp.Or(m.GetTo(), defaultAccessLogTo),
		Sample:     1,
		ErrorsOnly: m.GetErrorsOnly(),
	}
	if m != nil && m.Sample != nil {
		a.Sample = m.GetSample()
	}
	return a
}

// The values of ClientCertificates.mode in the schema.
const (
	modeRequired = "required"
	modeOptional = "optional"
)

// tlsOf leaves out the address.
func tlsOf(m *gatewayv1.Tls) *TLS {
	t := &TLS{
		DefaultCertificate: m.GetDefaultCertificate(),
		MinVersion:         cmp.Or(m.GetMinVersion(), defaultMinVersion),
		Redirect:           m.Redirect == nil || m.GetRedirect(),
		HSTS:               orDuration(m.GetHsts(), 0),
		HTTP3:              m.GetHttp3(),
	}
	if c := m.GetClientCertificates(); c != nil {
		t.ClientCertificates = &ClientCertificates{CAFile: c.GetCaFile(), Required: cmp.Or(c.GetMode(), modeRequired) == modeRequired}
	}
	for _, c := range m.GetCertificates() {
		t.Certificates = append(t.Certificates, Certificate{CertFile: c.GetCertFile(), KeyFile: c.GetKeyFile()})
	}
	return t
}

// serviceOf leaves out the upstreams, and what depends on them.
func serviceOf(m *gatewayv1.Service) *Service {
	timeout := orDuration(m.GetTimeout(), defaultTimeout)
	if m.GetGrpc() {
		timeout = 0
	}
	s := &Service{
		Name:         m.GetName(),
		Path:         m.GetPath(),
		Authenticate: m.Authenticate == nil || m.GetAuthenticate(), // secure by default
		KeepPrefix:   m.GetKeepPrefix() || m.GetGrpc(),
		ForwardToken: m.GetForwardToken(),
		WebSocket:    m.GetWebsocket(),
		GRPC:         m.GetGrpc(),
		Methods:      withHead(m.GetAllowedMethods()),
		Timeout:      timeout,
		Scopes:       m.GetScopes(),
		HealthCheck:  healthCheckOf(m.GetHealthCheck()),
		Retries:      retriesOf(m.GetRetries()),
		Limits:       limitsOf(m.GetLimits()),
		Affinity:     affinityOf(m.GetAffinity()),
		Compression:  m.GetCompression(),

		ClientCertificate: m.GetClientCertificate(),
	}
	if down := m.GetMaintenance(); down != nil {
		s.Maintenance = &Maintenance{Message: cmp.Or(down.GetMessage(), defaultMaintenance), RetryAfter: orDuration(down.GetRetryAfter(), 0)}
	}
	return s
}

// withHead returns the methods with HEAD behind GET (RFC 9110 §9.3.2: HEAD is GET without the content).
func withHead(methods []string) []string {
	if len(methods) == 0 {
		return defaultMethods
	}
	if get := slices.Index(methods, "GET"); get >= 0 && !slices.Contains(methods, "HEAD") {
		return slices.Insert(methods, get+1, "HEAD")
	}
	return methods
}

func orDuration(d *durationpb.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return d.AsDuration()
}

func orCount(n *uint32, otherwise int) int {
	if n == nil {
		return otherwise
	}
	return int(*n)
}
