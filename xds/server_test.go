package xds

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// withServices makes definitions with services of these names, each at the path of its name.
func withServices(t *testing.T, names ...string) *Snapshot {
	t.Helper()
	text := "services:\n"
	for _, n := range names {
		text += "  - {name: " + n + ", path: /" + n + ", upstreams: [\"http://127.0.0.1:8080\"]}\n"
	}
	if len(names) == 0 {
		text = "services: []\n"
	}
	return build(t, text)
}

func expect(t *testing.T, e *fakeEnvoy, lines ...string) {
	t.Helper()
	if got, want := e.transcript(), strings.Join(lines, "\n"); got != want {
		t.Fatalf("the Envoy received\n%s\nwant\n%s", got, want)
	}
}

// hold gives a channel that an Envoy can hang on until it is released.
func hold() (<-chan struct{}, func()) {
	held := make(chan struct{})
	return held, sync.OnceFunc(func() { close(held) })
}

func TestAnEnvoyIsServedWhateverItsNodeID(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	first := withServices(t, "a")
	c.publish(first)
	c.connect("someone-else", acceptAll)
	c.delivered(first)
	got := c.progress()
	if got.Version != first.Version || got.Delivered != first.Version || len(got.Envoys) != 1 {
		t.Fatalf("status %+v", got)
	}
	if e := got.Envoys[0]; e.Node != "someone-else" || e.Acked != first.Version || e.AckedAt.IsZero() || e.Address == "" {
		t.Fatalf("status of the Envoy %+v", e)
	}
}

// By default, gRPC closes a connection whose client pings more often than every 5 minutes.
func TestThePingsOfAnEnvoyEndNoStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startControl(t, quick)
		e := c.connect("envoy", acceptAll)
		c.servesAll(withServices(t, "a"))
		time.Sleep(time.Hour)
		select {
		case <-e.done:
			t.Error("the stream has ended")
		default:
		}
	})
}

func TestAnEnvoyThatWaitsIsServedByTheFirstPublish(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", acceptAll)
	c.eventually("a connected Envoy", func(s progress) bool { return len(s.Envoys) == 1 && s.Envoys[0].Node == "a" })
	c.serves(withServices(t, "a"))
	if err := e.dangling(); err != nil {
		t.Fatal(err)
	}
}

func TestTheSameContentIsNoPush(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", acceptAll)
	c.serves(withServices(t, "a", "b"))
	e.transcript()
	c.serves(withServices(t, "b", "a"))
	expect(t, e)
}

func TestAnAddedServiceIsSentAloneClustersFirst(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", acceptAll)
	c.serves(withServices(t, "a"))
	e.transcript()
	c.serves(withServices(t, "a", "b"))
	expect(t, e, "ack cluster +service/b", "ack route +/.gatepost +/b")
}

func TestNewRoutesWaitUntilEveryEnvoyHasTheClusters(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	held, release := hold()
	slow := func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		for _, r := range resp.GetResources() {
			if r.GetName() == "service/b" {
				<-held
			}
		}
		return ""
	}
	fast := c.connect("fast", acceptAll)
	c.connect("slow", slow)
	t.Cleanup(release)
	c.eventually("both are there", func(s progress) bool { return len(s.Envoys) == 2 })
	c.servesAll(withServices(t, "a"))
	fast.transcript()
	next := withServices(t, "a", "b")
	c.publish(next)
	c.eventually("the clusters at the fast one", func(progress) bool { return len(fast.clusters()) == 3 })
	expect(t, fast, "ack cluster +service/b")
	release()
	c.delivered(next)
	expect(t, fast, "ack route +/.gatepost +/b")
}

