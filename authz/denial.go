package authz

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/convention"
	"gatepost/logqueue"
	"gatepost/tokens"
)

const (
	keptDenials  = 200 // for [Server.Recent]
	longestField = 256 // bytes of a string from the client that are kept
)

// Denial describes a request that did not pass. It holds no token and no query.
type Denial struct {
	Time time.Time `json:"time"`
	// Service is the name in the rule of the route, or empty if there is no rule.
	Service string `json:"service"`
	// Decision is an [Outcome]: "deny", or "error" if no decision was possible.
	Decision string `json:"decision"`
	// Reason is a label of gatepost_decisions_total.
	Reason string `json:"reason"`
	// RequestID is Envoy's, as in its access log.
	RequestID string `json:"request_id"`
	Method    string `json:"method"`
	// Host is the authority that the client asked for. Services can be of one host.
	Host   string `json:"host"`
	Path   string `json:"path"`
	Origin string `json:"origin,omitempty"`
	// Client is the client's address, as Envoy determined it.
	Client string `json:"client"`
	// Token is the fingerprint of the presented token, or empty if there is none or a malformed one.
	Token string `json:"token,omitempty"`
}

func newDenial(now time.Time, q *Request, d *Decision) Denial {
	path, _, _ := strings.Cut(q.path, "?")
	denial := Denial{
		Time:      now,
		Service:   strings.Clone(d.rule.service),
		Decision:  string(d.Outcome()),
		Reason:    d.Reason.String(),
		RequestID: kept(q.requestID),
		Method:    kept(q.method),
		Host:      kept(q.host),
		Path:      kept(path),
		Origin:    kept(q.origin),
		Client:    kept(q.client()),
	}
	if denial.RequestID == "" {
		denial.RequestID = kept(q.streamID)
	}
	if d.Token != (tokens.Hash{}) {
		denial.Token = d.Token.String()
	}
	return denial
}

// kept returns a copy of the first bytes of s, so that the bytes of the whole request can be freed.
func kept(s string) string {
	if len(s) > longestField {
		return strings.ToValidUTF8(s[:longestField], "") + "…"
	}
	return strings.Clone(s)
}

// denials logs denials at a bounded rate and keeps the last ones in memory.
type denials struct {
	logger       *slog.Logger
	leftOutTotal prometheus.Counter

	lines logqueue.Limit

	mu   sync.Mutex
	ring [keptDenials]Denial
	next int // the place of the next one
	full bool
	// followers get each denial.
	followers map[chan Denial]bool
}

// followed is how many denials wait for a follower.
const followed = 64

func (d *denials) follow() (<-chan Denial, func()) {
	follower := make(chan Denial, followed)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.followers[follower] = true
	return follower, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.followers, follower)
	}
}

func newDenials(logger *slog.Logger) *denials {
	return &denials{
		logger: logger,
		leftOutTotal: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_denial_lines_left_out_total",
			Help: "Denied requests that got no line in the log because there were too many.",
		}),
		followers: map[chan Denial]bool{},
	}
}

func (d *denials) add(ctx context.Context, one Denial, cause error) {
	d.keep(one)
	leftOut, ok := d.lines.Admit(one.Time)
	if !ok {
		d.leftOutTotal.Inc()
		return
	}
	attrs := []slog.Attr{
		slog.String("decision", one.Decision), slog.String("reason", one.Reason), slog.String("service", one.Service),
		slog.String("request_id", one.RequestID), slog.String("method", one.Method), slog.String("host", one.Host), slog.String("path", one.Path),
		slog.String("client", one.Client),
	}
	if one.Origin != "" {
		attrs = append(attrs, slog.String("origin", one.Origin))
	}
	if one.Token != "" {
		attrs = append(attrs, slog.String("token", one.Token))
	}
	if cause != nil {
		attrs = append(attrs, slog.Any("error", cause))
	}
	attrs = append(attrs, leftOut...)
	if one.Decision == string(CannotTell) { // an outage, not a fault of the client
		attrs = append(attrs, slog.String("see", convention.SectionOfReason(one.Reason).String()), convention.EventRequestUndecided.Attr())
		d.logger.LogAttrs(ctx, slog.LevelWarn, "request could not be decided", attrs...)
		return
	}
	d.logger.LogAttrs(ctx, slog.LevelInfo, "request denied", append(attrs, convention.EventRequestDenied.Attr())...)
}

// keep keeps a denial, and passes it on to the followers.
func (d *denials) keep(one Denial) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ring[d.next] = one
	if d.next++; d.next == len(d.ring) {
		d.next, d.full = 0, true
	}
	for follower := range d.followers {
		select {
		case follower <- one:
		default:
		}
	}
}

func (d *denials) recent() []Denial {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.next
	if d.full {
		n = len(d.ring)
	}
	list := make([]Denial, 0, n)
	for i := range n {
		list = append(list, d.ring[(d.next-1-i+len(d.ring))%len(d.ring)])
	}
	return list
}
