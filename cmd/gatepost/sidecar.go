package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"

	"gatepost/admin"
	"gatepost/apply"
	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/envoy/module"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens/cache"
	"gatepost/tokens/endpoint"
	"gatepost/tokens/redisstore"
	"gatepost/tokens/seen"
	"gatepost/tokens/shield"
	"gatepost/xds"
)

// sidecar is all the parts of a running Gatepost. Its fields stand in the order in which they start.
type sidecar struct {
	settings *settings
	logger   *slog.Logger
	registry *prometheus.Registry
	metrics  *processMetrics
	lock     *os.File // holds the data folder; nil: it cannot be locked

	module   *envoyModule                      // what Envoy decides by itself
	store    *tokenStore                       // who holds a token
	seen     *seen.Sampler                     // when sessions were last used
	checker  *authz.Server                     // may this request pass
	login    atomic.Pointer[endpoint.Settings] // what the served definitions say about tokens
	endpoint *endpoint.Handler                 // the calls under /token
	control  *xds.Server                       // what Envoy is told
	tls      *mutualTLS                        // of the next two; nil: none
	grpc     *grpc.Server                      // where Envoy asks both
	health   *health.Server                    // what gRPC health answers there
	http     *http.Server                      // where Envoy sends /token
	adminSrv *http.Server
	admin    *admin.Server  // what an operator sees
	applier  *apply.Applier // which definitions are in force
	shared   *shared        // the definitions in Redis; nil: they are in a file
	watcher  follower       // where definitions come from
}

// follower follows the place where definitions come from.
type follower interface {
	Run(ctx context.Context)
	Reload()
}

// newSidecar makes every part, reads the definitions and publishes them to the Envoys that will connect. Nothing
// listens yet. ctx bounds the making alone. logs is the queue that logger writes to.
func newSidecar(ctx context.Context, s *settings, logger *slog.Logger, logs *logQueue) (_ *sidecar, err error) {
	if err := s.requireConfig(); err != nil {
		return nil, err
	}
	// net/http reports protocol errors of peers to the standard logger and quotes their bytes, which may hold secrets.
	log.SetOutput(io.Discard)
	side := &sidecar{settings: s, logger: logger, registry: newRegistry()}
	defer func() {
		if err != nil {
			side.close()
		}
	}()
	side.metrics = newProcessMetrics(side.registry, logs)

	// The definitions before the store: a broken file is told before anything is made for it.
	lastGood := definitions.LastGood{Dir: s.data}
	first, wrong, err := side.firstDefinitions(ctx, lastGood)
	if err != nil {
		return nil, err
	}
	if side.lock, err = lockData(ctx, s.data, logger); err != nil {
		return nil, err
	}
	if side.module, err = s.openModule(ctx, logger); err != nil {
		return nil, err
	}
	if side.store, err = openStore(ctx, s, side.module.table, logger, side.registry); err != nil {
		return nil, err
	}
	if side.seen, err = seen.New(seen.Config{Store: side.store, Registerer: side.registry}); err != nil {
		return nil, err
	}
	side.checker, err = authz.New(authz.Config{
		Sessions: side.store, Seen: side.seen.Seen, Decisions: side.decisions(), Logger: logger, Registerer: side.registry,
	})
	if err != nil {
		return nil, err
	}
	side.endpoint = endpoint.New(endpoint.Config{
		Store: side.store, Settings: side.login.Load, Logger: logger, Metrics: side.registry,
		Shield: shield.New(shield.Config{Shared: side.store.shared, Logger: logger}),
	})
	side.control = xds.New(xds.ServerOptions{}, logger, side.registry)
	side.applier = apply.New(apply.Config{
		Control:       side.control,
		Options:       side.module.options(s),
		WithoutModule: side.module.without, ModuleVersion: module.CheckVersion,
		LastGood: lastGood, Obey: side.obey, Log: logger, Registerer: side.registry,
	})
	if first != nil {
		if err := side.applier.Apply(first, time.Time{}); err != nil {
			return nil, err
		}
	}
	inFile := first
	if wrong != nil {
		side.applier.StartedWithout(wrong)
		inFile = nil // whatever the watcher finds is news, also what is served already
	}
	side.follow(inFile)
	side.health = health.NewServer()
	secured, err := side.secureGRPC()
	if err != nil {
		return nil, err
	}
	side.grpc = newGRPCServer(side.checker, side.control, side.health, secured...)
	side.http = newHTTPServer(side.endpoint, logger, side.metrics.panics.WithLabelValues("token"), tokenPanicked)
	side.admin = admin.New(admin.Config{
		Hosts:  adminHosts(s.admin),
		Checks: side.checks(), Status: side.applier.Status, Snapshot: side.applier.Snapshot, Profiles: s.pprof, Sessions: side.store, Metrics: side.registry, Logger: logger,
	})
	side.adminSrv = newHTTPServer(side.admin, logger, side.metrics.panics.WithLabelValues("admin"), adminPanicked)
	return side, nil
}

