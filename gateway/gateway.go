// Package gateway assembles all parts of a running Gatepost and runs them, in start order. It
// decides nothing about a request. Command gatepost and tests start the same Gateway.
package gateway

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"gatepost/admin"
	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/definitions/history"
	"gatepost/envoy"
	"gatepost/envoy/module"
	"gatepost/nameserver"
	"gatepost/rollout"
	"gatepost/tokens/cache"
	"gatepost/tokens/endpoint"
	"gatepost/tokens/lastseen"
	"gatepost/tokens/shield"
	"gatepost/tracing"
	"gatepost/xds"
)

// Gateway contains all parts of a running Gatepost, in the order in which they start.
type Gateway struct {
	config   Config
	logger   *slog.Logger
	registry *prometheus.Registry
	metrics  *processMetrics
	dir      envoy.Dir       // the private folder of the managed Envoy; empty if there is none
	runner   *envoy.Runner   // runs the managed Envoy; nil if there is none
	names    net.Listener    // where the managed Envoy asks for names; nil: it asks the system's name servers
	tracer   *tracing.Tracer // makes the spans; nil if requests are not traced
	lock     *os.File        // holds the data folder; nil: it cannot be locked

	module   *envoyModule                       // how Envoy checks tokens by itself
	store    *tokenStore                        // sessions, by their tokens
	seen     *lastseen.Sampler                  // when sessions were last used
	checker  *authz.Server                      // may this request pass
	login    atomic.Pointer[definitions.Tokens] // the token settings of the active definitions
	endpoint *endpoint.Handler                  // the calls under /token
	shield   *shield.Shield                     // limits failed logins
	limits   *clusterLimits                     // counts requests with other gateways; nil: there is no Redis
	control  *xds.Server                        // the configuration of the Envoys
	rollout  *rollout.Rollout                   // which definitions are served

	certificates *certificates  // which certificates Envoy is sent
	lastRequests *lastRequests  // when each service had its last request
	redis        *redisSource   // the definitions in Redis; nil: they are in a file
	source       source         // where definitions come from
	history      *history.Store // the definitions that were in the file; nil: they are in Redis

	tls      *mutualTLS     // for the next two; nil means no TLS
	grpc     *grpc.Server   // ext_authz, xDS and gRPC health
	health   *health.Server // what gRPC health answers there
	http     *http.Server   // the token handler
	adminSrv *http.Server
	admin    *admin.Server // health, metrics and the admin API

	closers []func() // close the parts, in the order in which they were made
}

// source is where definitions come from. It reports each change to the rollout.
type source interface {
	Run(ctx context.Context)
	Reload(ctx context.Context)
}

// New makes every part, reads the definitions and publishes them to the Envoys that will connect.
// Nothing is served yet. ctx bounds the making alone. The caller must call Run once.
func New(ctx context.Context, config Config) (_ *Gateway, err error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	g := &Gateway{config: config, logger: config.Logger, registry: newRegistry(config.Version)}
	g.metrics = newProcessMetrics(g.registry, config.DroppedLogLines)
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.tracer, err = tracing.New(ctx, tracing.Config{Settings: config.Tracing, Version: config.Version, Logger: config.Logger}); err != nil {
		return nil, err
	}
	g.atClose("the exporter of spans", g.tracer.Close)
	if err := g.prepareEnvoy(); err != nil {
		return nil, err
	}
	// Definitions come before the store: a broken file is reported before anything is made for it.
	lastGood := definitions.LastGood{Dir: config.Data}
	first, wrong, err := g.firstDefinitions(ctx, lastGood)
	if err != nil {
		return nil, err
	}
	if err := g.openTokens(ctx); err != nil {
		return nil, err
	}
	if err := g.publish(first, wrong, lastGood); err != nil {
		return nil, err
	}
	if err := g.makeServers(); err != nil {
		return nil, err
	}
	if err := g.awaitPorts(ctx, first); err != nil {
		return nil, err
	}
	return g, nil
}

// awaitPorts waits until our own Envoy can have the ports of the first definitions.
func (g *Gateway) awaitPorts(ctx context.Context, first *definitions.Definitions) error {
	if g.runner == nil || first == nil {
		return nil
	}
	addresses := []netip.AddrPort{g.config.XDSOptions().ListenAddress(first.Gateway)}
	if first.Gateway.TLS != nil {
		addresses = append(addresses, first.Gateway.TLS.Listen)
	}
	for _, address := range addresses {
		if err := awaitFree(ctx, address.String()); err != nil {
			return err
		}
	}
	return nil
}

