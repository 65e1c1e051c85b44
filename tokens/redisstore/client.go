package redisstore

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// How long the parts of a call may take, and all of it. A caller's own deadline counts where it is earlier.
const (
	dialTimeout  = 500 * time.Millisecond
	replyTimeout = 500 * time.Millisecond
	callTimeout  = 1500 * time.Millisecond
)

// bounded is ctx with no more time than a call has. Where the caller leaves less it is ctx itself: a second deadline behind the
// first would decide nothing, and be half a kilobyte of garbage for each look-up.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= callTimeout {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, callTimeout)
}

// connBuffer is how much of what is read and written one connection keeps, in bytes.
const connBuffer = 4 << 10

// quiet stops the client library from writing to standard error: what it has to tell is in the errors.
var quiet = sync.OnceFunc(logging.Disable)

// newClient returns a client that connects when it is first used.
func newClient(o *Options) redis.UniversalClient {
	quiet()
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:            o.hosts,
		DB:               o.db,
		Username:         o.user,
		Password:         o.password.reveal(),
		MasterName:       o.master,
		SentinelUsername: o.sentinelUser,
		SentinelPassword: o.sentinelPassword.reveal(),
		IsClusterMode:    o.cluster,
		TLSConfig:        o.tls,
		Dialer:           dialer(o.tls),
		ClientName:       "gatepost",

		DialTimeout:           dialTimeout,
		DialerRetries:         1,
		ReadTimeout:           replyTimeout,
		WriteTimeout:          replyTimeout,
		PoolTimeout:           replyTimeout,
		ContextTimeoutEnabled: true,

		// One more try, for the connection that a restarted server has closed. Commands that must not reach
		// Redis twice go through [once].
		MaxRetries:      1,
		MinRetryBackoff: 5 * time.Millisecond,
		MaxRetryBackoff: 20 * time.Millisecond,

		PoolSize:         max(16, 8*runtime.GOMAXPROCS(0)),
		PipelinePoolSize: -1, // the same pool: pipelines are few, however many logins they carry
		// A record is some hundred bytes; with the library's 32 KiB the pool would take a megabyte.
		ReadBufferSize:  connBuffer,
		WriteBufferSize: connBuffer,
		ConnMaxIdleTime: 5 * time.Minute,

		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		FailingTimeoutSeconds:    1,
	})
	reloadSlots(client)
	return client
}

// dialer returns what opens connections for the client. Where nobody answers it returns a connection that fails on
// first use: given an error, the library would after some of them not dial any more for a second at a time, and
// Gatepost is to go on as soon as Redis is back.
func dialer(secured *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	dial := plain.DialContext
	if secured != nil {
		dial = (&tls.Dialer{NetDialer: plain, Config: secured}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return refused{err}, nil
		}
		return conn, nil
	}
}

// refused is a connection that was never made.
type refused struct{ err error }

func (r refused) Read([]byte) (int, error)         { return 0, r.err }
func (r refused) Write([]byte) (int, error)        { return 0, r.err }
func (r refused) Close() error                     { return nil }
func (r refused) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (r refused) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (r refused) SetDeadline(time.Time) error      { return nil }
func (r refused) SetReadDeadline(time.Time) error  { return nil }
func (r refused) SetWriteDeadline(time.Time) error { return nil }

// once is a command that is sent to Redis at most once. A command whose reply was lost may have been carried out,
// or may be yet: carried out a second time, later, it could bring back what was revoked in between.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

// Client is the client that the store uses, for what needs other commands on the same Redis.
func (s *Store) Client() redis.UniversalClient { return s.client }

