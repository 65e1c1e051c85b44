package xds

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gatepost/testlog"
)

// A stranger is whoever can connect to the gRPC server and is no Envoy of ours.

func refuseAll(*discoveryv3.DeltaDiscoveryResponse) string { return "no" }

// Whether the rejection counts is decided elsewhere; by itself it does not stop the delivery to the others.
func TestTheRejectionOfAStrangerDoesNotStopADelivery(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("envoy", acceptAll)
	first, next := withServices(t, "a"), withServices(t, "a", "b")
	c.serves(first)
	c.connect("stranger", refuseAll)
	c.eventually("the stranger's rejection", func(s progress) bool { return len(s.Envoys) == 2 && s.Envoys[1].Nack != nil })
	held, release := hold()
	e.judges(func(*discoveryv3.DeltaDiscoveryResponse) string { <-held; return "" })
	t.Cleanup(release)
	c.publish(next)
	c.eventually("its rejection of the next version", func(s progress) bool { return s.Rejected[next.Version] != nil })
	release()
	c.delivered(next)
	if err := e.dangling(); err != nil {
		t.Fatal(err)
	}
}

// An Envoy that starts beside a stranger has taken a part of the version already.
func TestTheRejectionOfAStrangerDoesNotStopTheFirstDelivery(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	held, release := hold()
	c.connect("envoy", func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		if resp.GetTypeUrl() == resourcev3.ScopedRouteType {
			<-held
		}
		return ""
	})
	t.Cleanup(release)
	first := withServices(t, "a")
	c.publish(first)
	c.eventually("the Envoy has the clusters", func(progress) bool {
		c.eventsMu.Lock()
		defer c.eventsMu.Unlock()
		return slices.ContainsFunc(c.events, func(e Event) bool { _, isAck := e.(PartAcked); return isAck })
	})
	c.connect("stranger", refuseAll)
	c.eventually("the stranger's rejection", func(s progress) bool { return len(s.Envoys) == 2 && s.Envoys[1].Nack != nil })
	release()
	c.delivered(first)
}

func TestASilentStrangerHoldsUpNothing(t *testing.T) {
	t.Parallel()
	c := startControl(t, Config{Grace: time.Hour, Patience: time.Hour, Warmup: time.Millisecond})
	held, release := hold()
	e := c.connect("envoy", acceptAll)
	c.serves(withServices(t, "a"))
	c.connect("silent", func(*discoveryv3.DeltaDiscoveryResponse) string { <-held; return "" })
	t.Cleanup(release)
	c.eventually("both are there", func(s progress) bool { return len(s.Envoys) == 2 && s.Envoys[1].Node != "" })
	c.serves(withServices(t, "a", "b"))
	c.serves(withServices(t, "a", "c"))
	if err := e.dangling(); err != nil {
		t.Fatal(err)
	}
}

// An Envoy that comes back names the clusters that it has; those are kept for a while. A stranger can name any.
func TestTheClustersOfAStrangerReachNobodyElse(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	e := c.connect("envoy", acceptAll)
	c.serves(withServices(t, "a"))
	e.transcript()
	stranger := clustersOf(map[string]string{"service/b": withServices(t, "b").clusters.get("service/b").version})
	c.connect("stranger", acceptAll, stranger)
	c.eventually("the stranger has what is served", func(s progress) bool { return len(s.Envoys) == 2 && s.Envoys[1].Acked != "" })
	c.serves(withServices(t, "a", "b"))
	expect(t, e, "ack cluster +service/b", "ack route +/.gatepost +/b")
}

// The same at the start, when what comes first may be an Envoy from before: a cluster of that name and version that is
// added meanwhile is sent to all.
func TestAClusterThatWasKeptIsSentWhenItIsAdded(t *testing.T) {
	t.Parallel()
	c := startControl(t, Config{Grace: time.Hour, Patience: time.Minute, Warmup: time.Millisecond})
	c.publish(withServices(t, "a"))
	next := withServices(t, "a", "b")
	stranger := clustersOf(map[string]string{"service/b": next.clusters.get("service/b").version})
	c.connect("stranger", acceptAll, stranger)
	c.eventually("the stranger has what is served", func(s progress) bool { return len(s.Envoys) == 1 && s.Envoys[0].Acked != "" })
	e := c.connect("envoy", acceptAll)
	c.eventually("both have it", func(s progress) bool { return len(s.Envoys) == 2 && s.Envoys[0].Acked != "" })
	c.servesAll(next)
	e.mu.Lock()
	defer e.mu.Unlock()
	if got, want := string(e.bodies["cluster service/b"].GetResource().GetValue()), string(next.clusters.get("service/b").raw); got != want {
		t.Fatalf("the cluster is %q, want %q", got, want)
	}
}

