package definitions

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// HealthCheck is how the gateway asks an upstream whether it is well.
type HealthCheck struct {
	// Path is the path on the upstream. If GRPC, it is empty: the gRPC health checking protocol is used instead.
	Path string
	GRPC bool
	// Interval is the time between two checks, Timeout the limit of one.
	Interval, Timeout time.Duration
	// UnhealthyAfter and HealthyAfter are how many checks in a row change the state of an upstream.
	UnhealthyAfter, HealthyAfter int
	// Expect are the status codes of an upstream that is well. It is empty if GRPC.
	Expect []uint32
}

// Retries is which requests are tried again.
type Retries struct {
	// Count is how often. If 0, no request is.
	Count int
	// On are the failures after which an upstream may have acted on the request. They apply to the idempotent methods
	// only, unless EveryMethod.
	On          []string
	EveryMethod bool
	// PerTryTimeout limits a request to which On applies. If 0, there is no limit.
	PerTryTimeout time.Duration
	// Budget is the percentage of the requests that may be retries.
	Budget int
}

// The values of Retries.On.
const (
	RetryOnReset        = "reset"
	RetryOnGatewayError = "gateway-error"
	RetryOn5xx          = "5xx"
)

// Limits is how much the upstreams of a service get at once.
type Limits struct{ Connections, Pending, Requests int }

// Canary is another version of a service.
type Canary struct {
	// Upstreams have the scheme and the base path of those of the service.
	Upstreams []Upstream
	// Percent is its part of the requests.
	Percent int
	// By is CanaryByUser or CanaryByRequest.
	By string
}

// The values of Canary.By.
const (
	CanaryByUser    = "user"
	CanaryByRequest = "request"
)

// Affinity is which of several upstreams gets a request. In the zero Affinity it is each in turn.
type Affinity struct {
	// By is one of the constants below, or empty.
	By string
	// Header is the request header of AffinityHeader, in lower case.
	Header string
}

// The values of Affinity.By.
const (
	AffinityCookie  = "cookie"
	AffinityAddress = "address"
	AffinityUser    = "user"
	AffinityHeader  = "header"
)

const (
	defaultUnhealthyAfter = 2
	defaultHealthyAfter   = 1
	defaultExpect         = 200
	defaultInterval       = 5 * time.Second
	defaultCheckTimeout   = time.Second
)

var (
	defaultRetries = Retries{Count: 1, Budget: 20}
	// A request above the limit gets 503 at once, so that a service that hangs does not block the whole gateway.
	defaultLimits = Limits{Connections: 1024, Pending: 1024, Requests: 4096}
)

// idempotentMethods are the idempotent methods of RFC 9110 §9.2.2 that a service can allow.
var idempotentMethods = []string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}

// AllUpstreams are the upstreams of a service and those of its canary.
func (s *Service) AllUpstreams() iter.Seq[Upstream] {
	all := s.Upstreams
	if s.Canary != nil {
		all = slices.Concat(all, s.Canary.Upstreams)
	}
	return slices.Values(all)
}

// HasAlternatives reports whether there can be several upstreams. A name can have several addresses.
func (s *Service) HasAlternatives() bool {
	all := slices.Collect(s.AllUpstreams())
	return len(all) > 1 || slices.ContainsFunc(all, func(u Upstream) bool { return !u.IsIP })
}

// RetriedMethods are the allowed methods to which Retries.On applies.
func (s *Service) RetriedMethods() []string {
	if len(s.Retries.On) == 0 || s.Retries.EveryMethod {
		return s.Methods
	}
	return slices.DeleteFunc(slices.Clone(s.Methods), func(m string) bool { return !slices.Contains(idempotentMethods, m) })
}

// affinityOf is the affinity of a service. The name of a header is enough, as in a rate limit.
func affinityOf(m *gatewayv1.Affinity) Affinity {
	a := Affinity{By: m.GetBy(), Header: strings.ToLower(m.GetHeader())}
	if a.By == "" && a.Header != "" {
		a.By = AffinityHeader
	}
	return a
}

func healthCheckOf(m *gatewayv1.HealthCheck) *HealthCheck {
	if m == nil {
		return nil
	}
	h := &HealthCheck{
		Path: m.GetPath(), GRPC: m.GetGrpc(), Expect: m.GetExpect(),
		Interval:       orDuration(m.GetInterval(), defaultInterval),
		Timeout:        orDuration(m.GetTimeout(), defaultCheckTimeout),
		UnhealthyAfter: int(cmp.Or(m.GetUnhealthyAfter(), defaultUnhealthyAfter)),
		HealthyAfter:   int(cmp.Or(m.GetHealthyAfter(), defaultHealthyAfter)),
	}
	if len(h.Expect) == 0 && !h.GRPC {
		h.Expect = []uint32{defaultExpect}
	}
	return h
}

