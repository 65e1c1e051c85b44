package acme

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/redis/go-redis/v9"

	"gatepost/redisconn"
)

// The keys, which are in one hash slot, and the channel.
const (
	storedKey   = "gatepost:{acme}:stored" // a hash: place → encrypted value
	lockPrefix  = "gatepost:{acme}:lock:"
	newsChannel = "gatepost:{acme}:news"
)

// A lock that is not renewed for lockFor has lost its owner.
const (
	lockFor    = 30 * time.Second
	renewEvery = lockFor / 3
	lockPoll   = 250 * time.Millisecond
)

// The scripts act for the owner of a lock alone.
var (
	renewLock = redis.NewScript(`return redis.call("get", KEYS[1]) == ARGV[1] and redis.call("pexpire", KEYS[1], ARGV[2]) or 0`)
	dropLock  = redis.NewScript(`return redis.call("get", KEYS[1]) == ARGV[1] and redis.call("del", KEYS[1]) or 0`)
)

// Redis is a Storage that any number of gateways share. All values are encrypted.
type Redis struct {
	conn   *redisconn.Conn
	client redis.UniversalClient
	key    SecretsKey

	mu    sync.Mutex
	locks map[string]held // :: name → the lock that this process has
}

// held is a lock, and what ends its renewal.
type held struct {
	owner string
	end   context.CancelFunc
}

// NewRedis returns a Storage in Redis. The caller closes conn.
func NewRedis(conn *redisconn.Conn, key SecretsKey) *Redis {
	return &Redis{conn: conn, client: conn.Client(), key: key, locks: map[string]held{}}
}

// Store puts a value in a place.
func (r *Redis) Store(ctx context.Context, place string, value []byte) error {
	ctx, cancel := r.conn.Bound(ctx)
	defer cancel()
	return r.client.HSet(ctx, storedKey, place, r.key.seal(place, value)).Err()
}

// Load returns the value in a place. The error is fs.ErrNotExist if there is none.
func (r *Redis) Load(ctx context.Context, place string) ([]byte, error) {
	ctx, cancel := r.conn.Bound(ctx)
	defer cancel()
	sealed, err := r.client.HGet(ctx, storedKey, place).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return r.key.open(place, sealed)
}

// Delete removes a place and all places below it.
func (r *Redis) Delete(ctx context.Context, place string) error {
	ctx, cancel := r.conn.Bound(ctx)
	defer cancel()
	places, err := r.client.HKeys(ctx, storedKey).Result()
	if err != nil {
		return err
	}
	places = slices.DeleteFunc(places, func(p string) bool { return p != place && !strings.HasPrefix(p, place+"/") })
	if len(places) == 0 {
		return nil
	}
	return r.client.HDel(ctx, storedKey, places...).Err()
}

// Exists reports whether there is a value in a place or below it.
func (r *Redis) Exists(ctx context.Context, place string) bool {
	_, err := r.Stat(ctx, place)
	return err == nil
}

// List returns the places below a place.
func (r *Redis) List(ctx context.Context, place string, recursive bool) ([]string, error) {
	ctx, cancel := r.conn.Bound(ctx)
	defer cancel()
	places, err := r.client.HKeys(ctx, storedKey).Result()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, p := range places {
		below, ok := strings.CutPrefix(p, place+"/")
		if !ok {
			continue
		}
		if !recursive {
			below, _, _ = strings.Cut(below, "/")
		}
		found = append(found, place+"/"+below)
	}
	slices.Sort(found)
	if found = slices.Compact(found); len(found) == 0 {
		return nil, fs.ErrNotExist
	}
	return found, nil
}

// Stat describes a place. The error is fs.ErrNotExist if there is nothing in it or below it.
func (r *Redis) Stat(ctx context.Context, place string) (certmagic.KeyInfo, error) {
	value, err := r.Load(ctx, place)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = r.List(ctx, place, true)
		return certmagic.KeyInfo{Key: place}, err
	}
	return certmagic.KeyInfo{Key: place, Size: int64(len(value)), IsTerminal: true}, err
}

// Lock waits for a lock, and renews it until Unlock. If its owner ends, a lock expires.
func (r *Redis) Lock(ctx context.Context, name string) error {
	owner := rand.Text()
	for {
		err := r.client.SetArgs(ctx, lockPrefix+name, owner, redis.SetArgs{Mode: "NX", TTL: lockFor}).Err()
		if err == nil {
			break
		}
		if !errors.Is(err, redis.Nil) {
			return fmt.Errorf("locking %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPoll):
		}
	}
	renewing, end := context.WithCancel(context.WithoutCancel(ctx))
	r.mu.Lock()
	r.locks[name] = held{owner, end}
	r.mu.Unlock()
	go r.renew(renewing, name, owner)
	return nil
}

func (r *Redis) renew(ctx context.Context, name, owner string) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(renewEvery):
			_ = renewLock.Run(ctx, r.client, []string{lockPrefix + name}, owner, lockFor.Milliseconds()).Err() // the next one may succeed
		}
	}
}

// Unlock releases a lock.
func (r *Redis) Unlock(ctx context.Context, name string) error {
	r.mu.Lock()
	lock := r.locks[name]
	delete(r.locks, name)
	r.mu.Unlock()
	if lock.end == nil {
		return fmt.Errorf("unlocking %s: it is not locked by this process", name)
	}
	lock.end()
	ctx, cancel := r.conn.Bound(ctx)
	defer cancel()
	return dropLock.Run(ctx, r.client, []string{lockPrefix + name}, lock.owner).Err()
}

// Announce reports a change of a name to all gateways.
func (r *Redis) Announce(ctx context.Context, name string) error {
	ctx, cancel := r.conn.Bound(ctx)
	defer cancel()
	return r.client.Publish(ctx, newsChannel, name).Err()
}

// Follow calls changed for each announced name until ctx ends, and with an empty name after each (re)connection, since
// an announcement may have been lost.
func (r *Redis) Follow(ctx context.Context, changed func(name string)) {
	news := r.client.Subscribe(ctx, newsChannel) // connects again by itself
	defer news.Close()
	notices := news.ChannelWithSubscriptions()
	for {
		select {
		case <-ctx.Done():
			return
		case notice, open := <-notices:
			switch notice := notice.(type) {
			case *redis.Subscription:
				changed("")
			case *redis.Message:
				changed(notice.Payload)
			}
			if !open {
				return
			}
		}
	}
}
