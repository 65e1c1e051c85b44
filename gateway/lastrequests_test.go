package gateway

import (
	"testing"
	"time"
)

func TestTheLastRequestIsWhenTheCountHasGrown(t *testing.T) {
	t.Parallel()
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	all := func(string) bool { return true }
	const orders, other = "service/orders", "service/orders/base"
	l := newLastRequests(false)
	want := func(what string, when time.Time) {
		t.Helper()
		if got := l.of("orders"); !got.Equal(when) {
			t.Errorf("%s: the last request was at %v, want %v", what, got, when)
		}
	}
	l.count(map[string]uint64{orders: 5, "gatepost_grpc": 9}, at(1), all)
	want("requests from before the start", time.Time{})
	l.count(map[string]uint64{orders: 5}, at(2), all)
	want("the same count", time.Time{})
	l.count(map[string]uint64{orders: 6}, at(3), all)
	want("a request", at(3))
	l.count(map[string]uint64{orders: 6, other: 1}, at(4), all)
	want("a request to another cluster of the service", at(4))
	l.count(map[string]uint64{orders: 6}, at(5), all)
	want("a cluster that has gone", at(4))
	l.count(map[string]uint64{orders: 2}, at(6), all)
	want("an Envoy that has started again", at(6))
	l.count(map[string]uint64{orders: 2}, at(7), func(string) bool { return false })
	want("a service that has gone", time.Time{})

	l = newLastRequests(true)
	l.count(map[string]uint64{orders: 1}, at(1), all)
	want("the first request of an Envoy of its own", at(1))
	l.count(map[string]uint64{orders: 2}, at(3), all)
	l.count(map[string]uint64{orders: 1}, at(2), all)
	want("an answer after that of a later question", at(3))
}
