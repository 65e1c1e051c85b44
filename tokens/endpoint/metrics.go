package endpoint

import (
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"

	"gatepost/convention"
)

// outcome is the result of a login or a call, for the log and the metrics.
type outcome string

// The outcomes of logins and calls. Calls share some and add their own below.
const (
	opened    outcome = "opened"
	refused   outcome = "refused"      // the user service answered neither 200 nor 5xx
	noUser    outcome = "no_user"      // its 200 has no valid user
	throttled outcome = "throttled"    // too many failed logins of the client or the user
	busy      outcome = "busy"         // too many concurrent logins
	broken    outcome = "breaker_open" // the breaker of the user service is open
	// the user service is down, or its answer is invalid
	unreachable   outcome = "unreachable"
	serviceFailed outcome = "user_service_error" // the user service returned 5xx
	timedOut      outcome = "timeout"            // the user service timed out
	notConfigured outcome = "not_configured"     // no user service is defined
	tooLarge      outcome = "too_large"          // the login is too large
	unreadable    outcome = "unreadable"         // the login is malformed, or its user is ambiguous
	storeDown     outcome = "store_unavailable"
	clientGone    outcome = "client_gone"
	failed        outcome = "failed" // an internal error

	done         outcome = "ok"
	unauthorised outcome = "unauthorized"
	reused       outcome = "reused" // a token was refreshed twice
	inactive     outcome = "inactive"
	unknown      outcome = "unknown"
)

// level returns the log level of an outcome: a warning if a valid request is not served, an error
// for an internal error.
func (o outcome) level() slog.Level {
	switch o {
	case busy, broken, unreachable, serviceFailed, timedOut, storeDown, reused:
		return slog.LevelWarn
	case failed:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// attributes returns the log attributes of an outcome: its name, and the page about it if it needs attention.
// attribute returns the outcome for a span.
func (o outcome) attribute() attribute.KeyValue {
	return attribute.String("gatepost.outcome", string(o))
}

func (o outcome) attributes() []slog.Attr {
	attributes := make([]slog.Attr, 0, 7) // with those of a login
	attributes = append(attributes, slog.String("outcome", string(o)))
	if o.level() >= slog.LevelWarn {
		attributes = append(attributes, slog.String("see", convention.SectionOutcomes.String()))
	}
	return attributes
}

type metrics struct {
	logins            *prometheus.CounterVec
	calls             *prometheus.CounterVec
	userService       prometheus.Histogram
	userServiceErrors prometheus.Counter
}

// countLogin counts a login.
func (m *metrics) countLogin(o outcome) {
	m.logins.WithLabelValues(string(o)).Inc()
	switch o {
	case unreachable, timedOut, serviceFailed:
		m.userServiceErrors.Inc()
	}
}

// newMetrics makes the metrics and registers them with r, unless that is nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: convention.MetricLogins,
			Help: "Logins by outcome.",
		}, []string{"outcome"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatepost_token_calls_total",
			Help: "Calls below the token path by outcome.",
		}, []string{"call", "outcome"}),
		userService: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "gatepost_user_service_duration_seconds",
			Help:    "Seconds until the user service answered a login, failures included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		userServiceErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_user_service_errors_total",
			Help: "Logins that failed at the user service: it was down, too slow, or returned 5xx.",
		}),
	}
	for _, o := range []outcome{opened, refused, noUser, throttled, busy, broken, unreachable, serviceFailed, timedOut, notConfigured,
		tooLarge, unreadable, storeDown, clientGone, failed} {
		m.logins.WithLabelValues(string(o)) // a rate needs an initial zero
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.logins, m.calls, m.userService, m.userServiceErrors} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering the metrics of logins: %w", err)
		}
	}
	return m, nil
}
