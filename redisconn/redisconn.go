// Package redisconn decides how Redis is reached: the URL, TLS, Sentinel or Cluster, the time
// limits of a call, how long it is left alone after failures, and which settings of a server break
// a promise of Gatepost. The token store, the shield, the rate limits, the cache's tracking and the
// definitions in Redis use it.
package redisconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Conn is a pool of connections to one Redis: a server, the master behind Sentinels, or a Cluster.
// Its methods are safe for concurrent use.
type Conn struct {
	options *Options
	client  redis.UniversalClient

	sentinelsOnce sync.Once
	sentinels     []*redis.SentinelClient // in the order of options.hosts; made on first use
}

// Open returns a pool for the Redis that options name. It connects on first use, so it succeeds
// even if Redis is down.
func Open(options *Options) *Conn {
	return &Conn{options: options, client: newClient(options)}
}

// CallTimeout limits one call: all commands and retries of one operation. A caller's earlier
// deadline counts.
func (c *Conn) CallTimeout() time.Duration { return 3 * c.options.Timeout }

// Bound returns ctx limited to CallTimeout. If ctx has an earlier deadline, Bound returns ctx
// itself, because a second deadline would have no effect and allocate half a kilobyte per look-up.
func (c *Conn) Bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= c.CallTimeout() {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.CallTimeout())
}

// Client returns the client of the pool. [Conn.Close] closes it.
func (c *Conn) Client() redis.UniversalClient { return c.client }

// IsCluster reports whether the keys are spread over the masters of a Redis Cluster.
func (c *Conn) IsCluster() bool { return c.options.cluster }

// nodeOptions returns the options for a client of the single node at addr. User, password,
// database, TLS and time limits are set; the caller sets everything else.
func (c *Conn) nodeOptions(addr string) *redis.Options {
	o := c.options
	return &redis.Options{
		Addr:                     addr,
		DB:                       o.db,
		Username:                 o.user,
		Password:                 o.password.reveal(),
		TLSConfig:                o.tls,
		DialTimeout:              o.Timeout,
		ReadTimeout:              o.Timeout,
		WriteTimeout:             o.Timeout,
		ContextTimeoutEnabled:    true,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// Dial opens a connection to the node at addr, for callers with their own protocol code.
func (c *Conn) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return dialer(c.options)(ctx, "tcp", addr)
}

// EachMaster calls do with a client for each server that holds keys: in a Cluster all masters,
// concurrently.
func (c *Conn) EachMaster(ctx context.Context, do func(context.Context, *redis.Client) error) error {
	switch client := c.client.(type) {
	case *redis.ClusterClient:
		return client.ForEachMaster(ctx, do)
	case *redis.Client:
		return do(ctx, client)
	}
	return fmt.Errorf("calling each master: unexpected client %T", c.client)
}

// Close closes all connections of the pool.
func (c *Conn) Close() error {
	errs := []error{c.client.Close()}
	c.sentinelsOnce.Do(func() {}) // no more Sentinel clients are created
	for _, sentinel := range c.sentinels {
		errs = append(errs, sentinel.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing Redis connections: %w", err)
	}
	return nil
}