// An Envoy that does not reply any more is waited for once.
func TestAnEnvoyThatHangsHoldsUpOneChangeAtMost(t *testing.T) {
	t.Parallel()
	opts := quick
	opts.Patience = 1
	c := startControl(t, opts)
	held, release := hold()
	fast, hanging := c.connect("fast", acceptAll), c.connect("hanging", acceptAll)
	c.eventually("both are connected", func(s progress) bool { return len(s.Envoys) == 2 })
	c.servesAll(withServices(t, "a"))
	hanging.judges(func(*discoveryv3.DeltaDiscoveryResponse) string { <-held; return "" })
	t.Cleanup(release)
	c.serves(withServices(t, "a", "b"))

	c.mu.Lock()
	c.opts.Patience = time.Hour
	c.mu.Unlock()
	last := withServices(t, "a", "b", "c")
	c.serves(last)
	if err := fast.dangling(); err != nil {
		t.Fatal(err)
	}
	release()
	c.eventually("the other catches up", func(s progress) bool { return s.Envoys[1].Acked == last.Version })
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.activeEnvoys()); n != 2 {
		t.Fatalf("%d Envoys are waited for, want 2", n)
	}
}

func TestARemovedServiceLosesItsRoutesFirst(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", acceptAll)
	c.serves(withServices(t, "a", "b"))
	e.transcript()
	c.serves(withServices(t, "a"))
	c.eventually("the cluster goes", func(progress) bool { return len(e.clusters()) == 2 })
	expect(t, e, "ack route +/.gatepost", "ack route -/b", "ack cluster -service/b")
	if got := c.progress(); got.Delivered != withServices(t, "a").Version {
		t.Fatalf("status %+v", got)
	}
}

func TestAChangeOfTheBasePathIsAnotherCluster(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", acceptAll)
	c.serves(build(t, `services: [{name: a, path: /a, upstreams: ["http://127.0.0.1:1/old"]}]`))
	e.transcript()
	c.serves(build(t, `services: [{name: a, path: /a, upstreams: ["http://127.0.0.1:2/new"]}]`))
	expect(t, e, "ack cluster +service/a/new", "ack route +/.gatepost +/a")
}

func TestManyChangesInARowLeaveNothingDanglingAndNothingBehind(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", acceptAll)
	c.serves(withServices(t, "a"))
	names := []string{"a", "b", "c", "d", "e"}
	var last *Snapshot
	for i := range 60 {
		last = withServices(t, names[i%5], names[(i*3+1)%5]+"x")
		c.publish(last)
		if i%7 == 0 {
			c.delivered(last)
		}
		if err := e.dangling(); err != nil {
			t.Fatal(err)
		}
	}
	c.delivered(last)
	c.eventually("old clusters are gone", func(progress) bool { return len(e.clusters()) == 3 })
}

// TestAServiceThatComesBackWhileItsClusterGoes: the Envoy has acknowledged the same clusters before, but has been sent
// their removal since.
func TestAServiceThatComesBackWhileItsClusterGoes(t *testing.T) {
	t.Parallel()
	opts := quick
	opts.Grace = time.Millisecond
	c := startControl(t, opts)
	held, release := hold()
	t.Cleanup(release)
	e := c.connect("a", acceptAll)
	with, without := withServices(t, "a", "b"), withServices(t, "a")
	c.serves(with)
	going := make(chan struct{})
	e.judges(func(r *discoveryv3.DeltaDiscoveryResponse) string {
		if r.GetTypeUrl() == resourcev3.ClusterType && slices.Contains(r.GetRemovedResources(), "service/b") {
			close(going)
			<-held
		}
		return ""
	})
	c.publish(without)
	<-going
	c.publish(with)
	release()
	c.eventually("the service is back", func(s progress) bool { return s.Delivered == with.Version && s.Envoys[0].Acked == with.Version })
	_, lines, _ := strings.Cut(e.transcript(), "ack cluster -service/b")
	cluster, route := strings.Index(lines, "+service/b"), strings.Index(lines, "+/b")
	if cluster < 0 || route < cluster {
		t.Errorf("the route came before the cluster:\n%s", lines)
	}
}

