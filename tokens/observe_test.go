package tokens

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// failingStore is a store that returns err from every call.
type failingStore struct{ err error }

func (a failingStore) Create(context.Context, *Session, int) error    { return a.err }
func (a failingStore) Lookup(context.Context, Hash) (*Session, error) { return nil, a.err }
func (a failingStore) Rotate(context.Context, Hash, Successor, time.Duration) (Successor, error) {
	return Successor{}, a.err
}
func (a failingStore) Revoke(context.Context, Hash) error                        { return a.err }
func (a failingStore) Sessions(context.Context, string) ([]*Session, error)      { return nil, a.err }
func (a failingStore) RevokeSession(context.Context, string, string) error       { return a.err }
func (a failingStore) RevokeUser(context.Context, string) (int, error)           { return 0, a.err }
func (a failingStore) Ping(context.Context) error                                { return a.err }
func (a failingStore) Touch(context.Context, Principal, time.Time, string) error { return a.err }
func (a failingStore) Close() error                                              { return a.err }

func callAll(ctx context.Context, s Store) error {
	var h Hash
	_, lookup := s.Lookup(ctx, h)
	_, list := s.Sessions(ctx, "ann")
	_, user := s.RevokeUser(ctx, "ann")
	_, rotate := s.Rotate(ctx, h, Successor{}, 0)
	touch := s.(Toucher).Touch(ctx, Principal{}, time.Time{}, "")
	return errors.Join(touch, s.Create(ctx, nil, 0), lookup, rotate, s.Revoke(ctx, h), list,
		s.RevokeSession(ctx, "ann", "x"), user, s.Ping(ctx))
}

func TestObservedCountsFailures(t *testing.T) {
	registry := prometheus.NewRegistry()
	for name, err := range map[string]error{
		"healthy": nil,
		"unknown": ErrUnknown,
		"down":    fmt.Errorf("%w: refused", ErrUnavailable),
	} {
		store, observing := Observed(failingStore{err}, registry, name)
		if observing != nil {
			t.Fatal(observing)
		}
		if got := callAll(t.Context(), store); !errors.Is(got, err) {
			t.Errorf("%s: got %v", name, got)
		}
	}
	want := new(strings.Builder)
	fmt.Fprintln(want, "# HELP gatepost_store_errors_total Calls that failed because the token store was unavailable, by operation.")
	fmt.Fprintln(want, "# TYPE gatepost_store_errors_total counter")
	for _, op := range []string{"create", "lookup", "ping", "revoke", "revoke_session", "revoke_user", "rotate", "sessions", "touch"} {
		for name, n := range map[string]int{"healthy": 0, "unknown": 0, "down": 1} {
			fmt.Fprintf(want, "gatepost_store_errors_total{operation=%q,store=%q} %d\n", op, name, n)
		}
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want.String()), "gatepost_store_errors_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry, "gatepost_store_duration_seconds"); err != nil || n != 27 {
		t.Errorf("%d histograms, %v", n, err)
	}
}

// endingStore is a store that ends a session in one step, or cannot.
type endingStore struct {
	failingStore
	can bool
}

func (a endingStore) End(context.Context, Principal) (bool, error) { return a.can, a.err }

// A call of End that leaves the work to Revoke is not counted beside it.
func TestObservedCountsARevokeOnce(t *testing.T) {
	for name, c := range map[string]struct {
		store Store
		calls int
	}{
		"no Ender":          {failingStore{}, 0},
		"ended":             {endingStore{can: true}, 1},
		"not ended":         {endingStore{}, 0},
		"an unknown result": {endingStore{failingStore: failingStore{ErrUnavailable}}, 1},
	} {
		registry := prometheus.NewRegistry()
		store, err := Observed(c.store, registry, "a store")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = store.(Ender).End(t.Context(), Principal{})
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		calls := uint64(0)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				calls += m.GetHistogram().GetSampleCount()
			}
		}
		if calls != uint64(c.calls) {
			t.Errorf("%s: %d calls are counted, want %d", name, calls, c.calls)
		}
	}
}

func TestObservedFailsOnMetricConflict(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "gatepost_store_duration_seconds", Help: "another metric"}))
	if _, err := Observed(failingStore{}, registry, "redis"); err == nil {
		t.Error("no error although the metric's name is taken")
	}
}
