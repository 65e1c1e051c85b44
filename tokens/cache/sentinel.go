package cache

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"gatepost/tokens/cache/table"

	"github.com/redis/go-redis/v9"
)

// Sentinels say which server is the master. *redisstore.Store does.
type Sentinels interface {
	// NamedMasters returns every server that a Sentinel that answers names as the master: more than one while they
	// do not agree.
	NamedMasters(ctx context.Context) ([]string, error)
	// Dial connects to one.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// failoverClient is what go-redis gives a client that Sentinel leads for its address.
const failoverClient = "FailoverClient"

var (
	errReplaced = errors.New("sentinel names another master")
	errDisagree = errors.New("the Sentinels name different masters")
	errMoved    = errors.New("the look-ups went to a server that is not tracked")
)

// nameTimeout is how long a Sentinel may take to say who the master is. Those that are not heard by then do not count.
const nameTimeout = 250 * time.Millisecond

// named returns the one master that the Sentinels name.
func named(ctx context.Context, sentinels Sentinels) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	all, err := sentinels.NamedMasters(ctx)
	switch {
	case err != nil:
		return "", err
	case len(all) != 1:
		return "", errors.Join(errDisagree, errors.New(strings.Join(all, ", ")))
	}
	return all[0], nil
}

// watchName asks the Sentinels with each heartbeat whether the master is still the one that is tracked: a master that they have
// replaced may go on for seconds as if it were one. Where they name another the tracking ends; where none answers,
// the lease runs out.
func (c *conn) watchName(ctx context.Context) error {
	for {
		if err := c.checkName(ctx); errors.Is(err, errReplaced) {
			return err
		}
		if err := sleep(ctx, c.redis.lease/4); err != nil {
			return err
		}
	}
}

// checkName asks once, and keeps when it asked.
func (c *conn) checkName(ctx context.Context) error {
	asked := table.Now()
	name, err := named(ctx, c.redis.sentinels)
	switch {
	case err != nil:
		return err
	case name != c.master.name:
		return errReplaced
	}
	c.redis.mu.Lock()
	c.named = asked
	c.redis.mu.Unlock()
	return nil
}

// led is the data connections of a client that Sentinel leads, so that the lease vouches only for what the tracked server
// itself has answered: while one is held all of them lead there.
type led struct {
	mu    sync.Mutex
	conns map[*ledConn]struct{}
	// at is the server that is tracked, and moved ends that; empty and nil while none is.
	at    string
	moved func()
}

// follow keeps account of the connections that client dials from now on: it must not have dialled before.
func follow(client *redis.Client) *led {
	l := &led{conns: make(map[*ledConn]struct{})}
	client.AddHook(l)
	return l
}

// DialHook ends the tracking before a connection that leads elsewhere can be used.
func (l *led) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := next(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if to, ok := nc.RemoteAddr().(*net.TCPAddr); ok && to.Port == 0 {
			return nc, nil // never made, and fails on first use
		}
		c := &ledConn{Conn: nc, led: l}
		l.mu.Lock()
		l.conns[c] = struct{}{}
		if l.moved != nil && nc.RemoteAddr().String() != l.at {
			l.moved()
		}
		l.mu.Unlock()
		if direct, ok := nc.(syscall.Conn); ok {
			return checkedConn{c, direct}, nil
		}
		return c, nil
	}
}

// ProcessHook changes nothing.
func (l *led) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook changes nothing.
func (l *led) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// pin closes all connections that lead elsewhere than to at; moved is called, once at most and with the lock held, before a new
// one can.
func (l *led) pin(at string, moved func()) {
	l.mu.Lock()
	l.at, l.moved = at, sync.OnceFunc(moved)
	l.closeThose(func(to string) bool { return to != at })
	l.mu.Unlock()
}

// unpin ends what pin began. Where the server was replaced, the look-ups leave it too: go-redis might hear of it later.
func (l *led) unpin(replaced bool) {
	l.mu.Lock()
	at := l.at
	l.at, l.moved = "", nil
	if replaced {
		l.closeThose(func(to string) bool { return to == at })
	}
	l.mu.Unlock()
}

// closeThose closes connections under whoever uses them. The lock is held.
func (l *led) closeThose(leadTo func(addr string) bool) {
	for c := range l.conns {
		if leadTo(c.RemoteAddr().String()) {
			delete(l.conns, c)
			_ = c.Conn.Close()
		}
	}
}

// ledConn is one data connection.
type ledConn struct {
	net.Conn
	led *led
}

func (c *ledConn) Close() error {
	c.led.mu.Lock()
	delete(c.led.conns, c)
	c.led.mu.Unlock()
	return c.Conn.Close()
}

// checkedConn is one whose health go-redis can look at before it uses it.
type checkedConn struct {
	*ledConn
	syscall.Conn
}