// If an Envoy is connected by a Unix socket or with a certificate, a peer that is not has no say, whatever it has
// acknowledged before.
func TestATrustedEnvoyIsNotOverruled(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"by a rejection", "by silence"} {
		t.Run(name, func(t *testing.T) {
			held, release := hold()
			judge := refuseAll
			if name == "by silence" {
				judge = func(*discoveryv3.DeltaDiscoveryResponse) string { <-held; return "" }
			}
			c := startControl(t, Config{Grace: time.Hour, Patience: time.Hour, Warmup: time.Millisecond})
			peer := c.connect("peer", acceptAll)
			c.serves(withServices(t, "a")) // alone, the peer counts
			e := c.connectTrusted("envoy", acceptAll)
			c.eventually("the Envoy is active", func(s progress) bool { return len(s.Envoys) == 2 && s.Envoys[0].Acked != "" })
			peer.judges(judge)
			t.Cleanup(release)
			next := withServices(t, "a", "b")
			c.serves(next)
			if name == "by a rejection" {
				c.eventually("the peer's rejection", func(s progress) bool { return s.Envoys[1].Nack != nil })
			}
			if err := e.dangling(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A trusted Envoy that has not acknowledged anything yet does not lose its clusters or its start to such a peer either.
func TestAPeerBesideATrustedEnvoyProvesNothing(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	held, release := hold()
	c.connectTrusted("envoy", func(*discoveryv3.DeltaDiscoveryResponse) string { <-held; return "" })
	t.Cleanup(release)
	c.eventually("it is there", func(s progress) bool { return len(s.Envoys) == 1 && s.Envoys[0].Trusted && s.Envoys[0].Node != "" })
	c.connect("peer", acceptAll, clustersOf(map[string]string{"service/b": "1"}))
	only := withServices(t, "a")
	c.publish(only)
	c.eventually("the peer has it", func(s progress) bool { return len(s.Envoys) == 2 && s.Envoys[1].Acked == only.Version })
	if got := c.progress(); got.Delivered != "" {
		t.Fatalf("status %+v", got)
	}
	if c.isKept("service/b") {
		t.Error("its clusters are kept")
	}
	release()
	c.delivered(only)
}

// clustersOf is an Envoy from before that has clusters of these names and versions.
func clustersOf(versions map[string]string) *fakeEnvoy {
	return &fakeEnvoy{bodies: map[string]*discoveryv3.Resource{}, has: map[string]map[string]string{resourcev3.ClusterType: versions}}
}

func (c *control) isKept(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.delivery.view.clusters.get(name) != nil
}

func TestOnlyTheFirstRequestOfAStreamNamesClustersToKeep(t *testing.T) {
	t.Parallel()
	c := startControl(t, Config{Grace: time.Hour, Patience: time.Hour, Warmup: time.Millisecond})
	c.publish(withServices(t, "a"))
	stream := c.stream(t)
	for _, name := range []string{"service/one", "service/two"} {
		err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "x"}, TypeUrl: resourcev3.ClusterType,
			InitialResourceVersions: map[string]string{name: "1", "elsewhere/" + name: "1"}})
		if err != nil {
			t.Fatal(err)
		}
	}
	// A reply to the last request shows that those before were read.
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ListenerType}); err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetTypeUrl() == resourcev3.ListenerType {
			break
		}
	}
	for name, want := range map[string]bool{"service/one": true, "elsewhere/service/one": false, "service/two": false} {
		if got := c.isKept(name); got != want {
			t.Errorf("%s: kept %v, want %v", name, got, want)
		}
	}
}