func retriesOf(m *gatewayv1.Retries) Retries {
	if m == nil {
		return defaultRetries
	}
	return Retries{
		Count: orCount(m.Count, defaultRetries.Count), On: m.GetOn(),
		EveryMethod:   m.IdempotentOnly != nil && !m.GetIdempotentOnly(),
		PerTryTimeout: orDuration(m.GetPerTryTimeout(), 0),
		Budget:        int(cmp.Or(m.GetBudget(), uint32(defaultRetries.Budget))),
	}
}

func limitsOf(m *gatewayv1.Limits) Limits {
	return Limits{
		Connections: int(cmp.Or(m.GetConnections(), uint32(defaultLimits.Connections))),
		Pending:     int(cmp.Or(m.GetPending(), uint32(defaultLimits.Pending))),
		Requests:    int(cmp.Or(m.GetRequests(), uint32(defaultLimits.Requests))),
	}
}

// parseResilience completes what serviceOf has begun, and checks how the service copes with upstreams that fail.
func parseResilience(f *findings, s *Service, m *gatewayv1.Service, g *Gateway, field string) {
	if s.Redirect != nil {
		return
	}
	if c := m.GetCanary(); c != nil {
		s.Canary = &Canary{
			Upstreams: parseUpstreams(f, c.GetUpstreams(), field+".canary.upstreams", g.addresses(), s.Upstreams, field+".upstreams"),
			Percent:   int(c.GetPercent()),
			By:        cmp.Or(c.GetBy(), CanaryByUser),
		}
		if c.Percent == nil {
			f.add(field+".canary.percent", aboutFields.faultf("write a percentage, such as 10", "is missing"))
		}
	}
	s.OutlierDetection = s.HasAlternatives()
	if m.OutlierDetection != nil {
		s.OutlierDetection = m.GetOutlierDetection()
	}
	checkHealthCheck(f, s, m, field)
	checkRetries(f, s, field)
	checkAffinity(f, s, m, g, field)
}

func checkHealthCheck(f *findings, s *Service, m *gatewayv1.Service, field string) {
	switch h := s.HealthCheck; {
	case h == nil:
	case h.GRPC:
		checkGRPCHealthCheck(f, s, len(m.GetHealthCheck().GetExpect()) > 0, field)
	case h.Path == "":
		f.add(field+".health_check.path", aboutFields.faultf("write a path that responds 200 while an upstream is healthy, such as /healthz", "is missing"))
	case !strings.HasPrefix(h.Path, "/") || strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }):
		f.add(field+".health_check.path", aboutFailures.faultf("write a path such as /healthz, in plain ASCII", "%s is not a path", shown(h.Path)))
	}
}

// checkGRPCHealthCheck finds what does not go with a gRPC health check. expects: the file lists HTTP statuses.
func checkGRPCHealthCheck(f *findings, s *Service, expects bool, field string) {
	check := field + ".health_check"
	switch {
	case s.HealthCheck.Path != "":
		f.add(check+".path", aboutFailures.faultf("remove the one or the other", "has no effect beside grpc (%s)", f.where(check+".grpc")))
	case expects:
		f.add(check+".expect", aboutFailures.faultf("remove it", "has no effect on a gRPC health check (%s)", f.where(check+".grpc")))
	case len(s.Upstreams) > 0 && s.Upstreams[0].Scheme == SchemeHTTP:
		f.add(check+".grpc", aboutFailures.faultf("write h2c or https there, or check a path", "needs HTTP/2, and the upstreams are http"))
	case s.WebSocket:
		f.add(check+".grpc", aboutFailures.faultf("check a path", "needs HTTP/2, and a service with WebSockets has HTTP/1.1 (%s)",
			f.where(field+".websocket")))
	}
}

func checkRetries(f *findings, s *Service, field string) {
	r := s.Retries
	field += ".retries"
	switch {
	case len(r.On) > 0 && r.Count == 0:
		f.add(field+".on", aboutFailures.faultf("remove it, or raise count", "has no effect with count 0"))
	case len(r.On) > 0 && len(s.RetriedMethods()) == 0:
		f.add(field+".on", aboutFailures.faultf("remove it", "has no effect: no allowed method is idempotent"))
	case len(r.On) == 0 && r.EveryMethod:
		f.add(field+".idempotent_only", aboutFailures.faultf("remove it, or name failures under on", "has no effect without on"))
	}
	if r.PerTryTimeout == 0 {
		return
	}
	switch {
	case !slices.Contains(r.On, RetryOnReset) && !slices.Contains(r.On, RetryOn5xx):
		f.add(field+".per_try_timeout", aboutFailures.faultf("add reset to on", "ends a request that is then not tried again"))
	case s.Timeout > 0 && r.PerTryTimeout >= s.Timeout:
		f.add(field+".per_try_timeout", aboutFailures.faultf("write a shorter one", "is not shorter than the timeout of all tries, %v", s.Timeout))
	}
}

