package xds

import (
	"cmp"
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
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Config configures a Server. The zero value of each field is its default.
type Config struct {
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
	// Ready asks Envoy for which clusters it has hosts, of which none fails its health check. It is called if one Envoy is
	// connected. Default: that cannot be asked, and Envoy gets the time that it may take. :: cluster → true
	Ready func(ctx context.Context) (map[string]bool, error)
	// Logger gets one line for each event. Nil: nothing is logged.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer
}

func (o Config) withDefaults() Config {
	orElse := func(d, def time.Duration) time.Duration {
		if d <= 0 {
			return def
		}
		return d
	}
	if o.Lookup == nil {
		o.Lookup = lookUp
	}
	return Config{
		Grace:         orElse(o.Grace, 5*time.Second),
		Patience:      orElse(o.Patience, 5*time.Second),
		Warmup:        orElse(o.Warmup, 250*time.Millisecond),
		LookupTimeout: orElse(o.LookupTimeout, time.Second),
		Lookup:        o.Lookup,
		Ready:         o.Ready,
		Logger:        cmp.Or(o.Logger, slog.New(slog.DiscardHandler)),
		Registerer:    o.Registerer,
	}
}

// errEmpty reports that a snapshot is empty. Envoy would close its port.
var errEmpty = errors.New("the configuration is empty")

// Server is the control plane: it delivers one configuration at a time, the same to every Envoy, over delta ADS, and
// reports each ACK and NACK. The caller decides what follows, such as a rollback. It is safe for concurrent use.
type Server struct {
	opts    Config
	log     *slog.Logger
	metrics *metrics
	delta   deltav3.Server
	ctx     context.Context // ends with Close
	end     context.CancelFunc
	lookups sync.WaitGroup
	// readiness is that of the only Envoy.
	readiness readiness
	// publisher serves every Envoy the same, whatever its node id: otherwise an Envoy with an unknown id would be served
	// nothing, without an error.
	publisher *publisher

	// report receives each event, in order, with the lock held.
	report func(Event)

	mu       sync.Mutex
	delivery delivery
	envoys   map[int64]*envoy // :: stream → the Envoy at its other end
	// delivered is the last snapshot that all awaited Envoys acknowledged.
	delivered *Snapshot
	// strangers limits how often streams that were never active are logged.
	strangers rate.Sometimes
	// resent counts the snapshots that were sent again.
	resent int
}

// New makes a Server that serves nothing yet: an Envoy that connects waits until the first Publish. Close it. It
// fails if a metric of one of its names is already registered.
func New(opts Config) (*Server, error) {
	opts = opts.withDefaults()
	metrics, err := newMetrics(opts.Registerer)
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.Background())
	s := &Server{
		opts:      opts,
		log:       opts.Logger,
		metrics:   metrics,
		publisher: newPublisher(),
		ctx:       ctx,
		end:       end,
		envoys:    map[int64]*envoy{},
		report:    func(Event) {},
		strangers: rate.Sometimes{First: 20, Interval: 10 * time.Second},
	}
	s.delta = deltav3.NewServer(ctx, s.publisher, callbacks{s})
	return s, nil
}

// Close ends every stream. Envoys go on with what they have.
func (s *Server) Close() {
	s.end()
	s.mu.Lock()
	s.delivery.stop()
	s.mu.Unlock()
	s.lookups.Wait()
}

// ServerOptions are the options that the gRPC server of ADS needs.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		// Gatepost's bootstrap makes Envoy ping every 30 s. More frequent pings are rejected.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.MaxRecvMsgSize(4 << 20), // an Envoy that names 10,000 resources it has
	}
}

// Register makes a gRPC server, which must have been made with [ServerOptions], offer ADS, and no other discovery
// service.
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
	return a.s.delta.DeltaStreamHandler(pieceSender{stream}, resourcev3.AnyType)
}

func (a aggregated) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	a.s.log.Warn("refused an Envoy that asks for configuration in the state-of-the-world form", "address", peerAddress(stream.Context()))
	return status.Error(codes.Unimplemented, "Gatepost serves delta ADS alone: set ads_config.api_type to DELTA_GRPC (gatepost bootstrap prints a bootstrap that does)")
}

// Subscribe has each event reported, in order, by a function that must neither block nor call the Server. It is called
// once, before the first stream.
func (s *Server) Subscribe(report func(Event)) { s.report = report }

// Publish has every Envoy served this snapshot. It returns at once; the outcome is reported as events. A version that
// is being served already is sent again only if an Envoy has rejected it: for a cause outside of the configuration,
// such as a port that was taken. errEmpty leaves everything as it is.
func (s *Server) Publish(snapshot *Snapshot) error {
	if snapshot.empty() {
		return fmt.Errorf("publishing: %w", errEmpty)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if snapshot.Version == s.delivery.version() && !s.delivery.isRejected {
		return nil
	}
	s.log.Info("publishing a configuration", "version", snapshot.Version)
	s.metrics.version(snapshot.Version)
	s.begin(snapshot)
	return nil
}

// Halt stops the delivery of a version at the step that it has reached; the Envoys keep what they have.
func (s *Server) Halt(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version == s.delivery.version() {
		s.delivery.stop()
	}
}
