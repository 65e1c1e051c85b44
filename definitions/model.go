package definitions

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Gateway is a definitions file with every value parsed and every default filled in. Only this package makes one, from
// a file in which it found no problem, so no other package checks or parses a value again. A Gateway and everything it
// points to are immutable.
type Gateway struct {
	// Listen is the address on which Envoy accepts requests.
	Listen netip.AddrPort
	// Origins are the allowed origins, each exactly as a browser sends it. If empty, every origin is allowed.
	Origins []string
	Cors    Cors
	Tokens  Tokens
	// Identity is how an upstream learns the user.
	Identity Identity
	// AccessLog is what Envoy logs about each request.
	AccessLog AccessLog
	// ClientAddresses is how the address of a client behind proxies is known.
	ClientAddresses ClientAddresses
	// RateLimits limit the number of requests to the whole gateway.
	RateLimits []RateLimit
	// RateLimitHeaders is whether Envoy writes X-RateLimit-* for the limits that it counts.
	RateLimitHeaders bool
	// Tracing is whose traces are continued.
	Tracing Tracing
	// ResponseHeaders are the changes of every response.
	ResponseHeaders Headers
	// TLS is the listener for HTTPS. If nil, there is none.
	TLS *TLS
	// Services are in the order of the file. Names are unique, and so are paths under each host.
	// [Definitions.Next] keeps the pointers of unchanged services, so callers detect changes by comparing pointers.
	Services []*Service
}

// Cors is the content of CORS responses.
type Cors struct {
	AllowHeaders, ExposeHeaders []string
	AllowCredentials            bool
	// MaxAge is in whole seconds.
	MaxAge time.Duration
}

// Tokens is how tokens are issued, stored and ended.
type Tokens struct {
	// Path is the path of the login. The other calls are below it.
	Path string
	// Hosts are the hosts under which these calls respond, as in a Service. If empty, they respond under every host.
	Hosts []string
	// Lifetime is how long a token is valid, SessionLifetime how long its session can be refreshed. Both are in whole
	// seconds.
	Lifetime, SessionLifetime time.Duration
	// RefreshGrace is how long a refreshed token stays valid.
	RefreshGrace time.Duration
	// Format is the form of new tokens: uuid or secret.
	Format string
	// Revocation is RevocationStrict or RevocationPrompt.
	Revocation string
	// Lease has no effect. It is read so that [Definitions.Warnings] can name it.
	Lease time.Duration
	// MaxSessions is how many sessions one user can have.
	MaxSessions int
	// Authenticator is the user service. If nil, there is no login.
	Authenticator *Authenticator
	// Shield limits failed logins.
	Shield Shield
	// Cookie and Subprotocol are the other places from which a token is read. If empty, it is not read from there.
	Cookie, Subprotocol string
}

// The values of Tokens.Revocation.
const (
	RevocationStrict = "strict"
	RevocationPrompt = "prompt"
)

// Authenticator is the user service that checks logins.
type Authenticator struct {
	URL *url.URL
	// Timeout limits a call, from the first byte sent to the last byte received.
	Timeout time.Duration
	// UserHeader and ScopesHeader are the headers of its 200 with the user's id and the session's scopes, in lower case.
	UserHeader, ScopesHeader string
	// UserField is the field of a login, JSON or form, that names the user. If empty, failed logins are counted per client
	// address only.
	UserField string
}

// Shield limits failed logins and protects the user service.
type Shield struct {
	// Address limits the failed logins of a client address, User those of a user.
	Address, User Limit
	// Concurrent is how many logins the user service handles at once.
	Concurrent int
	Breaker    Breaker
}

// Limit is an exponential limit of failures.
type Limit struct {
	// Failures is how many failures are free. If 0, all are.
	Failures int
	// Forgive is how long it takes until one failure is forgiven.
	Forgive time.Duration
	// Base is the wait after the first failure above Failures. Each further one doubles it, up to Cap.
	Base, Cap time.Duration
}

// Breaker is the circuit breaker of a user service that does not respond.
type Breaker struct {
	// Failures is how many logins in a row fail before it opens. If 0, it never opens.
	Failures int
	// Pause is how long it stays open at first. Each failed trial doubles it, up to Cap.
	Pause, Cap time.Duration
}

// Identity is how an upstream learns the user.
type Identity struct {
	// UserHeader is the request header with the user's id, in lower case.
	UserHeader string
}

// AccessLog is what Envoy logs about each request. The zero AccessLog is off.
type AccessLog struct {
	// Format is AccessLogECS, AccessLogText or AccessLogOff.
	Format string
	// To is AccessLogStdout or AccessLogOTLP.
	To string
	// Sample is the share of requests that are logged, above 0 and at most 1.
	Sample float64
	// ErrorsOnly is whether only errors are logged.
	ErrorsOnly bool
}

