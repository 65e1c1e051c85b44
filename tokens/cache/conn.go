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

// conn is the tracking connection to one master, its lines of call-backs, heartbeats and notices all in one order.
// One goroutine reads, one writes.
type conn struct {
	redis  *Redis
	master master
	net    net.Conn
	in     *reader
	// probe is the command that shows with each heartbeat that the server is still the master it was.
	probe []string
	out   chan request

	mu       sync.Mutex
	awaited  []awaited // replies in the order of their requests
	gateways gateways
	settling *settling // the one that is under way
	next     *settling // the one that goes out after it

	// confirmed is when the last answered heartbeat was sent. Under Redis.mu.
	confirmed table.Instant
	// named is when the Sentinels were last asked and named this master. Under Redis.mu.
	named table.Instant
}

// request is commands to be written at once, and what is done with the reply of each.
type request struct {
	commands [][]string
	replies  []func(m message, sent table.Instant) error
}

type awaited struct {
	reply func(m message, sent table.Instant) error
	sent  table.Instant
}

var (
	errSilent   = errors.New("redis did not answer in time")
	errBehind   = errors.New("more to write than redis takes")
	errUnasked  = errors.New("a reply that was not asked for")
	errReplica  = errors.New("the server is a replica")
	errTopology = errors.New("the masters of the cluster have changed")
)

// connect dials the master, and returns when it tracks and listens.
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
		gateways: gateways{heard: make(map[string]time.Time)},
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.greet(ctx); err != nil {
		_ = nc.Close()
		return nil, err
	}
	if m.led != nil {
		if err := c.checkName(ctx); err != nil {
			_ = nc.Close()
			return nil, err
		}
	}
	if !stop() {
		_ = nc.Close()
		return nil, errSilent
	}
	return c, nil
}

// greet opens the conversation. What is pushed meanwhile may be passed over: everything is forgotten before the first lease.
func (c *conn) greet(ctx context.Context) error {
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
		return fmt.Errorf("greeting (HELLO 3, as of Redis 6): %w", err)
	}
	if role := welcome.field("role"); role != "" && role != "master" {
		return errReplica
	}
	if _, err := c.call("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", c.redis.prefix); err != nil {
		return fmt.Errorf("asking for call-backs (CLIENT TRACKING): %w", err)
	}
	if err := c.subscribe(everyone, personal+c.redis.id); err != nil {
		return fmt.Errorf("listening to the other gateways (SUBSCRIBE): %w", err)
	}
	if c.master.node != "" {
		c.probe = []string{"CLUSTER", "NODES"}
	}
	reply, err := c.call(c.probe...)
	if err != nil && c.master.node == "" {
		// Whom an ACL denies ROLE is told of a deposed master by Sentinel, which closes its connections.
		c.probe = []string{"PING"}
		reply, err = c.call(c.probe...)
	}
	if err != nil {
		return fmt.Errorf("asking for the server's role (%s): %w", strings.Join(c.probe, " "), err)
	}
	c.gateways.since = time.Now()
	return c.checkProbe(reply)
}

// call sends a command and returns its reply. Only greet uses it.
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

// subscribe listens to channels. It is answered by pushes alone, one for each, or by an error.
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
			return errors.Join(m.err(), errUnasked)
		}
	}
	return nil
}

// run reads, writes and, behind Sentinel, asks for the master's name until one of them fails or the context ends; it returns why.
func (c *conn) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = c.net.Close() })
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { cancel(c.readLoop()) })
	all.Go(func() { cancel(c.writeLoop(ctx)) })
	if c.master.led != nil {
		all.Go(func() { cancel(c.watchName(ctx)) })
	}
	all.Wait()
	return context.Cause(ctx)
}

// readLoop takes what Redis sends, in its order. With a heartbeat each quarter of a lease, a
// connection that is silent for a whole one is dead.
func (c *conn) readLoop() error {
	for {
		if err := c.net.SetReadDeadline(time.Now().Add(c.redis.lease)); err != nil {
			return err
		}
		m, err := c.in.read()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return errSilent
			}
			return fmt.Errorf("reading: %w", err)
		}
		if m.kind == '>' {
			err = c.pushed(m)
		} else {
			err = c.replied(m)
		}
		if err != nil {
			return err
		}
	}
}

// writeLoop sends the heartbeats and what the others ask for.
func (c *conn) writeLoop(ctx context.Context) error {
	beat := time.NewTicker(c.redis.lease / 4)
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
			c.giveUpSettling(time.Now())
			q = c.heartbeat()
		case q = <-c.out:
		}
		if err := c.write(q); err != nil {
			return err
		}
	}
}

