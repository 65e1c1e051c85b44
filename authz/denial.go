package authz

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"gatepost/tokens"
)

// How many denials are kept for [Server.Recent], and how many lines go to the log: a hundred at once and ten a
// second after that. Whoever can be denied can be denied a million times, and must not fill a disk by it.
const (
	keptDenials    = 200
	linesPerSecond = 10
	linesAtOnce    = 100
	longestField   = 256 // bytes of a string of the client's that are kept
)

// Denial is what is told of a request that did not pass. It has no token and no query in it.
type Denial struct {
	Time time.Time `json:"time"`
	// Service is the name in the route's rule; empty where the route brought none.
	Service string `json:"service"`
	// Decision is "deny", or "error" where it could not be told whether the request may pass.
	Decision string `json:"decision"`
	// Reason is a label of gatepost_decisions_total.
	Reason string `json:"reason"`
	// RequestID is Envoy's, as in its access log.
	RequestID string `json:"request_id"`
	Method    string `json:"method"`
	Path      string `json:"path"`
	Origin    string `json:"origin,omitempty"`
	// Client is the address that Envoy takes for the client's.
	Client string `json:"client"`
	// Token is the fingerprint of the token that was shown; empty where none was that could be one.
	Token string `json:"token,omitempty"`
}

func newDenial(now time.Time, q *request, v *verdict) Denial {
	path, _, _ := strings.Cut(q.path, "?")
	d := Denial{
		Time:      now,
		Service:   strings.Clone(v.rule.service),
		Decision:  string(v.reason.decision()),
		Reason:    v.reason.String(),
		RequestID: kept(q.requestID),
		Method:    kept(q.method),
		Path:      kept(path),
		Origin:    kept(q.origin),
		Client:    kept(q.client),
	}
	if d.RequestID == "" {
		d.RequestID = kept(q.streamID)
	}
	if v.token != (tokens.Hash{}) {
		d.Token = v.token.String()
	}
	return d
}

// kept returns the first bytes of s by themselves, so that the rest of the request is not kept with them.
func kept(s string) string {
	if len(s) > longestField {
		return strings.ToValidUTF8(s[:longestField], "") + "…"
	}
	return strings.Clone(s)
}

// denials tells of denials: a bounded number of lines in the log, and the last few in memory.
type denials struct {
	logger       *slog.Logger
	leftOutTotal prometheus.Counter

	mu      sync.Mutex
	lines   *rate.Limiter
	leftOut int
	ring    [keptDenials]Denial
	next    int // where the next one goes
	full    bool
}

func newDenials(logger *slog.Logger) *denials {
	return &denials{
		logger: logger,
		leftOutTotal: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_denial_lines_left_out_total",
			Help: "Denied requests that got no line in the log because there were too many.",
		}),
		lines: rate.NewLimiter(linesPerSecond, linesAtOnce),
	}
}

func (d *denials) add(ctx context.Context, one Denial, cause error) {
	leftOut, line := d.keep(one)
	if !line {
		d.leftOutTotal.Inc()
		return
	}
	attrs := []slog.Attr{
		slog.String("decision", one.Decision), slog.String("reason", one.Reason), slog.String("service", one.Service),
		slog.String("request_id", one.RequestID), slog.String("method", one.Method), slog.String("path", one.Path),
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
	if leftOut > 0 {
		attrs = append(attrs, slog.Int("lines_left_out", leftOut))
	}
	if one.Decision == string(cannotTell) { // an outage, and not the client's fault
		d.logger.LogAttrs(ctx, slog.LevelWarn, "request could not be decided", attrs...)
		return
	}
	d.logger.LogAttrs(ctx, slog.LevelInfo, "request denied", attrs...)
}

// keep puts a denial in memory and says whether it gets a line, and how many before it got none.
func (d *denials) keep(one Denial) (leftOut int, line bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ring[d.next] = one
	if d.next++; d.next == len(d.ring) {
		d.next, d.full = 0, true
	}
	if !d.lines.AllowN(one.Time, 1) {
		d.leftOut++
		return 0, false
	}
	leftOut, d.leftOut = d.leftOut, 0
	return leftOut, true
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
