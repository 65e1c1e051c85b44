package tokens

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"gatepost/tracing"
)

// storeBuckets range from an answer from memory to the longest store timeout, in seconds.
var storeBuckets = []float64{1e-6, 1e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, .01, .025, .05, .1, .25, .5, 1, 2.5}

// Observed returns store with metrics for its calls, labelled with the store's name and the
// operation: gatepost_store_duration_seconds is the duration, gatepost_store_errors_total counts calls
// without an answer (an unknown token is an answer). Several stores can share one registerer.
func Observed(store Store, registerer prometheus.Registerer, name string) (Store, error) {
	seconds, err := registered(registerer, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "gatepost_store_duration_seconds",
		Help:    "Seconds that calls of the token store took, by operation.",
		Buckets: storeBuckets,
	}, []string{"store", "operation"}))
	if err != nil {
		return nil, err
	}
	failures, err := registered(registerer, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatepost_store_errors_total",
		Help: "Calls that failed because the token store was unavailable, by operation.",
	}, []string{"store", "operation"}))
	if err != nil {
		return nil, err
	}
	operation := func(op string) meter {
		return meter{"store " + op, name, seconds.WithLabelValues(name, op), failures.WithLabelValues(name, op)}
	}
	return &observed{
		Store:         store,
		create:        operation("create"),
		lookup:        operation("lookup"),
		rotate:        operation("rotate"),
		revoke:        operation("revoke"),
		sessions:      operation("sessions"),
		revokeSession: operation("revoke_session"),
		revokeUser:    operation("revoke_user"),
		ping:          operation("ping"),
		touch:         operation("touch"),
	}, nil
}

// registered registers a collector, or returns the existing one for the same metric.
func registered[C prometheus.Collector](registerer prometheus.Registerer, c C) (C, error) {
	err := registerer.Register(c)
	var before prometheus.AlreadyRegisteredError
	if errors.As(err, &before) {
		if same, ok := before.ExistingCollector.(C); ok {
			return same, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("registering store metrics: %w", err)
	}
	return c, nil
}

// observed is a Store that measures the inner store. Close is not measured.
type observed struct {
	Store
	create, lookup, rotate, revoke, sessions, revokeSession, revokeUser, ping, touch meter
}

// meter records the calls of one operation.
type meter struct {
	span     string // the name of a call's span
	store    string
	seconds  prometheus.Observer
	failures prometheus.Counter
}

// measured is a call in progress.
type measured struct {
	*meter
	start time.Time
	span  trace.Span
}

// begin returns the context of a call, which is a part of the trace of ctx if there is one.
func (m *meter) begin(ctx context.Context) (context.Context, measured) {
	ctx, span := tracing.Start(ctx, m.span, attribute.String("gatepost.store", m.store))
	return ctx, measured{m, time.Now(), span}
}

// done records a call that returned err. Only ErrUnavailable counts as a failure.
func (m measured) done(err error) {
	m.seconds.Observe(time.Since(m.start).Seconds())
	if err != nil && errors.Is(err, ErrUnavailable) {
		m.failures.Inc()
		m.span.SetStatus(codes.Error, "unavailable")
	}
	m.span.End()
}

func (o *observed) Create(ctx context.Context, s *Session, limit int) error {
	ctx, call := o.create.begin(ctx)
	err := o.Store.Create(ctx, s, limit)
	call.done(err)
	return err
}

func (o *observed) Lookup(ctx context.Context, h Hash) (*Session, error) {
	ctx, call := o.lookup.begin(ctx)
	s, err := o.Store.Lookup(ctx, h)
	call.done(err)
	return s, err
}

func (o *observed) Rotate(ctx context.Context, old Hash, next Successor, grace time.Duration) (Successor, error) {
	ctx, call := o.rotate.begin(ctx)
	given, err := o.Store.Rotate(ctx, old, next, grace)
	call.done(err)
	return given, err
}

func (o *observed) Revoke(ctx context.Context, h Hash) error {
	ctx, call := o.revoke.begin(ctx)
	err := o.Store.Revoke(ctx, h)
	call.done(err)
	return err
}

// End calls the inner store's End, and measures it as a revoke unless Revoke must do it. It does
// nothing if the store is no [Ender].
func (o *observed) End(ctx context.Context, of Principal) (bool, error) {
	inner, ok := o.Store.(Ender)
	if !ok {
		return false, nil
	}
	ctx, call := o.revoke.begin(ctx)
	ended, err := inner.End(ctx, of)
	if ended || err != nil {
		call.done(err)
	} else {
		call.span.End()
	}
	return ended, err
}

func (o *observed) Sessions(ctx context.Context, user string) ([]*Session, error) {
	ctx, call := o.sessions.begin(ctx)
	list, err := o.Store.Sessions(ctx, user)
	call.done(err)
	return list, err
}

func (o *observed) RevokeSession(ctx context.Context, user, id string) error {
	ctx, call := o.revokeSession.begin(ctx)
	err := o.Store.RevokeSession(ctx, user, id)
	call.done(err)
	return err
}

func (o *observed) RevokeUser(ctx context.Context, user string) (int, error) {
	ctx, call := o.revokeUser.begin(ctx)
	n, err := o.Store.RevokeUser(ctx, user)
	call.done(err)
	return n, err
}

func (o *observed) Ping(ctx context.Context) error {
	ctx, call := o.ping.begin(ctx)
	err := o.Store.Ping(ctx)
	call.done(err)
	return err
}

// Touch calls the inner store's Touch. It does nothing if the store is no [Toucher].
func (o *observed) Touch(ctx context.Context, of Principal, at time.Time, address string) error {
	inner, ok := o.Store.(Toucher)
	if !ok {
		return nil
	}
	ctx, call := o.touch.begin(ctx)
	err := inner.Touch(ctx, of, at, address)
	call.done(err)
	return err
}