// firstDefinitions reads the definitions to start with; nil without an error where they are to be waited for. wrong is
// why they are not the newest.
func (s *sidecar) firstDefinitions(ctx context.Context, lastGood definitions.LastGood) (first *definitions.Definitions, wrong, err error) {
	if s.settings.config != configRedis {
		return apply.First(s.settings.config, lastGood)
	}
	if s.shared, err = openShared(s); err != nil {
		return nil, nil, err
	}
	first, wrong = s.shared.Definitions(ctx, lastGood)
	return first, wrong, nil
}

// obey gives the token handler and the store what the definitions in force say.
func (s *sidecar) obey(login *endpoint.Settings, tokens *gatewayv1.Tokens) {
	s.login.Store(login)
	revocation := cache.Proven
	if tokens.GetRevocation() == "prompt" {
		revocation = cache.Prompt
	}
	s.store.SetRevocation(revocation)
}

// secureGRPC reads the files of --grpc-tls, if it is given, and returns what has the gRPC server use them.
func (s *sidecar) secureGRPC() (options []grpc.ServerOption, err error) {
	if s.settings.grpcTLS == "" {
		return nil, nil
	}
	if s.tls, err = newMutualTLS(s.settings.grpcTLS, s.logger); err != nil {
		return nil, err
	}
	if isSocket(s.settings.grpc) {
		return nil, nil
	}
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(s.tls.config("h2")))}, nil
}

// follow makes what follows the definitions; inFile is what was read of the file before.
func (s *sidecar) follow(inFile *definitions.Definitions) {
	if s.shared != nil {
		s.shared.Follow()
		s.watcher = s.shared
		return
	}
	s.watcher = definitions.NewWatcher(definitions.WatcherConfig{
		Path: s.settings.config, Current: inFile, OnChange: s.applier.Changed, OnError: s.applier.Failed, Log: s.logger,
	})
}

// checks are what must hold before the gateway is ready.
func (s *sidecar) checks() []admin.Check {
	return []admin.Check{
		{Name: "definitions", Ready: s.applier.Loaded, Degraded: s.applier.Degraded},
		{Name: "store", Ready: s.store.Ping},
		{Name: "envoy", Ready: s.applier.Acked},
	}
}

// adminHosts are the names by which scrapers may reach the admin address: the host of --admin, and this machine's.
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

// serve listens on every address and serves until ctx ends; what goes on runs in group.
func (s *sidecar) serve(ctx context.Context, group *errgroup.Group) error {
	grpcListener, err := listen(s.settings.grpc)
	if err != nil {
		return fmt.Errorf("listening for Envoy (--grpc): %w", err)
	}
	httpListener, err := listen(s.settings.http)
	if err != nil {
		grpcListener.Close()
		return fmt.Errorf("listening for the token handler (--http): %w", err)
	}
	adminListener, err := listen(s.settings.admin)
	if err != nil {
		grpcListener.Close()
		httpListener.Close()
		return fmt.Errorf("listening for operators (--admin): %w", err)
	}
	group.Go(func() error { return serveGRPC(ctx, s.grpc, grpcListener) })
	group.Go(func() error { return serveHTTP(ctx, s.http, s.tls.secured(httpListener, "http/1.1")) })
	group.Go(func() error { return serveHTTP(ctx, s.adminSrv, adminListener) })
	if s.store.redis != nil {
		group.Go(func() error { s.store.redis.FollowRevokes(ctx, s.logRevoke); return nil })
	}
	group.Go(func() error { s.watcher.Run(ctx); return nil })
	group.Go(func() error { return s.applier.Run(ctx) })
	s.logger.Info("serving", "gatepost_version", version, "grpc", s.settings.grpc, "http", s.settings.http, "admin", s.settings.admin)
	return nil
}

// logRevoke logs a revoke that `gatepost tokens` made directly in Redis, so that every revoke is in the gateways' logs.
func (s *sidecar) logRevoke(r redisstore.Revoke) {
	attributes := []any{"by", printable(r.Who), "at", r.When, "sessions", r.Ended}
	if r.User != "" {
		attributes = append(attributes, "user", printable(r.User))
	}
	if r.Session != "" {
		attributes = append(attributes, "session", printable(r.Session))
	}
	s.logger.Info("sessions revoked directly in Redis", attributes...)
}

// drain makes the gateway unready, by /readyz and by gRPC health; it goes on serving.
func (s *sidecar) drain() {
	s.admin.Drain()
	s.health.Shutdown() // NOT_SERVING, also on the streams of those who watch
}

// close gives up what newSidecar made; what it had not come to is left alone.
func (s *sidecar) close() {
	if s.control != nil {
		s.control.Close()
	}
	if s.endpoint != nil {
		s.endpoint.Close()
	}
	if s.seen != nil {
		s.seen.Close()
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.logger.Error("closing the token store", "error", err)
		}
	}
	if s.module != nil {
		if err := s.module.close(); err != nil {
			s.logger.Error("closing the table of decisions", "error", err)
		}
	}
	if s.shared != nil {
		if err := s.shared.closeStore(); err != nil {
			s.logger.Error("closing the definitions in Redis", "error", err)
		}
	}
	if s.lock != nil {
		_ = s.lock.Close() // last: whoever waits for it opens the store next
	}
}