func (c *conn) write(q request) error {
	now := table.Now() // before the write: a lease counts from here
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

// send hands a request to the writer. It does not block: who reads must not wait for who writes.
func (c *conn) send(q request) error {
	select {
	case c.out <- q:
		return nil
	default:
		return errBehind
	}
}

// heartbeat announces this gateway and probes the server; when both are answered the lease is extended.
func (c *conn) heartbeat() request {
	here := notice{"here", c.redis.id, c.master.node, 0}
	return request{
		commands: [][]string{{"PUBLISH", everyone, here.String()}, c.probe},
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

// checkProbe says whether the server is the master that it was taken for.
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

func (c *conn) replied(m message) error {
	c.mu.Lock()
	if len(c.awaited) == 0 {
		c.mu.Unlock()
		return errUnasked
	}
	a := c.awaited[0]
	c.awaited = c.awaited[1:]
	c.mu.Unlock()
	return a.reply(m, a.sent)
}

// pushed takes a call-back or a notice.
func (c *conn) pushed(m message) error {
	switch {
	case m.is("invalidate", 2):
		return c.calledBack(m.items[1])
	case m.is("message", 3):
		if n, ok := parseNotice(m.items[2].text); ok && n.node == c.master.node {
			return c.noticed(n)
		}
		return nil
	case m.is("invalidate", 0), m.is("tracking-redir-broken", 0):
		return errProtocol
	}
	return nil
}

// calledBack tells the listener which keys changed; null is all of them.
func (c *conn) calledBack(keys message) error {
	if keys.null {
		c.redis.listener.InvalidateAll()
		return nil
	}
	if keys.kind != '*' {
		return errProtocol
	}
	for _, key := range keys.items {
		var h tokens.Hash
		text := strings.TrimPrefix(key.text, c.redis.prefix)
		if len(text) != hex.EncodedLen(len(h)) {
			continue // no token's key
		}
		if _, err := hex.Decode(h[:], []byte(text)); err == nil {
			c.redis.listener.Invalidate(h)
		}
	}
	return nil
}

// noticed takes what a gateway says, this one's own included.
func (c *conn) noticed(n notice) error {
	switch n.verb {
	case "here":
		c.mu.Lock()
		c.gateways.hear(n, time.Now())
		c.mu.Unlock()
	case "settle":
		if n.from == c.redis.id {
			c.beginSettling(n.number)
		}
		return c.acknowledge(n)
	case "settled":
		c.answerSettling(n)
	}
	return nil
}

// acknowledge answers that all call-backs of before have been heard, when one more round trip has shown that
// Redis has sent them.
func (c *conn) acknowledge(n notice) error {
	settled := notice{"settled", c.redis.id, c.master.node, n.number}
	answer := request{
		commands: [][]string{{"PUBLISH", personal + n.from, settled.String()}},
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

// settle asks every gateway whether it has heard all that was called back until now. The answer's done is closed when all
// have said so; it may never be. Those who ask while one is under way share the next.
func (c *conn) settle() *settling {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = &settling{number: c.redis.count.Add(1), done: make(chan struct{})}
	}
	s := c.next
	c.sendNext()
	return s
}

// sendNext sends the next settling unless one is under way. The lock is held.
func (c *conn) sendNext() {
	if c.settling != nil || c.next == nil {
		return
	}
	c.settling, c.next = c.next, nil
	c.settling.sent = time.Now()
	ask := notice{"settle", c.redis.id, c.master.node, c.settling.number}
	_ = c.send(request{ // where it cannot be sent it is waited out
		commands: [][]string{{"PUBLISH", everyone, ask.String()}},
		replies:  []func(message, table.Instant) error{mustSucceed},
	})
}

// beginSettling takes down who has to answer. All who held a lease when the settling was published have been
// heard by now, on this connection.
func (c *conn) beginSettling(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settling == nil || c.settling.number != number {
		return
	}
	if principals, ok := c.gateways.principals(time.Now(), c.redis.lease); ok {
		principals[c.redis.id] = true
		c.settling.missing = principals
	}
}

func (c *conn) answerSettling(n notice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settling == nil || c.settling.number != n.number || !c.settling.answered(n.from) {
		return
	}
	close(c.settling.done)
	c.settling = nil
	c.sendNext()
}

// giveUpSettling lets the next one go where somebody does not answer.
func (c *conn) giveUpSettling(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settling != nil && now.Sub(c.settling.sent) > c.redis.lease {
		c.settling = nil
		c.sendNext()
	}
}
