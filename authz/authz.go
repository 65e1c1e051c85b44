// Package authz decides whether a request may pass.
//
// Envoy sends a Check for each request (ext_authz over gRPC). The Check carries the rule of the matched route (see
// [Rule]), so this package matches no path. A request goes through three steps: [Request] is read from the Check,
// [Decide] evaluates its origin, its token and its session, and [Decision.Response] is sent. Whatever prevents a
// decision is answered 503 and never lets the request pass.
package authz

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
	"gatepost/tracing"
)

// LookupTimeout is how long one look-up of a token may take. It is half of the 2 s that Envoy waits for a response, so
// a slow store is distinguished from a slow Gatepost: the client gets 503, and the log has the reason.
const LookupTimeout = time.Second

// Sessions finds the principal of a token. The Lookup of a [tokens.Store] is one, as [tokens.LookupFunc].
type Sessions interface {
	// Principal returns the principal of a live token. The error is [tokens.ErrUnknown] if there is no such token, and any
	// other if that cannot be determined. It keeps the context's deadline and is safe for concurrent use.
	Principal(ctx context.Context, h tokens.Hash) (tokens.Principal, error)
}

// Config is what a Server needs.
type Config struct {
	// Sessions finds the principal of a token. Required.
	Sessions Sessions
	// Seen is called for each use of a session, with its principal and the client's address, which it must copy to keep.
	// It runs within the request, on many goroutines at once. Nil: not called.
	Seen func(principal tokens.Principal, address string)
	// Decisions takes the decisions that Envoy may repeat by itself from then on. Nil: Envoy repeats none.
	Decisions Decisions
	// Logger gets at most one line for each denied request, and a bounded number of lines per second. Nil:
	// nothing is logged.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer
	// Tracer makes the spans of checks. Nil: there are none.
	Tracer *tracing.Tracer
	// Now is the clock by which sessions expire. Nil: [time.Now].
	Now func() time.Time
}

// Server answers Envoy's Checks. Its methods are safe for concurrent use.
type Server struct {
	sessions  Sessions
	seen      func(tokens.Principal, string)
	decisions Decisions
	logger    *slog.Logger
	now       func() time.Time
	counts    *counts
	failures  failures
	denials   *denials
	durations prometheus.Histogram // of checks
	tracer    *tracing.Tracer

	authv3.UnimplementedAuthorizationServer
}

// New returns a server. It fails if a metric of one of its names is already registered.
func New(c Config) (*Server, error) {
	if c.Sessions == nil {
		return nil, errors.New("authz: no Sessions")
	}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Server{sessions: c.Sessions, seen: c.Seen, decisions: c.Decisions, logger: c.Logger, now: c.Now, denials: newDenials(c.Logger), durations: newDurations(), tracer: c.Tracer}
	s.counts, s.failures = newCounts()
	if s.decisions != nil {
		s.counts.hits = s.decisions.Hits
	}
	if c.Registerer != nil {
		if err := s.register(c.Registerer); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Recent returns the last denials, the newest first.
func (s *Server) Recent() []Denial { return s.denials.recent() }

// Follow returns a channel that gets each denial from now on. If its reader is so slow that the channel is full,
// denials are left out. The caller calls stop when it is done.
func (s *Server) Follow() (denied <-chan Denial, stop func()) { return s.denials.follow() }

// Check answers one Check of the generated type: request, decision, response.
func (s *Server) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return s.respond(ctx, &call{Request: *NewRequest(r)})
}

// respond returns the response to a call. A panic on the way becomes an error, and a response that is neither an allow
// nor a denial does too: Envoy then answers 503.
func (s *Server) respond(ctx context.Context, c *call) (resp *authv3.CheckResponse, err error) {
	defer s.recovered(authv3.Authorization_Check_FullMethodName, &err)
	start := time.Now()
	ctx, span := s.tracer.FromMetadata(ctx, "check")
	defer span.End()
	d := s.decide(ctx, c)
	resp = d.Response()
	s.measure(span, &d, time.Since(start))
	return resp, validateResponse(resp)
}

// measure records how long a check took, with its trace as an exemplar if there is one.
func (s *Server) measure(span trace.Span, d *Decision, took time.Duration) {
	if !span.IsRecording() {
		s.durations.Observe(took.Seconds())
		return
	}
	span.SetAttributes(attribute.String(AttributeService, d.rule.service), attribute.String(AttributeDecision, string(d.Outcome())),
		attribute.String(AttributeReason, d.Reason.String()))
	if d.Outcome() == CannotTell {
		span.SetStatus(codes.Error, d.Reason.String())
	}
	s.durations.(prometheus.ExemplarObserver).ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": span.SpanContext().TraceID().String()})
}

// decide makes, counts and logs one decision.
func (s *Server) decide(ctx context.Context, c *call) Decision {
	c.server = s
	d := Decide(ctx, &c.Request, c, s.now)
	if d.Reason == ReasonTokenKnown {
		s.grant(c, &d)
		if s.seen != nil {
			s.seen(c.principal, c.client())
		}
	}
	s.counts.add(d.rule.service, d.Reason)
	if d.Outcome() != Allowed && d.Reason != ReasonCallerGone {
		s.denials.add(ctx, newDenial(time.Now(), &c.Request, &d), d.Err)
	}
	return d
}

// call is one Check in progress. It is the [Sessions] of its own decision.
type call struct {
	Request
	server    *Server
	ticket    table.Ticket     // taken before the look-up
	principal tokens.Principal // found by the look-up
}

// Principal looks the token up, for at most LookupTimeout. A revoke after the ticket is taken makes the ticket useless.
func (c *call) Principal(ctx context.Context, h tokens.Hash) (tokens.Principal, error) {
	if c.server.decisions != nil {
		c.ticket = c.server.decisions.Ticket(h)
	}
	bounded := withTimeout(ctx, LookupTimeout)
	defer bounded.done()
	principal, err := c.server.sessions.Principal(bounded, h)
	c.principal = principal
	return principal, err
}
