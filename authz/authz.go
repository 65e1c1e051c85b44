// Package authz decides whether a request may pass.
//
// Envoy asks for each request by gRPC (ext_authz). What the matched route needs comes with the question (see
// [Rule]), so no path is looked at to decide. The origin is judged first, then the token is read, then
// whoever keeps the sessions is asked whose it is. Whatever hinders a decision is a denial that says so (503), and never a yes.
package authz

import (
	"context"
	"errors"
	"log/slog"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// LookupTimeout is how long one look-up of a token may take. It is half of what Envoy waits for an answer
// (2 s), so that a slow store is told apart from a slow Gatepost: the client gets 503 with a reason in the log.
const LookupTimeout = time.Second

// Sessions tells whose a token is. The Lookup of a [tokens.Store] is one, as [tokens.LookupFunc].
type Sessions interface {
	// Holder returns who holds a token that is live, or an error: [tokens.ErrUnknown] where it is none, any
	// other where that cannot be told. It keeps to the context's deadline. It is called from many goroutines at once.
	Holder(ctx context.Context, h tokens.Hash) (tokens.Holder, error)
}

// Config is what a Server needs.
type Config struct {
	// Sessions tells whose a token is. Required.
	Sessions Sessions
	// Seen is told of each use of a session: whose it is and the client's address, which it must copy to keep. It is
	// called on the request's path, from many goroutines at once. Nil: nobody is.
	Seen func(holder tokens.Holder, address string)
	// Decisions takes the decisions that Envoy may make by itself from then on. Nil: Envoy makes none.
	Decisions Decisions
	// Logger gets at most one line per denied request, of which so many a second; nil: no line.
	Logger *slog.Logger
	// Registerer takes the metrics; nil: they are counted and not shown.
	Registerer prometheus.Registerer
	// Now is the clock that sessions end by; nil: time.Now.
	Now func() time.Time
}

// Server answers Envoy's checks. Its methods may be called from many goroutines at once.
type Server struct {
	sessions  Sessions
	seen      func(tokens.Holder, string)
	decisions Decisions
	logger    *slog.Logger
	now       func() time.Time
	counts    *counts
	failures  failures
	denials   *denials

	authv3.UnimplementedAuthorizationServer
}

// New returns a server. It fails where a metric of its names is registered already.
func New(c Config) (*Server, error) {
	if c.Sessions == nil {
		return nil, errors.New("authz: no Sessions")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Server{sessions: c.Sessions, seen: c.Seen, decisions: c.Decisions, logger: c.Logger, now: c.Now, denials: newDenials(c.Logger)}
	s.counts, s.failures = newCounts()
	if c.Registerer != nil {
		if err := s.register(c.Registerer); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Recent returns the last denials, the newest first; see [Denial].
func (s *Server) Recent() []Denial { return s.denials.recent() }

// Check answers in the generated types, for servers without [ServerOptions] and for tests. What
// [Server.Register] puts in service answers the same to the same bytes.
func (s *Server) Check(ctx context.Context, r *authv3.CheckRequest) (resp *authv3.CheckResponse, err error) {
	defer s.recovered(authv3.Authorization_Check_FullMethodName, &err)
	var q request
	q.read(r)
	v := s.decide(ctx, &q)
	resp = v.response()
	return resp, soundResponse(resp)
}

// decide is a decision from end to end: judge what the request says, ask whose the token is, settle; and tell.
func (s *Server) decide(ctx context.Context, q *request) verdict {
	v, ask := q.judge()
	if ask {
		s.lookup(ctx, q, &v)
		if v.reason == storeDown && ctx.Err() != nil {
			v.reason = callerGone // nobody waits for the answer, and the store is not to blame
		}
	}
	s.counts.add(v.rule.service, v.reason)
	s.counts.addHits(v.rule.service, q.hits)
	if d := v.reason.decision(); d != allowed && v.reason != callerGone {
		s.denials.add(ctx, newDenial(time.Now(), q, &v), v.cause)
	}
	return v
}

// lookup ends a decision for which the token has to be looked up.
func (s *Server) lookup(ctx context.Context, q *request, v *verdict) {
	var ticket table.Ticket
	if s.decisions != nil {
		ticket = s.decisions.Ticket(v.token) // before the look-up: a revoke after this is noticed
	}
	bounded := withTimeout(ctx, LookupTimeout)
	defer bounded.done()
	holder, err := s.sessions.Holder(bounded, v.token)
	v.settle(holder, err, s.now())
	s.grant(q, v, holder, ticket)
	if v.reason == tokenKnown && s.seen != nil {
		s.seen(holder, q.client)
	}
}
