// Package ratelimit decides whether a request is above a limit that all gateways count together.
//
// Envoy calls it once for each request to a service with such limits (RateLimitService over gRPC). The call names the
// limits, and a client for each, so this package knows no definitions. One script counts the request in Redis: in all
// of the limits, or in none if it is above one of them.
//
// If Redis does not answer in time, the request is allowed, or refused if one of its limits says so. After an outage
// has begun Redis is not called for a second ([redisconn.Guard]), so it does not delay every request. A client known to
// be above a limit stays refused.
package ratelimit

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gatepost/redisconn"
)

// defaultTimeout is how long a request waits for Redis.
const defaultTimeout = 50 * time.Millisecond

// Config is what a Server needs.
type Config struct {
	// Client is the Redis that all gateways share. Required.
	Client redis.Scripter
	// Timeout is how long a request waits for Redis. Zero: 50 ms.
	Timeout time.Duration
	// Logger gets a line if Redis goes away, and one if it is back. Nil: nothing is logged.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer
	// Now is the clock of the pause after a failure. Requests are counted by that of Redis. Nil: [time.Now].
	Now func() time.Time
}

// Server is the rate limit service of Envoy. Its methods are safe for concurrent use.
type Server struct {
	config    Config
	decisions *prometheus.CounterVec
	durations prometheus.Histogram
	guard     redisconn.Guard
	full      full
}

// New returns a server. It fails if a metric of one of its names is already registered.
func New(c Config) (*Server, error) {
	if c.Client == nil {
		return nil, errors.New("ratelimit: no Client")
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Server{
		config: c,
		guard: redisconn.Guard{
			Timeout: c.Timeout, Logger: c.Logger, Now: c.Now,
			Lost: "requests cannot be counted for rate limits of the cluster; without_redis of each limit decides",
			Back: "requests are counted for rate limits of the cluster again",
		},
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatepost_cluster_limit_decisions_total",
			Help: "Requests to what has a rate limit with scope: cluster, by decision (allow, deny) and reason (within, above, no_redis).",
		}, []string{"decision", "reason"}),
		durations: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "gatepost_cluster_limit_duration_seconds",
			Help:    "Seconds that Redis took to count a request for the rate limits with scope: cluster.",
			Buckets: []float64{1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, .01, .025, .05},
		}),
	}
	if c.Registerer != nil {
		if err := errors.Join(c.Registerer.Register(s.decisions), c.Registerer.Register(s.durations)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Register registers the server with g, whose codec must be that of package codec.
func (s *Server) Register(g *grpc.Server) {
	desc := ratelimitv3.RateLimitService_ServiceDesc // for its name and its file, which reflection shows
	desc.HandlerType = (*any)(nil)
	desc.Methods = []grpc.MethodDesc{{MethodName: "ShouldRateLimit", Handler: handle}}
	g.RegisterService(&desc, s)
}

// handle is a grpc.MethodHandler.
func handle(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	q := new(Request)
	if err := decode(q); err != nil {
		return nil, err
	}
	decide := func(ctx context.Context, _ any) (any, error) { return srv.(*Server).Decide(ctx, q) }
	if intercept == nil {
		return decide(ctx, q)
	}
	return intercept(ctx, q, &grpc.UnaryServerInfo{Server: srv, FullMethod: ratelimitv3.RateLimitService_ShouldRateLimit_FullMethodName}, decide)
}

// Decide returns the decision about a request. The error is for one that is refused because it cannot be counted: Envoy
// then responds 503, since the client may be within its limit.
func (s *Server) Decide(ctx context.Context, q *Request) (*ratelimitv3.RateLimitResponse, error) {
	v, counted := s.count(ctx, q.counters)
	switch {
	case counted && v.allowed:
		s.decisions.WithLabelValues("allow", "within").Inc()
		return &ratelimitv3.RateLimitResponse{OverallCode: ratelimitv3.RateLimitResponse_OK, ResponseHeadersToAdd: v.headers(q.shows())}, nil
	case counted:
		s.decisions.WithLabelValues("deny", "above").Inc()
		return &ratelimitv3.RateLimitResponse{OverallCode: ratelimitv3.RateLimitResponse_OVER_LIMIT, ResponseHeadersToAdd: v.headers(q.shows())}, nil
	case q.refuses():
		s.decisions.WithLabelValues("deny", "no_redis").Inc()
		return nil, status.Error(codes.Unavailable, "the request cannot be counted")
	}
	s.decisions.WithLabelValues("allow", "no_redis").Inc()
	return &ratelimitv3.RateLimitResponse{OverallCode: ratelimitv3.RateLimitResponse_OK}, nil
}

// count counts a request. If Redis does not, and no counter is known to be full, counted is false.
func (s *Server) count(ctx context.Context, counters []counter) (v verdict, counted bool) {
	start := s.config.Now()
	if v, known := s.full.verdict(counters, start); known {
		return v, true
	}
	err := s.guard.Call(ctx, func(ctx context.Context) (err error) {
		v, err = count(ctx, s.config.Client, counters)
		return err
	})
	if err != nil {
		return s.full.verdict(counters, s.config.Now()) // another request may have found one full meanwhile
	}
	if v.remaining == 0 {
		c := counters[v.of]
		s.full.add(c, start.Add(v.wait-c.limit.Per/unit)) // the tick of Redis' clock may have been nearly over
	}
	s.durations.Observe(s.config.Now().Sub(start).Seconds())
	return v, true
}

// The response headers about a limit.
const (
	HeaderLimit     = "x-ratelimit-limit"
	HeaderRemaining = "x-ratelimit-remaining"
	HeaderReset     = "x-ratelimit-reset"
)

// headers are those of the response to the client, as Envoy's own limits set them: of all responses, or of a 429 alone.
func (v verdict) headers(all bool) (out []*corev3.HeaderValue) {
	header := func(name string, value int) *corev3.HeaderValue {
		return &corev3.HeaderValue{Key: name, Value: strconv.Itoa(value)}
	}
	reset := int(math.Ceil(v.wait.Seconds()))
	if all || !v.allowed {
		out = append(out, header(HeaderLimit, v.limit), header(HeaderRemaining, v.remaining), header(HeaderReset, reset))
	}
	if !v.allowed {
		out = append(out, header("retry-after", max(reset, 1)))
	}
	return out
}
