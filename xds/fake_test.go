package xds

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/prometheus/client_golang/prometheus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/testrun"
)

// quick are times that a test need not wait for.
var quick = Config{Grace: time.Second, Patience: time.Minute, Warmup: time.Millisecond}

// withLookup fills in that every name is found at once. The resolver of this process goes on with a question after its
// context has ended, and after the test.
func (o Config) withLookup() Config {
	if o.Lookup == nil {
		o.Lookup = func(context.Context, string) error { return nil }
	}
	return o
}

// control is a Server on a connection in memory.
type control struct {
	*Server
	t        testing.TB
	listener *bufconn.Listener
	server   *grpc.Server
	dial     func() (net.Conn, error) // how Envoys connect
	registry *prometheus.Registry

	eventsMu sync.Mutex
	events   []Event
}

func startControl(t testing.TB, opts Config) *control {
	t.Helper()
	testrun.Racing(t)
	c := &control{t: t, listener: bufconn.Listen(1 << 20), registry: prometheus.NewRegistry()}
	opts = opts.withLookup()
	opts.Logger, opts.Registerer = slog.New(slog.NewTextHandler(t.Output(), nil)), c.registry
	var err error
	if c.Server, err = New(opts); err != nil {
		t.Fatal(err)
	}
	c.server, c.dial = newServer(), c.listener.Dial
	c.Subscribe(c.record)
	c.Register(c.server)
	c.serveOn(c.listener)
	return c
}

func newServer() *grpc.Server {
	return grpc.NewServer(append(ServerOptions(), grpc.WaitForHandlers(true))...)
}

func (c *control) serveOn(listener net.Listener) {
	served := make(chan error, 1)
	go func() { served <- c.server.Serve(listener) }()
	c.t.Cleanup(func() {
		c.Close()
		c.server.Stop()
		<-served
	})
}

func listenUnix(t testing.TB, path string) net.Listener {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// connectTrusted starts an Envoy that connects by a Unix socket.
func (c *control) connectTrusted(node string, judge func(*discoveryv3.DeltaDiscoveryResponse) string) *fakeEnvoy {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "grpc.sock")
	c.serveOn(listenUnix(c.t, path))
	before := c.dial
	c.dial = func() (net.Conn, error) { return net.Dial("unix", path) }
	defer func() { c.dial = before }()
	return c.connect(node, judge)
}

func (c *control) publish(s *Snapshot) {
	c.t.Helper()
	if s.Version != c.progress().Version || c.progress().Rejected[s.Version] != nil {
		c.record(published{s.Version})
	}
	if err := c.Publish(s); err != nil {
		c.t.Fatal(err)
	}
}

// delivered waits until every Envoy that a change waits for has a snapshot.
func (c *control) delivered(s *Snapshot) {
	c.t.Helper()
	c.eventually("version "+s.Version+" is delivered", func(now progress) bool { return now.Delivered == s.Version })
}

// rejected waits until an Envoy has rejected a snapshot since it was published.
func (c *control) rejected(s *Snapshot) *Rejection {
	c.t.Helper()
	var found *Rejection
	c.eventually("version "+s.Version+" is rejected", func(now progress) bool {
		found = now.Rejected[s.Version]
		return found != nil
	})
	return found
}

// serves publishes a snapshot and waits until it is delivered.
func (c *control) serves(s *Snapshot) {
	c.t.Helper()
	c.publish(s)
	c.delivered(s)
}

// rollsBack waits until a snapshot is rejected, publishes another in its place, and waits until every Envoy has that
// one.
func (c *control) rollsBack(bad, good *Snapshot) {
	c.t.Helper()
	c.rejected(bad)
	c.Halt(bad.Version)
	c.servesAll(good)
}

// servesAll publishes a snapshot and waits until every connected Envoy has it.
func (c *control) servesAll(s *Snapshot) {
	c.t.Helper()
	c.serves(s)
	c.eventually("every Envoy has "+s.Version, func(now progress) bool {
		return !slices.ContainsFunc(now.Envoys, func(e envoyProgress) bool { return e.Acked != s.Version })
	})
}