// The values of AccessLog.Format.
const (
	AccessLogECS  = "ecs"
	AccessLogText = "text"
	AccessLogOff  = "off"
)

// The values of AccessLog.To.
const (
	AccessLogStdout = "stdout" // Envoy's standard output
	AccessLogOTLP   = "otlp"   // a collector, by OTLP over gRPC
)

// On reports whether requests are logged.
func (a AccessLog) On() bool { return a.Format == AccessLogECS || a.Format == AccessLogText }

// Tracing is whose traces are continued. Whether there are any is no matter of definitions.
type Tracing struct {
	// TrustIncoming is whether a client's own trace is continued.
	TrustIncoming bool
}

// ClientAddresses is how the address of a client behind proxies is known.
type ClientAddresses struct {
	// TrustedProxies are the ranges of the proxies' addresses. If empty, a client's address is that of its connection.
	TrustedProxies []netip.Prefix
	// ProxyProtocol is whether the proxies send the PROXY protocol. Only with TrustedProxies.
	ProxyProtocol bool
}

// TLS is the listener for HTTPS.
type TLS struct {
	// Listen is the address on which Envoy accepts TLS connections.
	Listen netip.AddrPort
	// Certificates are in the order of the file. Each CertFile is there once.
	Certificates []Certificate
	// DefaultCertificate is the CertFile of the certificate for other names. If empty, they are refused.
	DefaultCertificate string
	// MinVersion is TLS12 or TLS13.
	MinVersion string
	// Redirect is whether the listener without TLS redirects to this one, and does nothing else.
	Redirect bool
	// ACME is how further certificates are obtained. If nil, none are.
	ACME *ACME
	// HSTS is for how long browsers must use HTTPS, in whole seconds. If 0, no header is sent.
	HSTS time.Duration
	// HTTP3 is whether HTTP/3 is served on the same port of UDP.
	HTTP3 bool
	// ClientCertificates is how clients are verified. If nil, they are not asked for a certificate.
	ClientCertificates *ClientCertificates
}

// ClientCertificates is how clients are verified.
type ClientCertificates struct {
	// CAFile has the CAs; see [Definitions.Path].
	CAFile string
	// Required is whether a client without a certificate is refused.
	Required bool
}

// Mode returns required or optional, or "" if clients are not asked for a certificate.
func (c *ClientCertificates) Mode() string {
	switch {
	case c == nil:
		return ""
	case c.Required:
		return modeRequired
	}
	return modeOptional
}

// The values of TLS.MinVersion.
const (
	TLS12 = "1.2"
	TLS13 = "1.3"
)

// Certificate names the files of a certificate and its key; see [Definitions.Path].
type Certificate struct {
	CertFile, KeyFile string
}

// Service is one HTTP service behind the gateway.
type Service struct {
	Name string
	// Path is the path of the service. It also receives all requests below it.
	Path string
	// Hosts are the hosts under which the service responds, in lower case and sorted: exact names, or *. and a suffix. If
	// empty, it responds under every host; see [Service.Patterns].
	Hosts []string
	// Authenticate is whether a request needs a token.
	Authenticate bool
	// KeepPrefix is whether the upstream receives Path, ForwardToken whether it receives the token.
	KeepPrefix, ForwardToken bool
	// WebSocket is whether requests can become WebSockets, GRPC whether they are gRPC calls, which KeepPrefix follows.
	WebSocket, GRPC bool
	// Methods are the allowed methods. HEAD follows GET.
	Methods []string
	// Upstreams differ only in host and port. They are sorted, so that their order in the file has no meaning.
	Upstreams []Upstream
	// Timeout limits the response. If GRPC, it is 0: none.
	Timeout time.Duration
	// Scopes are the scopes that a session needs.
	Scopes []string
	// MaxRequestBytes is the size of the largest body of a request. If 0, every size is accepted.
	MaxRequestBytes uint64
	// Compression is whether responses are compressed.
	Compression bool
	// RateLimits limit the number of requests.
	RateLimits []RateLimit
	// ClientCertificate is whether a request needs a verified client certificate. Only with TLS.ClientCertificates.
	ClientCertificate bool
	// RequestHeaders are the changes of requests for the upstreams, ResponseHeaders those of responses.
	RequestHeaders, ResponseHeaders Headers
	// Maintenance is the response while the service is down on purpose. If nil, it is up.
	Maintenance *Maintenance
	// Redirect is where clients are sent. If nil, there are upstreams, and if not, there are none.
	Redirect *Redirect
	// HealthCheck is how upstreams are asked whether they are well. If nil, they are not asked.
	HealthCheck *HealthCheck
	// OutlierDetection is whether upstreams that fail requests get none for a while.
	OutlierDetection bool
	Retries          Retries
	Limits           Limits
	// Canary is another version of the service. It can be nil.
	Canary   *Canary
	Affinity Affinity
	// UpstreamTLS is how https upstreams are verified. If nil, by the system's roots and by their own names.
	UpstreamTLS *UpstreamTLS
}