// prepareEnvoy makes the runner of our own Envoy, which reaches Gatepost over Unix sockets in a
// private folder.
func (g *Gateway) prepareEnvoy() (err error) {
	c := &g.config
	if c.Envoy == "" {
		return nil
	}
	if g.dir, err = envoy.PrivateDir(); err != nil {
		return err
	}
	g.atClose("the private folder", g.dir.Remove)
	if c.GRPC == "" {
		c.GRPC = g.dir.GRPC()
	}
	if c.HTTP == "" {
		c.HTTP = g.dir.HTTP()
	}
	options := envoy.BootstrapOptions{GRPC: c.GRPC, HTTP: c.HTTP, TLS: c.GRPCTLS, NodeID: nodeID()}
	if c.NameServers != nil || nameserver.Useful() {
		if g.names, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return fmt.Errorf("listening for names: %w", err)
		}
		g.atClose("the port for names", func() error { _ = g.names.Close(); return nil }) // if it was served, it is closed
		options.NameServer = g.names.Addr().String()
	}
	bootstrap, err := envoy.Bootstrap(options)
	if err != nil {
		return err
	}
	g.runner = &envoy.Runner{
		Path: c.Envoy, Bootstrap: bootstrap, Dir: g.dir, Concurrency: c.Concurrency, Logger: g.logger, AccessLog: c.AccessLog,
		OnStart: g.metrics.envoyStarted, OnExit: g.metrics.envoyDied,
	}
	return nil
}

// nodeID distinguishes this Envoy from those of other machines in `gatepost status`.
func nodeID() string {
	host, err := os.Hostname()
	if err != nil {
		return envoy.DefaultNodeID
	}
	return envoy.DefaultNodeID + "@" + host
}

// firstDefinitions reads the definitions to start with. If it returns neither definitions nor an
// error, the gateway waits for the first ones. wrong is the reason that they are not the newest.
func (g *Gateway) firstDefinitions(ctx context.Context, lastGood definitions.LastGood) (first *definitions.Definitions, wrong, err error) {
	if g.config.Definitions != "" {
		return rollout.First(g.config.Definitions, lastGood)
	}
	if g.redis, err = openRedisSource(g); err != nil {
		return nil, nil, err
	}
	g.atClose("the definitions in Redis", g.redis.close)
	first, wrong = g.redis.Definitions(ctx, lastGood)
	return first, wrong, nil
}

// openTokens locks the data folder and makes the parts that keep and check tokens.
func (g *Gateway) openTokens(ctx context.Context) (err error) {
	if g.lock, err = lockData(ctx, g.config.Data, g.logger); err != nil {
		return err
	}
	if g.lock != nil {
		g.atClose("the lock of the data folder", g.lock.Close) // after the store, which the next gateway opens with the lock
	}
	if g.module, err = openModule(ctx, g.config); err != nil {
		return err
	}
	g.atClose("the table of decisions", g.module.close)
	if g.runner != nil {
		g.runner.Files = g.module.folders
	}
	if g.store, err = openStore(ctx, g.config, g.module.table, g.registry); err != nil {
		return err
	}
	g.atClose("the token store", g.store.Close)
	if g.seen, err = lastseen.New(lastseen.Config{Store: g.store, Registerer: g.registry, Every: g.module.sampleEvery()}); err != nil {
		return err
	}
	g.atClose("the sampler of uses", func() error { g.seen.Close(); return nil })
	g.checker, err = authz.New(authz.Config{
		Sessions: g.store, Seen: g.seen.Record, Decisions: g.decisions(), Logger: g.logger, Registerer: g.registry, Tracer: g.tracer,
	})
	if err != nil {
		return err
	}
	if g.limits, err = openClusterLimits(g.config, g.registry); err != nil {
		return err
	}
	if g.limits != nil {
		g.atClose("the limits of the cluster", g.limits.conn.Close)
	}
	if g.shield, err = shield.New(shield.Config{Shared: g.store.shared, Logger: g.logger}); err != nil {
		return err
	}
	g.endpoint, err = endpoint.New(endpoint.Config{
		Store: g.store, Settings: g.login.Load, Logger: g.logger, Registerer: g.registry, Tracer: g.tracer,
		Shield: g.shield,
	})
	if err != nil {
		return err
	}
	g.atClose("the token handler", func() error { g.endpoint.Close(); return nil })
	return nil
}