// progress is what all events so far amount to.
type progress struct {
	Version   string                // what is published
	Delivered string                // what was delivered last since the last Publish
	Rejected  map[string]*Rejection // :: version → its rejection since it was published
	Envoys    []envoyProgress       // by node and stream
}

type envoyProgress struct {
	Peer
	Acked   string
	AckedAt time.Time
	Nack    *Rejection // the last one since then
}

// record notes an event; the Server reports it with its lock held.
func (c *control) record(e Event) {
	c.eventsMu.Lock()
	defer c.eventsMu.Unlock()
	c.events = append(c.events, e)
}

// published is an event of these tests.
type published struct{ version string }

func (published) isEvent() {}

func (c *control) progress() progress {
	now := progress{Rejected: map[string]*Rejection{}}
	envoys := map[int64]*envoyProgress{}
	c.eventsMu.Lock()
	defer c.eventsMu.Unlock()
	for _, e := range c.events {
		switch e := e.(type) {
		case published:
			now.Version, now.Delivered = e.version, ""
			delete(now.Rejected, e.version)
		case Connected:
			if envoys[e.Peer.ID] == nil {
				envoys[e.Peer.ID] = &envoyProgress{}
			}
			envoys[e.Peer.ID].Peer = e.Peer
		case Disconnected:
			delete(envoys, e.ID)
		case Acked:
			envoys[e.ID].Acked, envoys[e.ID].AckedAt, envoys[e.ID].Nack = e.Version, e.At, nil
		case Delivered:
			now.Delivered = e.Version
		case Nacked:
			envoys[e.ID].Nack, now.Rejected[e.Rejection.Version] = e.Rejection, e.Rejection
		}
	}
	for _, e := range envoys {
		now.Envoys = append(now.Envoys, *e)
	}
	slices.SortFunc(now.Envoys, func(a, b envoyProgress) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID)) })
	return now
}

func (c *control) eventually(what string, ok func(progress) bool) {
	c.t.Helper()
	var now progress
	defer func() {
		if c.t.Failed() {
			c.t.Logf("the status is %+v", now)
		}
	}()
	envoytest.Eventually(c.t, what, func() bool {
		now = c.progress()
		return ok(now)
	})
}

// fakeEnvoy speaks delta ADS as an Envoy does: it asks for clusters and listeners, and, once it has a listener,
// for its routes. What it is sent it judges, and takes over as a whole or not at all.
type fakeEnvoy struct {
	control *control
	node    string
	cancel  context.CancelFunc
	done    chan struct{}

	mu     sync.Mutex
	judge  func(*discoveryv3.DeltaDiscoveryResponse) string // why it is rejected; "" where it is not
	has    map[string]map[string]string                     // :: type → name → version
	bodies map[string]*discoveryv3.Resource                 // :: name → what it has
	heard  []string                                         // transcript, in order
}

func acceptAll(*discoveryv3.DeltaDiscoveryResponse) string { return "" }

// connect starts an Envoy; one that comes back is given what it had.
func (c *control) connect(node string, judge func(*discoveryv3.DeltaDiscoveryResponse) string, before ...*fakeEnvoy) *fakeEnvoy {
	c.t.Helper()
	e := &fakeEnvoy{control: c, node: node, judge: judge, done: make(chan struct{}),
		has: map[string]map[string]string{}, bodies: map[string]*discoveryv3.Resource{}}
	dial := c.dial
	for _, b := range before {
		e.has, e.bodies = b.has, b.bodies
	}
	conn, err := grpc.NewClient("passthrough:memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, PermitWithoutStream: true}), // as Envoy
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return dial() }))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	go e.run(stream)
	c.t.Cleanup(func() {
		e.leave()
		conn.Close()
	})
	return e
}

// stream opens a stream that does nothing by itself.
func (c *control) stream(t *testing.T) deltaClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return c.listener.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func (e *fakeEnvoy) leave() {
	e.cancel()
	<-e.done
}

type deltaClient = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

