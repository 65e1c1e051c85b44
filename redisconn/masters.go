package redisconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/redis/go-redis/v9"
)

// NamedMasters returns every server that a Sentinel names as the master, sorted, after each
// Sentinel has replied or failed; an error if none replied. During a fail-over one Sentinel may
// know of it and another not yet. Without Sentinels it returns nothing.
func (c *Conn) NamedMasters(ctx context.Context) ([]string, error) {
	if c.options.master == "" {
		return nil, nil
	}
	type reply struct {
		master string
		err    error
	}
	replies := make(chan reply, len(c.options.hosts))
	for _, sentinel := range c.sentinelClients() {
		go func() {
			master, err := c.masterNamedBy(ctx, sentinel)
			replies <- reply{master, err}
		}()
	}
	var named []string
	var err error
	for range c.options.hosts {
		r := <-replies
		if r.err == nil {
			named = append(named, r.master)
		} else {
			err = r.err
		}
	}
	if len(named) == 0 {
		return nil, fmt.Errorf("querying the Sentinels for the master: %w", err)
	}
	return sortedSet(named), nil
}

// masterNamedBy returns the address of the master that one Sentinel names.
func (c *Conn) masterNamedBy(ctx context.Context, sentinel *redis.SentinelClient) (string, error) {
	master, err := sentinel.GetMasterAddrByName(ctx, c.options.master).Result()
	if errors.Is(err, redis.Nil) || err == nil && len(master) != 2 {
		return "", fmt.Errorf("the Sentinel knows no master %q", c.options.master)
	}
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(master[0], master[1]), nil
}

// sentinelClients returns a client for each Sentinel of the URL. They are reused, because Sentinels
// are queried often.
func (c *Conn) sentinelClients() []*redis.SentinelClient {
	c.sentinelsOnce.Do(func() {
		quiet()
		for _, addr := range c.options.hosts {
			options := c.nodeOptions(addr)
			options.DB, options.PoolSize, options.MaxRetries = 0, 2, 1
			options.Username, options.Password = c.options.sentinelUser, c.options.sentinelPassword.reveal()
			options.Dialer = dialer(c.options)
			c.sentinels = append(c.sentinels, redis.NewSentinelClient(options))
		}
	})
	return c.sentinels
}

func sortedSet(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