func TestAVersionThatReplacesARejectedOneIsSentAlone(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	good, bad, better := withServices(t, "a"), withServices(t, "a", "bad"), withServices(t, "a", "b")
	e := c.connect("a", refusingVersion(bad, "no such thing"))
	c.serves(good)
	e.transcript()

	c.publish(bad)
	if got := c.rejected(bad); got.Reason != "no such thing" || got.Type != "route" || got.Version != bad.Version || got.Node != "a" {
		t.Fatalf("got %+v", got)
	}
	c.rollsBack(bad, good)
	c.eventually("the bad cluster goes", func(progress) bool { return len(e.clusters()) == 2 })
	expect(t, e, "ack cluster +service/bad", "nack route +/.gatepost +/bad", "ack route +/.gatepost", "ack route -/bad", "ack cluster -service/bad")

	c.serves(better)
	expect(t, e, "ack cluster +service/b", "ack route +/.gatepost +/b")
	if got := c.progress(); got.Envoys[0].Nack != nil {
		t.Fatalf("status %+v", got)
	}
}

// TestNothingGoesWithAChangeThatIsRejected: the scopes that were to go stay, or their requests would be those of a
// service at / in the meantime.
func TestNothingGoesWithAChangeThatIsRejected(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	good, bad := withServices(t, "a", "b"), withServices(t, "a", "bad")
	e := c.connect("a", refusingVersion(bad, "no such thing"))
	c.serves(good)
	e.transcript()
	c.publish(bad)
	c.rollsBack(bad, good)
	c.eventually("the bad cluster goes", func(progress) bool { return len(e.clusters()) == 3 })
	expect(t, e, "ack cluster +service/bad", "nack route +/.gatepost +/bad", "ack route +/.gatepost", "ack route -/bad", "ack cluster -service/bad")
}

// TestNothingGoesWithTheOnlyChangeThereIs: where nothing better is known than what was rejected, Envoy keeps what it
// has.
func TestNothingGoesWithTheOnlyChangeThereIs(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	old, bad, better := withServices(t, "a", "b"), withServices(t, "a", "bad"), withServices(t, "a", "c")
	before := c.connect("a", acceptAll)
	c.serves(old)
	before.leave()

	after := startControl(t, quick) // Gatepost comes back, with other definitions
	after.publish(bad)
	e := after.connect("a", refusingVersion(bad, "no such thing"), before)
	after.rejected(bad)
	after.eventually("the rejection in the status", func(s progress) bool { return s.Envoys[0].Nack != nil })
	e.mu.Lock()
	_, kept := e.has[resourcev3.ScopedRouteType]["/b"]
	e.mu.Unlock()
	if !kept {
		t.Fatalf("the scope has gone; the Envoy received\n%s", e.transcript())
	}
	e.judges(acceptAll)
	after.serves(better)
	after.eventually("the scope goes", func(progress) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		_, kept := e.has[resourcev3.ScopedRouteType]["/b"]
		return !kept
	})
}

func TestRejectedClustersNeverGetRoutes(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", refusing(resourcev3.ClusterType, "service/bad", "bad cluster"))
	good := withServices(t, "a")
	c.serves(good)
	e.transcript()
	bad := withServices(t, "bad", "fine")
	c.publish(bad)
	c.rollsBack(bad, good)
	// The fake takes nothing of a rejected update; a real Envoy may have taken the good part, so all of it is taken away.
	c.eventually("the answer to the rollback", func(progress) bool { return e.answers() == 2 })
	got := e.transcript()
	if !strings.HasPrefix(got, "nack cluster +service/bad +service/fine\nack cluster ") || strings.Contains(got, "route") {
		t.Fatalf("the Envoy received\n%s", got)
	}
}

