package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	deltav3 "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ServerOptions say how patient a Server is. The zero value of each is its default.
type ServerOptions struct {
	// Grace is for how long clusters that no route names any more are kept, so that requests which Envoy has
	// matched by older routes still come through. Default: 5 s.
	Grace time.Duration
	// Patience is how long new routes wait for an Envoy to acknowledge the clusters that they need. Default: 5 s.
	Patience time.Duration
	// Warmup is how long Envoy may take to look up a name once its name server replies. Default: 250 ms.
	Warmup time.Duration
	// LookupTimeout is how long the routes to a new cluster wait for a name server that does not reply. Default: 1 s.
	LookupTimeout time.Duration
	// Lookup looks up a host name. Default: the resolver of this process.
	Lookup func(ctx context.Context, host string) error
}

func (o ServerOptions) withDefaults() ServerOptions {
	orElse := func(d, def time.Duration) time.Duration {
		if d <= 0 {
			return def
		}
		return d
	}
	if o.Lookup == nil {
		o.Lookup = lookUp
	}
	return ServerOptions{
		Grace:         orElse(o.Grace, 5*time.Second),
		Patience:      orElse(o.Patience, 5*time.Second),
		Warmup:        orElse(o.Warmup, 250*time.Millisecond),
		LookupTimeout: orElse(o.LookupTimeout, time.Second),
		Lookup:        o.Lookup,
	}
}

// ErrEmpty says that a snapshot has nothing in it that could be served. Envoy would close its port.
var ErrEmpty = errors.New("the configuration is empty")

// ErrRejected says that an Envoy has refused this version; it is not sent a second time. The error is a
// *Rejection, with Envoy's words.
var ErrRejected = errors.New("rejected by Envoy")

// ErrSuperseded says that another version was published meanwhile.
var ErrSuperseded = errors.New("another configuration was published meanwhile")

// Rejection is a version that an Envoy has refused.
type Rejection struct {
	Version string    // the snapshot's version
	Type    string    // the type of resource: listener, route or cluster
	Node    string    // which Envoy
	Reason  string    // in Envoy's words
	At      time.Time // when
}

func (r *Rejection) Error() string {
	return fmt.Sprintf("%v: version %s: %s: %s", ErrRejected, r.Version, r.Type, r.Reason)
}

// Is makes a Rejection an ErrRejected.
func (r *Rejection) Is(target error) bool { return target == ErrRejected }

// Server is the control plane: it serves one configuration at a time, the same to every Envoy, over delta ADS,
// and keeps account of what each has made of it. It is safe for concurrent use.
type Server struct {
	opts    ServerOptions
	log     *slog.Logger
	metrics *metrics
	delta   deltav3.Server
	ctx     context.Context // ends with Close
	end     context.CancelFunc
	lookups sync.WaitGroup
	// publisher serves every Envoy the same, whatever it calls itself: one with an id that nobody knows would else be
	// served nothing, in silence.
	publisher *publisher

	mu      sync.Mutex
	rollout rollout
	envoys  map[int64]*envoy // :: stream → the Envoy at its other end
	// proven is the snapshot that all Envoys that a change waits for last had acknowledged in full.
	proven *Snapshot
	// rejected holds what no Envoy is to be sent again. :: version → why
	rejected map[string]*Rejection
	// refusal is why the newest definitions are not the ones that are served; nil where they are.
	refusal *Rejection
	changed chan struct{} // closed, and replaced, at each change of Status
	// strangers limits how often streams that never were active are logged.
	strangers rate.Sometimes
	// resent counts how often something was sent that had been sent before.
	resent int
}

// New makes a Server that serves nothing yet: an Envoy that connects waits until the first Publish. Close it.
func New(opts ServerOptions, log *slog.Logger, reg prometheus.Registerer) *Server {
	ctx, end := context.WithCancel(context.Background())
	s := &Server{
		opts:      opts.withDefaults(),
		log:       log,
		metrics:   newMetrics(reg),
		publisher: newPublisher(),
		ctx:       ctx,
		end:       end,
		envoys:    map[int64]*envoy{},
		rejected:  map[string]*Rejection{},
		changed:   make(chan struct{}),
		strangers: rate.Sometimes{First: 20, Interval: 10 * time.Second},
	}
	s.delta = deltav3.NewServer(ctx, s.publisher, callbacks{s})
	return s
}

// Close ends every stream. Envoys go on with what they have.
func (s *Server) Close() {
	s.end()
	s.mu.Lock()
	s.rollout.stop()
	s.mu.Unlock()
	s.lookups.Wait()
}

// Register makes a gRPC server offer ADS, and no other discovery service.
func (s *Server) Register(server *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, aggregated{s: s})
}

// aggregated is the discovery service: its delta form alone. In the state-of-the-world form an Envoy that
// rejects an update is sent it again at once, thousands of times a second.
type aggregated struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	s *Server
}

func (a aggregated) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return a.s.delta.DeltaStreamHandler(piecemeal{stream}, resourcev3.AnyType)
}

func (a aggregated) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	a.s.log.Warn("refused an Envoy that asks for configuration in the state-of-the-world form", "address", peerAddress(stream.Context()))
	return status.Error(codes.Unimplemented, "Gatepost serves delta ADS alone: set ads_config.api_type to DELTA_GRPC (gatepost bootstrap prints a bootstrap that does)")
}

// Publish has every Envoy served this snapshot. It returns at once; Proven waits for the outcome. A version that
// is being served already is no push. ErrEmpty, and ErrRejected for a version that an Envoy has refused, leave
// everything as it is.
func (s *Server) Publish(snapshot *Snapshot) error {
	if snapshot.empty() {
		return fmt.Errorf("publishing: %w", ErrEmpty)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rejected[snapshot.Version]; r != nil {
		return fmt.Errorf("publishing: %w", r)
	}
	s.refusal = nil
	if snapshot.Version == s.rollout.version() {
		return nil
	}
	s.log.Info("publishing a configuration", "version", snapshot.Version)
	s.metrics.version(snapshot.Version)
	s.begin(snapshot)
	return nil
}

// Retry forgets that a version was rejected, so that it can be published once more: for a cause that lay
// outside of the configuration, such as a port that was taken. Where it is published still, because nothing better is
// known, the Envoys are sent it once more.
func (s *Server) Retry(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rejected[version] == nil {
		return
	}
	delete(s.rejected, version)
	if version == s.rollout.version() {
		s.refusal = nil
		s.begin(s.again(s.rollout.target))
	}
}

// Rejects reports whether a version is not to be sent because an Envoy has rejected it.
func (s *Server) Rejects(version string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rejected[version] != nil
}

// Proven waits until every Envoy that a change waits for, and at least one, has acknowledged this version in full. It returns
// ErrRejected with Envoy's words where one has refused it, ErrSuperseded where another version was published
// meanwhile, and the context's error.
func (s *Server) Proven(ctx context.Context, version string) error {
	for {
		s.mu.Lock()
		changed, serving := s.changed, s.rollout.version()
		rejection, proven := s.rejected[version], s.proven != nil && s.proven.Version == version
		s.mu.Unlock()
		switch {
		case rejection != nil:
			return rejection
		case proven && serving == version:
			return nil
		case serving != version:
			return ErrSuperseded
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Changed returns a channel that is closed at the next change of Status. Take it before Status is read, and
// again after each time.
func (s *Server) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// notify tells all who wait that Status has changed. The lock is held.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}
