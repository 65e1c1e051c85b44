package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/redisconn"
	"gatepost/tokens"
	"gatepost/tokens/boltstore"
	"gatepost/tokens/cache"
	"gatepost/tokens/cache/table"
	"gatepost/tokens/redisstore"
	"gatepost/tokens/shield"
)

// tokenStore is the store of sessions, with the cache in front of it.
type tokenStore struct {
	*cache.Cache
	// shared distributes failed logins among gateways. It is nil if there is only one.
	shared shield.Shared
	// redis is the Redis that has the sessions; nil: they are in the embedded store.
	redis *redisstore.Store
}

// warnTimeout bounds the look at Redis' settings; it may be down, which is no reason not to start.
const warnTimeout = 3 * time.Second

// openStore opens Redis, if it is configured, or the embedded store.
func openStore(ctx context.Context, c Config, decisions *table.Table, registry prometheus.Registerer) (*tokenStore, error) {
	if c.Redis == nil {
		return openEmbedded(c, decisions, registry)
	}
	return openRedis(ctx, c, decisions, registry)
}

func openEmbedded(c Config, decisions *table.Table, registry prometheus.Registerer) (*tokenStore, error) {
	store, err := boltstore.Open(c.Data, boltstore.Config{Logger: c.Logger, Registerer: registry})
	if err != nil {
		return nil, fmt.Errorf("opening the embedded token store: %w", err)
	}
	c.Logger.Info("tokens are kept in the embedded store", "dir", c.Data)
	return withCache(store, "embedded", &cache.LocalTracker{Store: store}, decisions, nil, c.Logger, registry)
}

func openRedis(ctx context.Context, c Config, decisions *table.Table, registry prometheus.Registerer) (*tokenStore, error) {
	conn := redisconn.Open(c.Redis)
	store, err := redisstore.New(redisstore.Config{Conn: conn})
	if err != nil {
		return nil, err
	}
	c.Logger.Info("tokens are kept in Redis", "redis", c.Redis, "cache", onOff(!c.NoCache))
	// Without a cache this gateway does not know which others run with one, so a strict revoke
	// waits for the longest that any of them may accept a token from memory.
	var tracker cache.Tracker = cache.OfflineTracker{}
	if !c.NoCache {
		if tracker, err = cache.Track(conn.Client(), cache.RedisConfig{Sentinels: conn, Logger: c.Logger}); err != nil {
			return nil, errors.Join(fmt.Errorf("tracking Redis: %w", err), store.Close())
		}
	}
	warn(ctx, conn, c.Logger)
	cached, err := withCache(store, "redis", tracker, decisions, shield.Redis{Client: conn.Client()}, c.Logger, registry)
	if err != nil {
		return nil, err
	}
	cached.redis = store
	return cached, nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// withCache adds the cache and the metrics to a store. If the tracker never holds a lease, each
// lookup reads the store. The tracker also decides how long a revoke waits.
func withCache(store tokens.Store, name string, tracker cache.Tracker, decisions *table.Table, shared shield.Shared, logger *slog.Logger, registry prometheus.Registerer) (*tokenStore, error) {
	observed, err := tokens.Observed(store, registry, name)
	if err != nil {
		return nil, errors.Join(err, tracker.Close(), store.Close())
	}
	cached, err := cache.New(observed, tracker, cache.Config{Table: decisions, Registerer: registry, Logger: logger})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the cache: %w", err), observed.Close())
	}
	return &tokenStore{Cache: cached, shared: shared}, nil
}

// warn logs the settings of Redis with which a promise will be broken.
func warn(ctx context.Context, conn *redisconn.Conn, logger *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, warnTimeout)
	defer cancel()
	warnings, err := conn.Check(ctx)
	if err != nil {
		logger.Warn("Redis' settings could not be looked at", "error", err)
	}
	for _, one := range warnings {
		logger.Warn("Redis "+one.Name, "remedy", one.Text)
	}
}
