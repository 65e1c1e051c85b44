package endpoint

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// outcome is what came of a login or a call, for the log and the metrics.
type outcome string

// The outcomes of a login; a call has some of them, and its own.
const (
	opened        outcome = "opened"
	refused       outcome = "refused"            // the user service answered neither 200 nor 5xx
	noUser        outcome = "no_user"            // its 200 names no user
	throttled     outcome = "throttled"          // the shield holds failed logins against the client or the user
	busy          outcome = "busy"               // too many logins at once
	broken        outcome = "breaker_open"       // the user service is being left alone
	unreachable   outcome = "unreachable"        // the user service is down, or its answer is broken
	serviceFailed outcome = "user_service_error" // the user service answered 5xx
	timedOut      outcome = "timeout"            // the user service is slow
	notConfigured outcome = "not_configured"     // no user service is defined
	tooLarge      outcome = "too_large"          // the login is too large
	unreadable    outcome = "unreadable"         // the login cannot be read, or does not say which user logs in
	storeDown     outcome = "store_unavailable"
	clientGone    outcome = "client_gone"
	failed        outcome = "failed" // a fault of ours

	done         outcome = "ok"
	unauthorised outcome = "unauthorized"
	reused       outcome = "reused" // a token was refreshed twice
	inactive     outcome = "inactive"
	unknown      outcome = "unknown"
)

// level returns the level at which an outcome is logged: a warning if a client is not served although nothing is wrong
// with its request, an error if Gatepost is at fault.
func (o outcome) level() slog.Level {
	switch o {
	case busy, broken, unreachable, serviceFailed, timedOut, storeDown, reused:
		return slog.LevelWarn
	case failed:
		return slog.LevelError
	}
	return slog.LevelInfo
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

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	m := &metrics{
		logins: f.NewCounterVec(prometheus.CounterOpts{
			Name: "gatepost_logins_total",
			Help: "Logins by what came of them.",
		}, []string{"outcome"}),
		calls: f.NewCounterVec(prometheus.CounterOpts{
			Name: "gatepost_token_calls_total",
			Help: "Calls below the token path by what came of them.",
		}, []string{"call", "outcome"}),
		userService: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "gatepost_user_service_seconds",
			Help:    "How long the user service took to answer a login, in seconds, failures included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		userServiceErrors: f.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_user_service_errors_total",
			Help: "Logins that the user service could not answer: it was down, too slow, or answered 5xx.",
		}),
	}
	for _, o := range []outcome{opened, refused, noUser, throttled, busy, broken, unreachable, serviceFailed, timedOut, notConfigured,
		tooLarge, unreadable, storeDown, clientGone, failed} {
		m.logins.WithLabelValues(string(o)) // a rate needs its zero
	}
	return m
}