// publish makes the rollout, publishes the first ones, if there are any, and makes what follows
// their source.
func (g *Gateway) publish(first *definitions.Definitions, wrong error, lastGood definitions.LastGood) error {
	g.openHistory()
	var err error
	serving := xds.Config{Logger: g.logger, Registerer: g.registry}
	if g.envoyAdmin() != "" {
		serving.Ready = g.readyClusters
	}
	if g.control, err = xds.New(serving); err != nil {
		return err
	}
	g.atClose("the control plane", func() error { g.control.Close(); return nil })
	options := g.config.XDSOptions()
	options.Module = g.module.Module
	g.lastRequests = newLastRequests(g.config.Envoy != "")
	if g.certificates, err = newCertificates(g); err != nil {
		return err
	}
	g.atClose("the storage of ACME", g.certificates.acme.close)
	if err := g.certificates.acme.refuse(first); err != nil {
		return err
	}
	g.rollout, err = rollout.New(rollout.Config{
		Control: g.control, Options: options, Certificates: g.certificates.load,
		WithoutModule: g.module.without, ModuleVersion: module.CheckVersion,
		LastGood: keeper{lastGood, g.history}, OnPublish: g.useSettings, OnActive: g.certificates.acme.activate, Logger: g.logger, Registerer: g.registry,
	})
	if err != nil {
		return err
	}
	if first != nil {
		if err := g.rollout.Apply(first, time.Time{}); err != nil {
			return err
		}
	}
	current := first
	if wrong != nil {
		g.rollout.StartDegraded(wrong)
		current = nil // the source then reports whatever it reads, even if it is served already
	}
	if g.redis != nil {
		g.source = g.redis
		return g.redis.Follow()
	}
	g.source, err = definitions.NewWatcher(definitions.WatcherConfig{
		Path: g.config.Definitions, Current: current, OnChange: g.rollout.Changed, OnError: g.rollout.Failed, Logger: g.logger,
	})
	return err
}

// useSettings gives the token handler and the store the settings of the definitions that are
// published.
func (g *Gateway) useSettings(d *definitions.Definitions) {
	tokens := &d.Gateway.Tokens
	g.login.Store(tokens)
	g.certificates.follow(d)
	revocation := cache.Strict
	if tokens.Revocation == definitions.RevocationPrompt {
		revocation = cache.Prompt
	}
	g.store.SetRevocation(revocation)
}

// makeServers makes the servers that Run starts.
func (g *Gateway) makeServers() error {
	g.health = health.NewServer()
	secured, err := g.secureGRPC()
	if err != nil {
		return err
	}
	g.grpc = newGRPCServer(g.checker, g.control, g.limits, g.health, secured...)
	g.http = newHTTPServer(g.certificates.acme.handler(g.endpoint), g.logger, g.metrics.panics.WithLabelValues("token"), tokenPanicked)
	g.admin, err = admin.New(admin.Config{
		Local: admin.IsLocal(g.config.Admin), TokenFile: g.config.AdminTokenFile, Hosts: adminHosts(g.config.Admin),
		Checks: g.checks(), Status: g.message, Snapshot: g.snapshot,
		Denials: g.checker.Recent, Follow: g.checker.Follow, Definitions: g.definitions, Services: g.services, Revisions: g.revisions(),
		Shield: g.shield, Explain: g.explain, Version: g.config.Version, Profiles: g.config.Profiles, Sessions: g.store, Metrics: g.registry, Logger: g.logger,
		EnvoyMetrics: g.envoyMetrics(),
	})
	if err != nil {
		return err
	}
	g.adminSrv = newHTTPServer(g.admin, g.logger, g.metrics.panics.WithLabelValues("admin"), adminPanicked)
	return nil
}

func (g *Gateway) snapshot() *xds.Snapshot { return g.rollout.Status().Snapshot }

// checks are what must hold before the gateway is ready.
func (g *Gateway) checks() []admin.Check {
	return []admin.Check{
		{
			Name:     "definitions",
			Ready:    func(context.Context) error { return g.rollout.Status().Loaded() },
			Degraded: func() string { return g.rollout.Status().Degraded() },
		},
		{Name: "store", Ready: g.store.Ping},
		{Name: "envoy", Ready: func(context.Context) error { return g.rollout.Status().Missing() }},
	}
}

// adminHosts are the names by which scrapers may reach the admin address: the host of that address,
// and this machine's.
func adminHosts(address string) []string {
	var hosts []string
	if host, _, err := net.SplitHostPort(address); err == nil {
		hosts = append(hosts, host)
	}
	if host, err := os.Hostname(); err == nil {
		hosts = append(hosts, host)
	}
	return hosts
}

// atClose has a part closed with the gateway, before the parts that were made earlier.
func (g *Gateway) atClose(what string, end func() error) {
	g.closers = append(g.closers, func() {
		if err := end(); err != nil {
			g.logger.Error(fmt.Sprintf("closing %s failed", what), "error", err)
		}
	})
}

// close gives up every part that New has made, the last one first.
func (g *Gateway) close() {
	for _, end := range slices.Backward(g.closers) {
		end()
	}
}
