package endpoint

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// outcome is what came of a login or a call, for the log and the metrics.
type outcome string

// The outcomes of a login; a call has some of them, and its own.
const (
	opened        outcome = "opened"
	refused       outcome = "refused"        // the user service answered, and not 200
	noUser        outcome = "no_user"        // its 200 names no user
	throttled     outcome = "throttled"      // the shield holds failed logins against the client or the user
	busy          outcome = "busy"           // too many logins at once
	broken        outcome = "breaker_open"   // the user service is being left alone
	unreachable   outcome = "unreachable"    // the user service is down, or its answer is broken
	timedOut      outcome = "timeout"        // the user service is slow
	notConfigured outcome = "not_configured" // no user service is defined
	tooLarge      outcome = "too_large"      // the login is too large
	unreadable    outcome = "unreadable"     // the login cannot be read, or does not say which user logs in
	storeDown     outcome = "store_unavailable"
	clientGone    outcome = "client_gone"
	failed        outcome = "failed" // a fault of ours

	done         outcome = "ok"
	unauthorised outcome = "unauthorized"
	reused       outcome = "reused" // a token was refreshed twice
	inactive     outcome = "inactive"
	unknown      outcome = "unknown"
)

type metrics struct {
	logins      *prometheus.CounterVec
	calls       *prometheus.CounterVec
	userService prometheus.Histogram
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
			Name:    "gatepost_user_service_duration_seconds",
			Help:    "How long the user service took to answer a login, in seconds, failures included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
	}
	for _, o := range []outcome{opened, refused, noUser, throttled, busy, broken, unreachable, timedOut, notConfigured,
		tooLarge, unreadable, storeDown, clientGone, failed} {
		m.logins.WithLabelValues(string(o)) // a rate needs its zero
	}
	return m
}
