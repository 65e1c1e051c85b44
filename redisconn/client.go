package redisconn

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// connBuffer is the size of the read buffer and of the write buffer of a connection, in bytes.
const connBuffer = 4 << 10

// quiet stops the client library from writing to standard error: its errors carry the same text.
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
		Dialer:           dialer(o),
		ClientName:       "gatepost",

		DialTimeout:           o.Timeout,
		DialerRetries:         1,
		ReadTimeout:           o.Timeout,
		WriteTimeout:          o.Timeout,
		PoolTimeout:           o.Timeout,
		ContextTimeoutEnabled: true,

		// One more attempt, for a connection that a restarted server has closed. Commands that must
		// not reach Redis twice set NoRetry.
		MaxRetries:      1,
		MinRetryBackoff: 5 * time.Millisecond,
		MaxRetryBackoff: 20 * time.Millisecond,

		PoolSize:         max(16, 8*runtime.GOMAXPROCS(0)),
		PipelinePoolSize: -1, // use the same pool, because pipelines are few
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

// dialer returns the function that opens connections for the client. If dialling fails, it returns
// a connection that fails on first use: after some dial errors the library stops dialling for a
// second at a time, but Gatepost must continue as soon as Redis is back.
func dialer(o *Options) func(ctx context.Context, network, addr string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: o.Timeout, KeepAlive: 15 * time.Second}
	dial := plain.DialContext
	if o.tls != nil {
		dial = (&tls.Dialer{NetDialer: plain, Config: o.tls}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return refused{err}, nil
		}
		return conn, nil
	}
}

// refused is a connection that could not be opened.
type refused struct{ err error }

func (r refused) Read([]byte) (int, error)         { return 0, r.err }
func (r refused) Write([]byte) (int, error)        { return 0, r.err }
func (r refused) Close() error                     { return nil }
func (r refused) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (r refused) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (r refused) SetDeadline(time.Time) error      { return nil }
func (r refused) SetReadDeadline(time.Time) error  { return nil }
func (r refused) SetWriteDeadline(time.Time) error { return nil }