// However many streams name clusters, the view has so many of them and no more.
func TestKeptClustersAreBounded(t *testing.T) {
	t.Parallel()
	c := startControl(t, Config{Grace: time.Hour, Patience: time.Hour, Warmup: time.Millisecond})
	c.publish(withServices(t, "a"))
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.delivery.view.clusters.all)
	for stream := range 3 {
		has := map[string]string{}
		for i := range maxKept / 2 {
			has[fmt.Sprintf("service/%d-%d", stream, i)] = "1"
		}
		c.keep(has)
	}
	if got, want := len(c.delivery.view.clusters.all), before+maxKept; got != want {
		t.Errorf("%d clusters in the view, want %d", got, want)
	}
	if got := len(c.delivery.retired); got != maxKept {
		t.Errorf("%d clusters retired, want %d", got, maxKept)
	}
}

// A peer that answers nothing leaves a bounded trace.
func TestWhatIsRememberedOfAStreamIsBounded(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	c.publish(withServices(t, "a"))
	e := &envoy{types: map[string]*subscription{}}
	c.mu.Lock()
	c.envoys[1] = e
	c.mu.Unlock()
	call := callbacks{c.Server}
	for i := range 4 * maxPending {
		call.OnStreamDeltaResponse(1, nil, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: resourcev3.ListenerType, Nonce: strconv.Itoa(i)})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if got := len(e.of(resourcev3.ListenerType).pending); got > maxPending {
		t.Errorf("%d responses are pending, want %d at most", got, maxPending)
	}
	delete(c.envoys, 1)
}

func TestWhatAPeerSaysIsBounded(t *testing.T) {
	t.Parallel()
	var log testlog.Buffer
	c := startControl(t, quick)
	c.log = slog.New(slog.NewTextHandler(&log, nil))
	c.publish(withServices(t, "a"))
	long := strings.Repeat("x", 3<<20)
	stranger := c.connect(long, func(*discoveryv3.DeltaDiscoveryResponse) string { return long })
	c.eventually("the rejection", func(s progress) bool { return len(s.Envoys) == 1 && s.Envoys[0].Nack != nil })
	got := c.progress().Envoys[0]
	if len(got.Node) > maxNode+4 || len(got.Nack.Reason) > maxReason+4 {
		t.Errorf("a node id of %d bytes and a reason of %d", len(got.Node), len(got.Nack.Reason))
	}
	stranger.leave()
	c.eventually("it is gone", func(s progress) bool { return len(s.Envoys) == 0 })
	// How many types of resources it rejects before it leaves is a matter of time.
	for line := range strings.Lines(log.String()) {
		if len(line) > maxReason+maxNode+1<<10 {
			t.Errorf("a line of %d bytes is logged", len(line))
		}
	}
}

func TestStreamsOfOnePeerAreBounded(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	for range maxStreams {
		c.connect("stranger", acceptAll)
	}
	c.eventually("as many as are allowed", func(s progress) bool { return len(s.Envoys) == maxStreams })
	stream := c.stream(t)
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("one stream more: %v", err)
	}
	if n := len(c.progress().Envoys); n != maxStreams {
		t.Fatalf("%d streams, want %d", n, maxStreams)
	}
}

func TestWhatNoEnvoyOfOursRequestsEndsTheStream(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]*discoveryv3.DeltaDiscoveryRequest{
		"an unknown type": {TypeUrl: "x"},
		"names":           {TypeUrl: resourcev3.ClusterType, ResourceNamesSubscribe: []string{"service/a", "service/b"}},
	} {
		c := startControl(t, quick)
		c.publish(withServices(t, "a"))
		stream := c.stream(t)
		request.Node = &corev3.Node{Id: "x"}
		if err := stream.Send(request); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The log of connections that come and go again and again is bounded; that of an Envoy is complete.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	var log testlog.Buffer
	c := startControl(t, quick)
	c.log = slog.New(slog.NewTextHandler(&log, nil))
	c.strangers.Interval = time.Hour
	c.publish(withServices(t, "a"))
	for range 40 {
		c.connect("stranger", refuseAll).leave()
	}
	c.eventually("all are gone", func(s progress) bool { return len(s.Envoys) == 0 })
	if n := strings.Count(log.String(), "stranger"); n > c.strangers.First {
		t.Errorf("%d lines about strangers", n)
	}
	c.connect("envoy", acceptAll)
	c.eventually("the Envoy is active", func(s progress) bool {
		return slices.ContainsFunc(s.Envoys, func(e envoyProgress) bool { return e.Acked != "" })
	})
	if !strings.Contains(log.String(), "node=envoy") {
		t.Error("the Envoy is not in the log")
	}
}