func (e *fakeEnvoy) run(stream deltaClient) {
	defer close(e.done)
	send := func(req *discoveryv3.DeltaDiscoveryRequest) {
		if err := stream.Send(req); err != nil && err != io.EOF {
			e.control.t.Logf("%s: sending: %v", e.node, err)
		}
	}
	ask := func(typeURL string, names ...string) {
		e.mu.Lock()
		defer e.mu.Unlock()
		send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: e.node}, TypeUrl: typeURL,
			ResourceNamesSubscribe: names, InitialResourceVersions: maps.Clone(e.has[typeURL])})
	}
	ask(resourcev3.ClusterType, "*")
	ask(resourcev3.ListenerType, "*")
	routes := false
	for {
		resp, err := stream.Recv()
		if err != nil {
			return
		}
		answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
		if reason := e.take(resp); reason != "" {
			answer.ErrorDetail = &rpcstatus.Status{Code: 3, Message: reason}
		}
		send(answer)
		if resp.GetTypeUrl() == resourcev3.ListenerType && !routes {
			routes = true
			ask(resourcev3.ScopedRouteType, "*")
		}
	}
}

// take judges a response, and takes it over.
func (e *fakeEnvoy) take(resp *discoveryv3.DeltaDiscoveryResponse) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	name := typeNames[resp.GetTypeUrl()]
	var what []string
	for _, r := range resp.GetResources() {
		what = append(what, "+"+r.GetName())
	}
	for _, r := range resp.GetRemovedResources() {
		what = append(what, "-"+r)
	}
	slices.Sort(what)
	line := strings.TrimSpace(name + " " + strings.Join(what, " "))
	if reason := e.judge(resp); reason != "" {
		e.heard = append(e.heard, "nack "+line)
		return reason
	}
	e.heard = append(e.heard, "ack "+line)
	if e.has[resp.GetTypeUrl()] == nil {
		e.has[resp.GetTypeUrl()] = map[string]string{}
	}
	for _, r := range resp.GetResources() {
		e.has[resp.GetTypeUrl()][r.GetName()] = r.GetVersion()
		e.bodies[name+" "+r.GetName()] = r
	}
	for _, r := range resp.GetRemovedResources() {
		delete(e.has[resp.GetTypeUrl()], r)
		delete(e.bodies, name+" "+r)
	}
	return ""
}

// judges changes what the Envoy makes of what it is sent from now on.
func (e *fakeEnvoy) judges(judge func(*discoveryv3.DeltaDiscoveryResponse) string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.judge = judge
}

// transcript returns what was heard since the last time, one line each.
func (e *fakeEnvoy) transcript() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := strings.Join(e.heard, "\n")
	e.heard = nil
	return out
}

// answers is how many updates it has answered since the last transcript.
func (e *fakeEnvoy) answers() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.heard)
}

// clusters are the names of the clusters that it has.
func (e *fakeEnvoy) clusters() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.has[resourcev3.ClusterType]))
}

// dangling returns a cluster that a route of this Envoy names and that it does not have.
func (e *fakeEnvoy) dangling() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.has[resourcev3.ScopedRouteType]) == 0 {
		return fmt.Errorf("it has no routes")
	}
	for scope := range e.has[resourcev3.ScopedRouteType] {
		config := new(routev3.ScopedRouteConfiguration)
		if err := e.bodies["route "+scope].GetResource().UnmarshalTo(config); err != nil {
			return err
		}
		for _, r := range routesOf(config) {
			name := r.GetRoute().GetCluster()
			if _, has := e.has[resourcev3.ClusterType][name]; name != "" && name != testOptions.HTTPCluster && !has {
				return fmt.Errorf("route %s names %s", r.GetName(), name)
			}
		}
	}
	return nil
}

// refusing rejects what has a resource of this type and name.
func refusing(typeURL, name, reason string) func(*discoveryv3.DeltaDiscoveryResponse) string {
	return func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		for _, r := range resp.GetResources() {
			if resp.GetTypeUrl() == typeURL && r.GetName() == name {
				return reason
			}
		}
		return ""
	}
}

// refusingVersion rejects the routes of one version, as an Envoy would to which they mean something bad.
func refusingVersion(s *Snapshot, reason string) func(*discoveryv3.DeltaDiscoveryResponse) string {
	return func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		for _, r := range resp.GetResources() {
			if r.GetVersion() == s.routes.get(definitions.OwnPath).version {
				return reason
			}
		}
		return ""
	}
}
