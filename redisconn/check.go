package redisconn

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Warning describes a setting of a Redis that breaks a promise of Gatepost.
type Warning struct {
	// Name is one of version, eviction, persistence, replica, unchecked.
	Name string
	// Text names the server, the setting, its consequence and the remedy.
	Text string
}

func (w Warning) String() string { return w.Name + ": " + w.Text }

// oldest is the first major version of Redis with CLIENT TRACKING, which reports changed keys to
// clients.
const oldest = 6

// Check reads the settings of each server that holds keys and returns a warning for each bad one,
// sorted by server. It is called at the start. An error means that the settings could not be read.
func (c *Conn) Check(ctx context.Context) ([]Warning, error) {
	ctx, cancel := c.Bound(ctx)
	defer cancel()
	var mu sync.Mutex
	found := map[string][]Warning{}
	err := c.EachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		addr := node.Options().Addr
		info, err := node.Info(ctx).Result()
		if err != nil && strings.HasPrefix(err.Error(), "NOPERM") {
			info, err = "", nil
		}
		mu.Lock()
		defer mu.Unlock()
		found[addr] = warningsFor(addr, info)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("checking the settings of Redis: %w", err)
	}
	var warnings []Warning
	addrs := []string{}
	for addr := range found {
		addrs = append(addrs, addr)
	}
	for _, addr := range sortedSet(addrs) {
		warnings = append(warnings, found[addr]...)
	}
	return warnings, nil
}

// warningsFor returns the warnings for a server from its reply to INFO, or one if INFO was not
// permitted and the reply is empty.
func warningsFor(addr, info string) []Warning {
	has := fields(info)
	if len(has) == 0 {
		return []Warning{{"unchecked", fmt.Sprintf("Redis %s does not let this user run INFO, so its settings are not checked: "+
			"allow it (ACL SETUSER … +info), or make sure of maxmemory-policy noeviction and appendonly yes", addr)}}
	}
	var warnings []Warning
	warn := func(name, format string, args ...any) {
		warnings = append(warnings, Warning{name, fmt.Sprintf("Redis %s ", addr) + fmt.Sprintf(format, args...)})
	}
	version := has["redis_version"]
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < oldest {
		warn("version", "is version %s, which cannot report revoked tokens to its clients: use %d.0 or newer, or run with --cache=off", version, oldest)
	}
	if policy := has["maxmemory_policy"]; policy != "" && policy != "noeviction" {
		warn("eviction", "has maxmemory-policy %s: short of memory it drops sessions, and users are logged out without a trace: "+
			"CONFIG SET maxmemory-policy noeviction, and in redis.conf", policy)
	}
	if has["aof_enabled"] == "0" {
		warn("persistence", "has appendonly no: after a restart, sessions are gone, or tokens that were revoked since the last "+
			"snapshot are accepted again: CONFIG SET appendonly yes, and in redis.conf")
	}
	if has["role"] == "slave" {
		warn("replica", "is a replica: no login can be kept there: name its master, or the Sentinels (?sentinel=NAME)")
	}
	return warnings
}

// fields parses the name:value lines of INFO.
func fields(info string) map[string]string {
	has := map[string]string{}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok && !strings.HasPrefix(line, "#") {
			has[name] = value
		}
	}
	return has
}