// An Envoy that was not waited for may reject clusters when the routes to them are out.
func TestClustersThatAreRejectedLateGoAfterTheirRoutes(t *testing.T) {
	t.Parallel()
	opts := quick
	opts.Patience = 1
	c := startControl(t, opts)
	held, release := hold()
	fast, slow := c.connect("fast", acceptAll), c.connect("slow", acceptAll)
	c.eventually("both are there", func(s progress) bool { return len(s.Envoys) == 2 })
	good, bad := withServices(t, "a"), withServices(t, "a", "b")
	c.servesAll(good)
	refuses := refusing(resourcev3.ClusterType, "service/b", "no")
	slow.judges(func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		reason := refuses(resp)
		if reason != "" {
			<-held
		}
		return reason
	})
	t.Cleanup(release)
	c.publish(bad)
	c.eventually("the fast one has the routes", func(s progress) bool { return s.Envoys[0].Acked == bad.Version })
	fast.transcript()
	release()
	c.rejected(bad)
	c.publish(good)
	c.eventually("the cluster goes", func(progress) bool { return len(fast.clusters()) == 2 })
	expect(t, fast, "ack route +/.gatepost", "ack route -/b", "ack cluster -service/b")
}

// Routes to clusters that were rejected are not sent when the time to wait is over.
func TestAHaltedDeliveryGoesNoFurther(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	good, bad := withServices(t, "a"), withServices(t, "a", "bad")
	e := c.connect("a", refusing(resourcev3.ClusterType, "service/bad", "bad cluster"))
	c.serves(good)
	c.publish(bad)
	c.rejected(bad)
	c.mu.Lock()
	turn := c.delivery.turn
	c.mu.Unlock()
	c.Halt(good.Version) // it is another version by now
	c.Halt(bad.Version)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.delivery.turn != turn+1 || c.delivery.phase == routesOut {
		t.Errorf("after %d timers, the phase is %v", c.delivery.turn-turn, c.delivery.phase)
	}
	if got := e.transcript(); strings.Contains(got, "+/bad") {
		t.Errorf("the Envoy received\n%s", got)
	}
}

func TestWithoutADeliveredVersionAGoodOneIsServedAfterARejectedOne(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	bad := withServices(t, "bad")
	e := c.connect("a", refusing(resourcev3.ListenerType, ListenerName, "cannot bind"))
	c.publish(bad)
	c.rejected(bad)
	if got := c.progress(); got.Version != bad.Version || got.Delivered != "" || got.Envoys[0].Nack == nil {
		t.Fatalf("status %+v", got)
	}
	e.judges(acceptAll)
	c.serves(build(t, `{listen: "127.0.0.1:5501", services: [{name: a, path: /a, upstreams: ["http://127.0.0.1:1"]}]}`))
	if n := strings.Count(e.transcript(), "nack"); n != 1 {
		t.Fatalf("%d rejections, want 1", n)
	}
}

