package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sync/errgroup"

	"gatepost/convention"
	"gatepost/nameserver"
	"gatepost/tokens/redisstore"
)

// Run serves until ctx ends, runs Envoy if it is our own, and closes every part. Envoy ends first
// and answers the requests that it has; the servers end after it, so those requests are still
// decided.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.close()
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	group, failed := errgroup.WithContext(serving)
	if err := g.serve(serving, group); err != nil {
		return err
	}
	group.Go(func() error {
		defer stopServing()
		if g.runner == nil {
			return g.awaitEnd(ctx, failed)
		}
		envoyEnds, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(failed, cancel)()
		defer context.AfterFunc(ctx, g.drain)()
		return g.runner.Run(envoyEnds)
	})
	err := group.Wait()
	g.logger.Info("ended")
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// awaitEnd waits until the gateway is to end, and makes it unready at once.
func (g *Gateway) awaitEnd(ctx, failed context.Context) error {
	select {
	case <-ctx.Done():
	case <-failed.Done():
	}
	g.drain()
	return nil
}

// serve listens on every address and serves until ctx ends; all that keeps running does so in group.
func (g *Gateway) serve(ctx context.Context, group *errgroup.Group) error {
	listeners, err := g.listenAll()
	if err != nil {
		return err
	}
	group.Go(func() error { return serveGRPC(ctx, g.grpc, listeners[0]) })
	group.Go(func() error { return serveHTTP(ctx, g.http, g.tls.secured(listeners[1], "http/1.1")) })
	group.Go(func() error { return serveHTTP(ctx, g.adminSrv, listeners[2]) })
	if g.names != nil {
		group.Go(func() error {
			return nameserver.Serve(ctx, g.names, nameserver.Config{Servers: g.config.NameServers})
		})
	}
	if g.store.redis != nil {
		group.Go(func() error { g.store.redis.FollowRevokes(ctx, g.logRevoke); return nil })
	}
	group.Go(func() error { g.source.Run(ctx); return nil })
	group.Go(func() error { g.supervise(ctx, listeners[2].Addr()); return nil })
	group.Go(func() error { return g.rollout.Run(ctx) })
	group.Go(func() error { g.certificates.run(ctx); return nil })
	group.Go(func() error { g.followRequests(ctx); return nil })
	g.logger.Info("serving", "gatepost_version", g.config.Version, "grpc", g.config.GRPC, "http", g.config.HTTP, "admin", g.config.Admin)
	if g.config.ShowPage != nil {
		if url := g.admin.PageLink(g.config.Admin); url != "" {
			g.config.ShowPage(url)
		}
	}
	return nil
}

// listenAll listens for Envoy, for the token handler and for operators, in this order.
func (g *Gateway) listenAll() (all [3]net.Listener, err error) {
	for i, one := range [3]struct{ what, address string }{
		{"Envoy (--grpc)", g.config.GRPC}, {"the token handler (--http)", g.config.HTTP}, {"operators (--admin)", g.config.Admin},
	} {
		if all[i], err = listen(one.address); err != nil {
			for _, open := range all[:i] {
				open.Close()
			}
			if errors.Is(err, syscall.EADDRINUSE) {
				return all, fmt.Errorf("listening for %s on %s: another process does already; stop it, or choose another address", one.what, one.address)
			}
			return all, fmt.Errorf("listening for %s: %w", one.what, err)
		}
	}
	return all, nil
}

// drain makes the gateway unready, in /readyz and in gRPC health; it goes on serving.
func (g *Gateway) drain() {
	g.config.Systemd.Stopping()
	g.admin.Drain()
	g.health.Shutdown() // NOT_SERVING, also for clients of Watch
}

// logRevoke logs a revoke that `gatepost tokens` made directly in Redis, so that every revoke is in
// the gateways' logs.
func (g *Gateway) logRevoke(r redisstore.Revoke) {
	attributes := []any{"by", convention.Printable(r.Who), "at", r.When, "sessions", r.Ended, convention.EventSessionEnded.Attr()}
	if r.User != "" {
		attributes = append(attributes, "user", convention.Printable(r.User))
	}
	if r.Session != "" {
		attributes = append(attributes, "session", convention.Printable(r.Session))
	}
	g.logger.Info("sessions revoked directly in Redis", attributes...)
}