func checkAffinity(f *findings, s *Service, m *gatewayv1.Service, g *Gateway, field string) {
	a := s.Affinity
	at := field + ".affinity"
	switch {
	case m.GetAffinity() == nil:
		return
	case a.By == "":
		f.add(at+".by", aboutFields.faultf("write cookie, address, user or header", "is missing"))
	case a.By == AffinityHeader && a.Header == "":
		f.add(at+".header", aboutFields.faultf("write the name of the request header, such as x-tenant", "is missing"))
	case a.By != AffinityHeader && a.Header != "":
		f.add(at+".header", aboutFailures.faultf("write `by: header`, or remove it", "has no effect by %s", a.By))
	case a.Header != "" && (a.Header == "authorization" || a.Header == "cookie" || a.Header == g.Identity.UserHeader):
		f.add(at+".header", aboutFailures.faultf("write `affinity: user`, `affinity: cookie` or another header", "%s is not the client's own", a.Header))
	case s.Canary != nil && (s.Canary.By != CanaryByUser || a.By != AffinityUser):
		f.add(at+".by", aboutFailures.faultf("write `affinity: user` and `by: user`, or remove the one or the other",
			"is %s, and the canary (%s) is by %s: a request has one key", a.By, f.where(field+".canary"), s.Canary.By))
	}
}

// resilienceNotes lists settings that are valid and probably mistakes.
func (d *Definitions) resilienceNotes(i int, s *Service) (notes Problems) {
	if risky := slices.DeleteFunc(slices.Clone(s.RetriedMethods()), func(m string) bool { return slices.Contains(idempotentMethods, m) }); s.Retries.EveryMethod && len(risky) > 0 {
		notes = append(notes, d.note(i, "retries.idempotent_only", aboutNotes.faultf("see that this is meant, or remove it",
			"a %s may be done twice: it is tried again after an upstream may have acted on it", strings.Join(risky, ", "))))
	}
	if s.Canary != nil && s.HealthCheck != nil && !s.HealthCheck.GRPC {
		notes = append(notes, d.note(i, "health_check.path", aboutNotes.faultf("see that it has it, or remove health_check",
			"the canary is asked for %s too, and gets no request if it lacks it", s.HealthCheck.Path)))
	}
	if s.Affinity.By != "" && !s.HasAlternatives() {
		notes = append(notes, d.note(i, "affinity", aboutNotes.faultf("remove it, or list the other upstreams", "has no effect: there is one upstream")))
	}
	if s.Limits.Pending > s.Limits.Requests {
		notes = append(notes, d.note(i, "limits.pending", aboutNotes.faultf("lower it, or raise requests",
			"more requests may wait (%d) than there may be at all (%d)", s.Limits.Pending, s.Limits.Requests)))
	}
	return notes
}

// resilienceMessage adds to the message of s how it copes with upstreams that fail.
func (s *Service) resilienceMessage(m *gatewayv1.Service) {
	if s.Redirect != nil {
		return
	}
	if h := s.HealthCheck; h != nil {
		m.HealthCheck = &gatewayv1.HealthCheck{
			Path: h.Path, Grpc: h.GRPC, Expect: h.Expect, Interval: durationpb.New(h.Interval), Timeout: durationpb.New(h.Timeout),
			UnhealthyAfter: uint32(h.UnhealthyAfter), HealthyAfter: uint32(h.HealthyAfter),
		}
	}
	m.OutlierDetection = new(s.OutlierDetection)
	m.Retries = &gatewayv1.Retries{Count: new(uint32(s.Retries.Count)), On: s.Retries.On, Budget: uint32(s.Retries.Budget)}
	if len(s.Retries.On) > 0 {
		m.Retries.IdempotentOnly = new(!s.Retries.EveryMethod)
	}
	if s.Retries.PerTryTimeout > 0 {
		m.Retries.PerTryTimeout = durationpb.New(s.Retries.PerTryTimeout)
	}
	m.Limits = &gatewayv1.Limits{Connections: uint32(s.Limits.Connections), Pending: uint32(s.Limits.Pending), Requests: uint32(s.Limits.Requests)}
	if c := s.Canary; c != nil {
		m.Canary = &gatewayv1.Canary{Percent: new(uint32(c.Percent)), By: c.By}
		for _, u := range c.Upstreams {
			m.Canary.Upstreams = append(m.Canary.Upstreams, u.String())
		}
	}
	if s.Affinity.By != "" {
		m.Affinity = &gatewayv1.Affinity{By: s.Affinity.By, Header: s.Affinity.Header}
	}
}
