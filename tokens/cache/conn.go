package cache

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// conn is the tracking connection to one master. Invalidations, heartbeats and notices share it, so
// they arrive in order. One goroutine reads, one writes.
type conn struct {
	redis  *Redis
	master master
	net    net.Conn
	in     *reader
	// probe is the command of each heartbeat that checks that the server is still the same master.
	probe []string
	out   chan request

	mu       sync.Mutex
	awaited  []awaited // the pending replies, in the order of their requests
	gateways gateways
	barrier  *barrier // the barrier in progress
	next     *barrier // the barrier to send after it

	// confirmed is the time at which the last answered heartbeat was sent. Guarded by Redis.mu.
	confirmed table.Instant
	// named is the time of the last query in which the Sentinels named this master. Guarded by
	// Redis.mu.
	named table.Instant
}

// request is a batch of commands to write, with one function per reply.
type request struct {
	commands [][]string
	replies  []func(m message, sent table.Instant) error
}

type awaited struct {
	reply func(m message, sent table.Instant) error
	sent  table.Instant
}

var (
	errTimeout         = errors.New("redis did not answer in time")
	errBacklog         = errors.New("the write queue is full: redis reads too slowly")
	errUnexpectedReply = errors.New("unexpected reply")
	errReplica         = errors.New("the server is a replica")
	errTopology        = errors.New("the masters of the cluster have changed")
)

// connect dials the master and returns after tracking and subscriptions are set up.
func (r *Redis) connect(ctx context.Context, m master) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.lease)
	defer cancel()
	nc, err := m.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dialling: %w", err)
	}
	c := &conn{
		redis:    r,
		master:   m,
		net:      nc,
		in:       newReader(nc),
		probe:    []string{"ROLE"},
		out:      make(chan request, 1024),
		gateways: gateways{lastHeartbeat: make(map[string]time.Time)},
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.handshake(ctx); err != nil {
		_ = nc.Close()
		return nil, err
	}
	if m.data != nil {
		if err := c.checkMaster(ctx); err != nil {
			_ = nc.Close()
			return nil, err
		}
	}
	if !stop() {
		_ = nc.Close()
		return nil, errTimeout
	}
	return c, nil
}

// handshake performs the handshake. It may skip pushes, because the cache is emptied before the
// first lease.
func (c *conn) handshake(ctx context.Context) error {
	hello := []string{"HELLO", "3"}
	user, password, err := c.master.credentials(ctx)
	if err != nil {
		return fmt.Errorf("reading the credentials: %w", err)
	}
	if user != "" || password != "" {
		if user == "" {
			user = "default"
		}
		hello = append(hello, "AUTH", user, password)
	}
	welcome, err := c.call(append(hello, "SETNAME", "gatepost-tracking")...)
	if err != nil {
		return fmt.Errorf("handshake (HELLO 3, needs Redis 6): %w", err)
	}
	if role := welcome.field("role"); role != "" && role != "master" {
		return errReplica
	}
	if _, err := c.call("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", tokens.RedisPrefix); err != nil {
		return fmt.Errorf("enabling invalidations (CLIENT TRACKING): %w", err)
	}
	if err := c.subscribe(broadcastChannel, gatewayChannel+c.redis.id); err != nil {
		return fmt.Errorf("subscribing to the other gateways (SUBSCRIBE): %w", err)
	}
	if c.master.node != "" {
		c.probe = []string{"CLUSTER", "NODES"}
	}
	reply, err := c.call(c.probe...)
	if err != nil && c.master.node == "" {
		// If an ACL denies ROLE, Sentinel still closes the connections of a demoted master.
		c.probe = []string{"PING"}
		reply, err = c.call(c.probe...)
	}
	if err != nil {
		return fmt.Errorf("querying the server's role (%s): %w", strings.Join(c.probe, " "), err)
	}
	c.gateways.since = time.Now()
	return c.checkProbe(reply)
}

// call sends a command and returns its reply. Only handshake uses it.
func (c *conn) call(args ...string) (message, error) {
	if _, err := c.net.Write(appendCommand(nil, args...)); err != nil {
		return message{}, err
	}
	for {
		m, err := c.in.read()
		if err != nil {
			return message{}, err
		}
		if m.kind != '>' {
			return m, m.err()
		}
	}
}