// UpstreamTLS is TLS to the upstreams of a service. At least one field is set; see [Definitions.Path] for files.
type UpstreamTLS struct {
	// CAFile has the CAs of the upstreams. If empty, they are the system's.
	CAFile string
	// CertFile and KeyFile are the certificate for the upstreams and its key. If empty, there is none.
	CertFile, KeyFile string
	// ServerName is the name of all upstreams, in lower case. If empty, each is verified by its host.
	ServerName string
	// IsIP is whether ServerName is an IP address.
	IsIP bool
}

// CAName returns the name of the CAs in logs and for Envoy; empty if they are the system's.
func (u *UpstreamTLS) CAName() string {
	if u == nil || u.CAFile == "" {
		return ""
	}
	return "CAs " + u.CAFile
}

// PairName returns the name of the certificate in logs and for Envoy; empty if there is none.
func (u *UpstreamTLS) PairName() string {
	if u == nil || u.CertFile == "" {
		return ""
	}
	return "client " + u.CertFile + " " + u.KeyFile
}

// RateLimit is a limit of the number of requests.
type RateLimit struct {
	// Requests are allowed in the time Per, which is in whole seconds, and Burst at once.
	Requests, Burst int
	Per             time.Duration
	// By is what is counted: LimitByAddress, or "" for the values of Header. Of a service it can also be LimitByService or
	// LimitByUser, and of the gateway LimitByGateway.
	By string
	// Header is the name of a request header in lower case. It is empty if By is set.
	Header string
	// Cluster is whether all gateways on one Redis count together.
	Cluster bool
	// RefuseWithoutRedis is whether requests are refused while they cannot count together. Otherwise they are allowed.
	RefuseWithoutRedis bool
}

// The values of RateLimit.By.
const (
	LimitByService = "service"
	LimitByAddress = "address"
	LimitByUser    = "user"
	LimitByGateway = "gateway"
)

// The values of scope and without_redis of a rate limit.
const (
	limitScopeGateway   = "gateway"
	limitScopeCluster   = "cluster"
	withoutRedisAllows  = "allow"
	withoutRedisRefuses = "refuse"
)

// Headers are changes of headers. Names are in lower case, each once.
type Headers struct {
	// Set are the headers that are set, sorted by name.
	Set []Header
	// Remove are the names of the headers that are removed.
	Remove []string
}

// Header is a header with its value.
type Header struct{ Name, Value string }

// Maintenance is the response of a service that is down on purpose.
type Maintenance struct {
	// Message is the text of the response.
	Message string
	// RetryAfter is how long clients should wait, in whole seconds. If 0, the response does not say.
	RetryAfter time.Duration
}

// Redirect is where the clients of a service are sent.
type Redirect struct {
	// To has a scheme and a host. If it has no path, that of the request is kept. Otherwise it replaces that of the
	// service.
	To     *url.URL
	Status int
}

// Upstream is one address of a service.
type Upstream struct {
	// Host is a host name in lower case, or an IP address without brackets.
	Host string
	Port uint16
	// Scheme is http, https or h2c: HTTP/2 without TLS.
	Scheme string
	// IsIP is whether Host is an IP address.
	IsIP bool
	// Base is put in front of the path of each request. It has no slash at the end, and is empty for the root.
	Base string
}

// Address returns host:port.
func (u Upstream) Address() string { return net.JoinHostPort(u.Host, strconv.Itoa(int(u.Port))) }

// The values of Upstream.Scheme.
const (
	SchemeHTTP  = "http"
	SchemeHTTPS = "https"
	SchemeH2C   = "h2c"
)

// TLS reports whether connections use TLS.
func (u Upstream) TLS() bool { return u.Scheme == SchemeHTTPS }

// Authority returns the host, and the port unless it is the default port of the scheme.
func (u Upstream) Authority() string {
	switch {
	case u.Port != defaultPorts[u.Scheme]:
		return u.Address()
	case strings.Contains(u.Host, ":"): // IPv6
		return "[" + u.Host + "]"
	}
	return u.Host
}

// Origin returns the scheme and the authority.
func (u Upstream) Origin() string { return u.Scheme + "://" + u.Authority() }

// String returns the upstream as a definitions file has it.
func (u Upstream) String() string { return u.Origin() + u.Base }

// defaultPorts are the ports of addresses without one. :: scheme → port
var defaultPorts = map[string]uint16{SchemeHTTP: 80, SchemeHTTPS: 443, SchemeH2C: 80}
