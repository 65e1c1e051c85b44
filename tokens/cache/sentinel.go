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

// Sentinels find the current master. *redisstore.Store implements it.
type Sentinels interface {
	// NamedMasters returns every server that an answering Sentinel names as the master. There are
	// several while the Sentinels disagree.
	NamedMasters(ctx context.Context) ([]string, error)
	// Dial connects to a server.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// failoverClient is the address of a go-redis client behind Sentinel.
const failoverClient = "FailoverClient"

var (
	errReplaced = errors.New("sentinel names another master")
	errDisagree = errors.New("the Sentinels name different masters")
	errMoved    = errors.New("look-ups reached a server that is not tracked")
)

// nameTimeout bounds one query of the Sentinels. Later answers do not count.
const nameTimeout = 250 * time.Millisecond

// query returns the masters that the Sentinels name.
func query(ctx context.Context, sentinels Sentinels) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	return sentinels.NamedMasters(ctx)
}

// named returns the one master that the Sentinels name.
func named(ctx context.Context, sentinels Sentinels) (string, error) {
	all, err := query(ctx, sentinels)
	switch {
	case err != nil:
		return "", err
	case len(all) != 1:
		return "", errors.Join(errDisagree, errors.New(strings.Join(all, ", ")))
	}
	return all[0], nil
}

// awaitAgreement waits until all Sentinels that answer name one master. A gateway whose Sentinel
// does not know of a fail-over yet looks tokens up at the former master, which misses revokes. It
// leaves that within a lease after its Sentinel knows. A tracked gateway need not wait, because its
// tracking has begun after an agreement.
func (r *Redis) awaitAgreement(ctx context.Context) error {
	for r.sentinels != nil {
		names, _ := query(ctx, r.sentinels) // none if no Sentinel answers, or there is none
		if len(names) < 2 {
			break
		}
		if err := sleep(ctx, r.lease/heartbeats); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// watchMaster checks with each heartbeat that the Sentinels still name the tracked master, because
// a replaced master may act as master for some seconds more. If they name another one, the tracking
// ends; if none answers, the lease expires.
func (c *conn) watchMaster(ctx context.Context) error {
	for {
		if err := c.checkMaster(ctx); errors.Is(err, errReplaced) {
			return err
		}
		if err := sleep(ctx, c.redis.lease/4); err != nil {
			return err
		}
	}
}

// checkMaster queries the Sentinels once and records the time of the query.
func (c *conn) checkMaster(ctx context.Context) error {
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

// dataConns holds the data connections of a client behind Sentinel. The lease covers only answers
// of the tracked server, so while it is held all data connections must lead there.
type dataConns struct {
	mu    sync.Mutex
	conns map[*dataConn]struct{}
	// at is the tracked server, and moved ends the tracking. Both are zero if nothing is tracked.
	at    string
	moved func()
}

// follow records all connections that client dials. The client must not have dialled before.
func follow(client *redis.Client) *dataConns {
	l := &dataConns{conns: make(map[*dataConn]struct{})}
	client.AddHook(l)
	return l
}

// DialHook ends the tracking before a connection to another server can be used.
func (l *dataConns) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := next(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if to, ok := nc.RemoteAddr().(*net.TCPAddr); ok && to.Port == 0 {
			return nc, nil // not connected; it fails on first use
		}
		c := &dataConn{Conn: nc, data: l}
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

// ProcessHook returns next unchanged.
func (l *dataConns) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook returns next unchanged.
func (l *dataConns) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// pin closes all connections to servers other than at. Before a new one can be used, moved is
// called, at most once and with the lock held.
func (l *dataConns) pin(at string, moved func()) {
	l.mu.Lock()
	l.at, l.moved = at, sync.OnceFunc(moved)
	l.closeMatching(func(to string) bool { return to != at })
	l.mu.Unlock()
}

// unpin ends what pin began. If the server was replaced, unpin also closes the connections to it,
// because go-redis may notice later.
func (l *dataConns) unpin(replaced bool) {
	l.mu.Lock()
	at := l.at
	l.at, l.moved = "", nil
	if replaced {
		l.closeMatching(func(to string) bool { return to == at })
	}
	l.mu.Unlock()
}

// closeMatching closes matching connections, even those in use. The caller holds the lock.
func (l *dataConns) closeMatching(leadTo func(addr string) bool) {
	for c := range l.conns {
		if leadTo(c.RemoteAddr().String()) {
			delete(l.conns, c)
			_ = c.Conn.Close()
		}
	}
}

// dataConn is one data connection.
type dataConn struct {
	net.Conn
	data *dataConns
}

func (c *dataConn) Close() error {
	c.data.mu.Lock()
	delete(c.data.conns, c)
	c.data.mu.Unlock()
	return c.Conn.Close()
}

// checkedConn lets go-redis check the connection's health before use.
type checkedConn struct {
	*dataConn
	syscall.Conn
}