// subscribe subscribes to channels. Redis replies with one push per channel, or with an error.
func (c *conn) subscribe(channels ...string) error {
	if _, err := c.net.Write(appendCommand(nil, append([]string{"SUBSCRIBE"}, channels...)...)); err != nil {
		return err
	}
	for missing := len(channels); missing > 0; {
		m, err := c.in.read()
		if err != nil {
			return err
		}
		if m.is("subscribe", 2) {
			missing--
		} else if m.kind != '>' {
			return errors.Join(m.err(), errUnexpectedReply)
		}
	}
	return nil
}

// run reads, writes and, behind Sentinel, checks the master's name. It returns the first failure,
// or the context's error.
func (c *conn) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = c.net.Close() })
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { cancel(c.readLoop()) })
	all.Go(func() { cancel(c.writeLoop(ctx)) })
	if c.master.data != nil {
		all.Go(func() { cancel(c.watchMaster(ctx)) })
	}
	all.Wait()
	return context.Cause(ctx)
}

// readLoop handles the messages of Redis in order. Heartbeats are a quarter of a lease apart, so a
// connection that is silent for a whole lease is dead.
func (c *conn) readLoop() error {
	for {
		if err := c.net.SetReadDeadline(time.Now().Add(c.redis.lease)); err != nil {
			return err
		}
		m, err := c.in.read()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return errTimeout
			}
			return fmt.Errorf("reading: %w", err)
		}
		if m.kind == '>' {
			err = c.handlePush(m)
		} else {
			err = c.handleReply(m)
		}
		if err != nil {
			return err
		}
	}
}

// heartbeats is how many are sent during a lease. docs/operations.md, "A slow Redis", depends on it.
const heartbeats = 4

// writeLoop sends the heartbeats and the queued requests.
func (c *conn) writeLoop(ctx context.Context) error {
	beat := time.NewTicker(c.redis.lease / heartbeats)
	defer beat.Stop()
	if err := c.write(c.heartbeat()); err != nil {
		return err
	}
	for {
		var q request
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
			c.expireBarrier(time.Now())
			q = c.heartbeat()
		case q = <-c.out:
		}
		if err := c.write(q); err != nil {
			return err
		}
	}
}

func (c *conn) write(q request) error {
	now := table.Now() // read before the write, because the lease counts from here
	c.mu.Lock()
	for _, reply := range q.replies {
		c.awaited = append(c.awaited, awaited{reply, now})
	}
	c.mu.Unlock()
	var text []byte
	for _, command := range q.commands {
		text = appendCommand(text, command...)
	}
	if err := c.net.SetWriteDeadline(now.Wall.Add(c.redis.lease)); err != nil {
		return err
	}
	if _, err := c.net.Write(text); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}

// send queues a request for writeLoop. It does not block: the reader must not wait for the writer.
func (c *conn) send(q request) error {
	select {
	case c.out <- q:
		return nil
	default:
		return errBacklog
	}
}

// heartbeat announces this gateway and probes the server. The lease is extended after both replies.
func (c *conn) heartbeat() request {
	here := notice{"here", c.redis.id, c.master.node, 0}
	return request{
		commands: [][]string{{"PUBLISH", broadcastChannel, here.String()}, c.probe},
		replies: []func(message, table.Instant) error{
			mustSucceed,
			func(m message, sent table.Instant) error {
				if err := m.err(); err != nil {
					return err
				}
				if err := c.checkProbe(m); err != nil {
					return err
				}
				c.redis.confirm(c, sent)
				return nil
			},
		},
	}
}

func mustSucceed(m message, _ table.Instant) error { return m.err() }

// checkProbe returns an error if the server is no longer the master it was at the handshake.
func (c *conn) checkProbe(m message) error {
	switch {
	case c.master.node != "":
		return c.checkCluster(m.text)
	case c.probe[0] == "ROLE" && (len(m.items) == 0 || m.items[0].text != "master"):
		return errReplica
	}
	return nil
}

func (c *conn) checkCluster(nodes string) error {
	ids, myself := clusterMasters(nodes)
	if myself != c.master.node || ids != c.master.peers {
		return errTopology
	}
	return nil
}

func (c *conn) handleReply(m message) error {
	c.mu.Lock()
	if len(c.awaited) == 0 {
		c.mu.Unlock()
		return errUnexpectedReply
	}
	a := c.awaited[0]
	c.awaited = c.awaited[1:]
	c.mu.Unlock()
	return a.reply(m, a.sent)
}