// NodeOptions returns how to connect to the node at addr by itself, as one of those that [Store.Masters] names: user,
// password, database, TLS and time-outs are set, all else is the caller's to set.
func (s *Store) NodeOptions(addr string) *redis.Options {
	o := s.options
	return &redis.Options{
		Addr:                     addr,
		DB:                       o.db,
		Username:                 o.user,
		Password:                 o.password.reveal(),
		TLSConfig:                o.tls,
		DialTimeout:              dialTimeout,
		ReadTimeout:              replyTimeout,
		WriteTimeout:             replyTimeout,
		ContextTimeoutEnabled:    true,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// Dial connects to the node at addr as the client does, for who speaks with it directly.
func (s *Store) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return dialer(s.options.tls)(ctx, "tcp", addr)
}

// Masters returns the addresses of the servers that hold tokens now, sorted: the one server, the master that the
// Sentinels name, or all masters of the Cluster.
func (s *Store) Masters(ctx context.Context) ([]string, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	switch {
	case s.options.master != "":
		return s.sentinelMaster(ctx)
	case s.options.cluster:
		return s.clusterMasters(ctx)
	}
	return s.options.hosts[:1:1], nil
}

// sentinelMaster returns what the first Sentinel says that answers.
func (s *Store) sentinelMaster(ctx context.Context) ([]string, error) {
	var err error
	for _, sentinel := range s.askedSentinels() {
		var master string
		if master, err = s.ask(ctx, sentinel); err == nil {
			return []string{master}, nil
		}
	}
	return nil, unavailable(ctx, "asking the Sentinels", err)
}

// NamedMasters returns every server that a Sentinel names as the master, sorted, once those of the address that answer have
// been heard; an error where none does. While a fail-over is under way one Sentinel may know of it and another not yet.
// Where no Sentinel leads it returns nothing.
func (s *Store) NamedMasters(ctx context.Context) ([]string, error) {
	if s.options.master == "" {
		return nil, nil
	}
	type answer struct {
		master string
		err    error
	}
	answers := make(chan answer, len(s.options.hosts))
	for _, sentinel := range s.askedSentinels() {
		go func() {
			master, err := s.ask(ctx, sentinel)
			answers <- answer{master, err}
		}()
	}
	var named []string
	var err error
	for range s.options.hosts {
		a := <-answers
		if a.err == nil {
			named = append(named, a.master)
		} else {
			err = a.err
		}
	}
	if len(named) == 0 {
		return nil, unavailable(ctx, "asking the Sentinels", err)
	}
	return sortedSet(named), nil
}

// ask returns the address of the master that one Sentinel names.
func (s *Store) ask(ctx context.Context, sentinel *redis.SentinelClient) (string, error) {
	master, err := sentinel.GetMasterAddrByName(ctx, s.options.master).Result()
	if isNil(err) || err == nil && len(master) != 2 {
		return "", fmt.Errorf("it knows no master %q", s.options.master)
	}
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(master[0], master[1]), nil
}

// askedSentinels returns a client for each Sentinel of the address. They keep their connections: Sentinels are asked often.
func (s *Store) askedSentinels() []*redis.SentinelClient {
	s.sentinelsOnce.Do(func() {
		quiet()
		for _, addr := range s.options.hosts {
			options := s.NodeOptions(addr)
			options.DB, options.PoolSize, options.MaxRetries = 0, 2, 1
			options.Username, options.Password = s.options.sentinelUser, s.options.sentinelPassword.reveal()
			options.Dialer = dialer(s.options.tls)
			s.sentinels = append(s.sentinels, redis.NewSentinelClient(options))
		}
	})
	return s.sentinels
}

// clusterMasters asks the nodes, and not the client, which may be some seconds behind.
func (s *Store) clusterMasters(ctx context.Context) ([]string, error) {
	slots, err := s.client.ClusterSlots(ctx).Result()
	if err != nil {
		return nil, unavailable(ctx, "asking the Cluster for its masters", err)
	}
	var addrs []string
	for _, slot := range slots {
		if len(slot.Nodes) > 0 {
			addrs = append(addrs, slot.Nodes[0].Addr)
		}
	}
	return sortedSet(addrs), nil
}