// A port that was taken when the gateway began: the listener is the same in the next definitions, and is sent again.
func TestWithoutADeliveredVersionWhatWasRejectedIsSentWithTheNextChange(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	first := withServices(t, "a")
	e := c.connect("a", refusing(resourcev3.ListenerType, ListenerName, "port taken"))
	c.publish(first)
	c.rejected(first)
	e.judges(acceptAll)
	c.serves(withServices(t, "a", "b"))
	c.serves(withServices(t, "b"))
	if err := e.dangling(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(e.transcript(), "nack"); n != 1 {
		t.Fatalf("%d rejections, want 1", n)
	}
}

func TestWithoutADeliveredVersionTheOnlyOneCanBeSentAgain(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	only := withServices(t, "a")
	e := c.connect("a", refusing(resourcev3.ListenerType, ListenerName, "port taken"))
	c.publish(only)
	for try := range 3 {
		c.rejected(only)
		if try == 2 {
			e.judges(acceptAll)
		}
		c.publish(only)
	}
	c.delivered(only)
	if got := c.progress(); len(got.Rejected) != 0 || got.Envoys[0].Nack != nil {
		t.Fatalf("status %+v", got)
	}
}

func TestACauseOutsideCanBeTriedAgain(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	good, moved := withServices(t, "a"), build(t, `{listen: "127.0.0.1:5501", services: []}`)
	e := c.connect("a", acceptAll)
	c.serves(good)
	e.judges(refusing(resourcev3.ListenerType, ListenerName, "port taken"))
	c.publish(moved)
	c.rejected(moved)
	c.publish(good)
	e.judges(acceptAll)
	c.serves(moved)
}

func TestOneOfTwoEnvoysRejectsAndBothAreRolledBack(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	good, bad := withServices(t, "a"), withServices(t, "a", "bad")
	one := c.connect("one", acceptAll)
	two := c.connect("two", refusingVersion(bad, "not here"))
	c.eventually("both are there", func(s progress) bool { return len(s.Envoys) == 2 })
	c.servesAll(good)
	c.publish(bad)
	c.rollsBack(bad, good)
	c.eventually("the bad cluster goes", func(progress) bool { return len(one.clusters()) == 2 && len(two.clusters()) == 2 })
	for _, e := range []*fakeEnvoy{one, two} {
		if err := e.dangling(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAVersionIsDeliveredOnlyWhenEveryEnvoyHasIt(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	held, release := hold()
	c.connect("one", acceptAll)
	two := c.connect("two", acceptAll)
	c.eventually("both are there", func(s progress) bool { return len(s.Envoys) == 2 })
	first, next := withServices(t, "a"), withServices(t, "a", "b")
	c.servesAll(first)
	two.judges(func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		if resp.GetTypeUrl() == resourcev3.ScopedRouteType {
			<-held
		}
		return ""
	})
	t.Cleanup(release)
	c.publish(next)
	c.eventually("one has it", func(s progress) bool { return s.Envoys[0].Acked == next.Version })
	if got := c.progress(); got.Delivered != "" {
		t.Fatalf("status %+v", got)
	}
	release()
	c.delivered(next)
}

func TestAnEnvoyThatComesBackIsSentOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", acceptAll)
	first := withServices(t, "a")
	c.serves(first)
	e.leave()
	c.eventually("it is gone", func(s progress) bool { return len(s.Envoys) == 0 })

	again := c.connect("a", acceptAll, e)
	c.eventually("it is back, with the version", func(s progress) bool { return len(s.Envoys) == 1 && s.Envoys[0].Acked == first.Version })
	for _, line := range strings.Split(again.transcript(), "\n") {
		if strings.ContainsAny(line, "+-") {
			t.Fatalf("it was sent %q", line)
		}
	}
}

// The Server is another one by then: it does not know what was served before.
func TestAnEnvoyFromBeforeLosesItsRoutesBeforeItsClusters(t *testing.T) {
	t.Parallel()
	before := startControl(t, quick)
	e := before.connect("a", acceptAll)
	before.serves(withServices(t, "a", "old", "older"))
	e.leave()
	after := startControl(t, quick)
	next := withServices(t, "a", "b")
	after.publish(next)
	again := after.connect("a", acceptAll, e)
	after.delivered(next)
	expect(t, again, "ack cluster +service/b", "ack listener", "ack route +/.gatepost +/b", "ack route -/old -/older")
	fresh := after.connect("b", acceptAll)
	after.eventually("the old clusters go", func(s progress) bool {
		return len(again.clusters()) == 3 && len(s.Envoys) == 2 && len(fresh.clusters()) == 3
	})
	for _, one := range []*fakeEnvoy{again, fresh} {
		if err := one.dangling(); err != nil {
			t.Fatal(err)
		}
	}
	if got := after.progress(); got.Delivered != next.Version {
		t.Fatalf("status %+v", got)
	}
}

// A port that is free again when Envoy comes back: the rejection is over.
func TestWhatWasRejectedAndIsTakenInTheEndIsDelivered(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	only := withServices(t, "a")
	e := c.connect("a", refusing(resourcev3.ListenerType, ListenerName, "port taken"))
	c.publish(only)
	c.rejected(only)
	e.leave()
	c.connect("a", acceptAll, e)
	c.eventually("it is taken", func(s progress) bool { return s.Delivered == only.Version })
}

func TestAnEnvoyThatComesLateIsServedTheNewest(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	c.publish(withServices(t, "a"))
	newest := withServices(t, "b")
	c.publish(newest)
	e := c.connect("a", acceptAll)
	c.delivered(newest)
	if err := e.dangling(); err != nil {
		t.Fatal(err)
	}
	c.eventually("only its clusters stay", func(progress) bool { return len(e.clusters()) == 2 })
}

func TestAnEmptySnapshotIsNeverPublished(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("a", acceptAll)
	c.serves(withServices(t, "a"))
	e.transcript()
	for _, s := range []*Snapshot{nil, {}, {Version: "x"}} {
		if err := c.Publish(s); !errors.Is(err, errEmpty) {
			t.Fatalf("publishing %v: %v", s, err)
		}
	}
	expect(t, e)
}

func TestStateOfTheWorldIsRefusedWithAdvice(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	c.publish(withServices(t, "a"))
	conn, err := grpc.NewClient("passthrough:memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return c.listener.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "DELTA_GRPC") {
		t.Fatalf("got %v", err)
	}
}

func TestPushesAndAnswersAreCounted(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	bad := withServices(t, "a", "bad")
	c.connect("a", refusingVersion(bad, "no"))
	good := withServices(t, "a")
	c.serves(good)
	c.publish(bad)
	c.rollsBack(bad, good)
	c.eventually("the rollback is acknowledged", func(progress) bool {
		return testutil.ToFloat64(c.metrics.acks.WithLabelValues("route")) == 3 // the first, what changes back, what goes
	})
	want := `
		# HELP gatepost_config_version 1 for the version of the configuration that is being served.
		# TYPE gatepost_config_version gauge
		gatepost_config_version{version="` + good.Version + `"} 1
		# HELP gatepost_xds_connected_envoys Envoys that are connected for their configuration.
		# TYPE gatepost_xds_connected_envoys gauge
		gatepost_xds_connected_envoys 1
		# HELP gatepost_xds_nacks_total Updates that an Envoy has rejected, by type of resource.
		# TYPE gatepost_xds_nacks_total counter
		gatepost_xds_nacks_total{type="cluster"} 0
		gatepost_xds_nacks_total{type="listener"} 0
		gatepost_xds_nacks_total{type="route"} 1
		gatepost_xds_nacks_total{type="secret"} 0
	`
	err := testutil.GatherAndCompare(c.registry, strings.NewReader(want),
		"gatepost_config_version", "gatepost_xds_connected_envoys", "gatepost_xds_nacks_total")
	if err != nil {
		t.Fatal(err)
	}
	if n := testutil.ToFloat64(c.metrics.pushes.WithLabelValues("route")); n != 4 {
		t.Fatalf("%v pushes of routes, want 4", n)
	}
}

// TestAnEnvoyHasWhatIsServed: whatever was published before, also while it had not answered, and whenever it came.
func TestAnEnvoyHasWhatIsServed(t *testing.T) {
	t.Parallel()
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(0, uint64(seed)))
	c := startControl(t, Config{Grace: time.Millisecond, Patience: time.Minute, Warmup: time.Millisecond})
	envoys := []*fakeEnvoy{c.connect("first", acceptAll), c.connect("second", acceptAll)}
	var b Builder
	d, opts := noServices(t), testOptions
	for range 60 {
		var last *Snapshot
		for range 1 + random.IntN(4) {
			d = anotherEdit(t, random, d, &opts)
			next, err := b.Build(d.Gateway, opts)
			if err != nil {
				t.Fatal(err)
			}
			last = next
			c.publish(last)
			time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
		}
		if random.IntN(10) == 0 { // with what it had
			envoys[1].leave()
			envoys[1] = c.connect("second", acceptAll, envoys[1])
		}
		c.eventually("what is served", func(progress) bool {
			return !slices.ContainsFunc(envoys, func(e *fakeEnvoy) bool { return !e.hasAllOf(last) })
		})
	}
}

func (e *fakeEnvoy) hasAllOf(s *Snapshot) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, typeURL := range order {
		if !s.of(typeURL).equals(e.has[typeURL]) {
			return false
		}
	}
	return true
}