// handlePush handles a push: an invalidation or a notice.
func (c *conn) handlePush(m message) error {
	switch {
	case m.is("invalidate", 2):
		return c.handleInvalidate(m.items[1])
	case m.is("message", 3):
		if n, ok := parseNotice(m.items[2].text); ok && n.node == c.master.node {
			return c.handleNotice(n)
		}
		return nil
	case m.is("invalidate", 0), m.is("tracking-redir-broken", 0):
		return errProtocol
	}
	return nil
}

// handleInvalidate reports the changed keys to the listener. A null array means all keys.
func (c *conn) handleInvalidate(keys message) error {
	if keys.null {
		c.redis.listener.InvalidateAll()
		return nil
	}
	if keys.kind != '*' {
		return errProtocol
	}
	for _, key := range keys.items {
		var h tokens.Hash
		text := strings.TrimPrefix(key.text, tokens.RedisPrefix)
		if len(text) != hex.EncodedLen(len(h)) {
			continue // not a token's key
		}
		if _, err := hex.Decode(h[:], []byte(text)); err == nil {
			c.redis.listener.Invalidate(h)
		}
	}
	return nil
}

// handleNotice handles a gateway's notice, including this gateway's own.
func (c *conn) handleNotice(n notice) error {
	switch n.verb {
	case "here":
		c.mu.Lock()
		c.gateways.record(n, time.Now())
		c.mu.Unlock()
	case "settle":
		if n.from == c.redis.id {
			c.startBarrier(n.number)
		}
		return c.acknowledge(n)
	case "settled":
		c.answerBarrier(n)
	}
	return nil
}

// acknowledge confirms that all earlier invalidations have arrived. It first makes one more round
// trip, which shows that Redis has sent them.
func (c *conn) acknowledge(n notice) error {
	settled := notice{"settled", c.redis.id, c.master.node, n.number}
	answer := request{
		commands: [][]string{{"PUBLISH", gatewayChannel + n.from, settled.String()}},
		replies:  []func(message, table.Instant) error{mustSucceed},
	}
	return c.send(request{
		commands: [][]string{{"PING"}},
		replies: []func(message, table.Instant) error{func(m message, _ table.Instant) error {
			if err := m.err(); err != nil {
				return err
			}
			return c.send(answer)
		}},
	})
}

// requestBarrier starts a barrier: every gateway is requested to confirm that it has received all
// earlier invalidations. done of the result is closed after the last confirmation, or never.
// Callers that arrive while a barrier is in progress share the next one.
func (c *conn) requestBarrier() *barrier {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = &barrier{number: c.redis.count.Add(1), done: make(chan struct{})}
	}
	s := c.next
	c.sendBarrier()
	return s
}

// sendBarrier sends the next barrier unless one is in progress. The caller holds the lock.
func (c *conn) sendBarrier() {
	if c.barrier != nil || c.next == nil {
		return
	}
	c.barrier, c.next = c.next, nil
	c.barrier.sent = time.Now()
	ask := notice{"settle", c.redis.id, c.master.node, c.barrier.number}
	_ = c.send(request{ // if this fails, the caller waits until the leases have expired
		commands: [][]string{{"PUBLISH", broadcastChannel, ask.String()}},
		replies:  []func(message, table.Instant) error{mustSucceed},
	})
}

// startBarrier records which gateways must answer. Every gateway that held a lease when the barrier
// was published has sent a heartbeat on this connection before.
func (c *conn) startBarrier(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.barrier == nil || c.barrier.number != number {
		return
	}
	if holders, ok := c.gateways.leaseHolders(time.Now(), c.redis.lease); ok {
		holders[c.redis.id] = true
		c.barrier.missing = holders
	}
}

func (c *conn) answerBarrier(n notice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.barrier == nil || c.barrier.number != n.number || !c.barrier.answered(n.from) {
		return
	}
	close(c.barrier.done)
	c.barrier = nil
	c.sendBarrier()
}

// expireBarrier abandons a barrier after a lease without all answers, and sends the next one.
func (c *conn) expireBarrier(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.barrier != nil && now.Sub(c.barrier.sent) > c.redis.lease {
		c.barrier = nil
		c.sendBarrier()
	}
}
