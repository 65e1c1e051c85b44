package redisstore

import (
	"context"
	"sync"
	"time"

	"gatepost/redisconn"

	"github.com/redis/go-redis/v9"
)

const (
	// batchSize is how many commands go together at most, and so how many callers feel that a connection breaks.
	batchSize = 64
	// batchPatience is how long a command waits for the pipelines before it. Then they are taken for ones that hang, and
	// another is begun beside them, maxPipelines at most.
	batchPatience = 100 * time.Millisecond
	maxPipelines  = 8
)

// batcher sends the commands of many callers together: what comes while a pipeline is under way goes with the next, in
// one write and one read for all of them. Who comes alone is sent at once, and who comes while a pipeline hangs waits
// for batchPatience at most, as long as not all hang. It may be used by many goroutines.
type batcher struct {
	client   redis.UniversalClient
	timeout  time.Duration // of a pipeline
	patience time.Duration

	mu       sync.Mutex
	waiting  []*pendingCommand
	underway int // goroutines that send pipelines
}

func newBatcher(conn *redisconn.Conn) *batcher {
	return &batcher{client: conn.Client(), timeout: conn.CallTimeout(), patience: batchPatience}
}

// pendingCommand is one caller's command.
type pendingCommand struct {
	ctx  context.Context
	cmd  redis.Cmder
	gone bool          // it waits no longer; under the batcher's lock
	done chan struct{} // :: closed when cmd has its answer or its error
}

// process has Redis carry out a command, and returns its error, or the context's where that ends before; then the
// command may be carried out yet, and must not be looked at.
func (c *batcher) process(ctx context.Context, cmd redis.Cmder) error {
	p := &pendingCommand{ctx: ctx, cmd: cmd, done: make(chan struct{})}
	c.mu.Lock()
	c.waiting = append(c.waiting, p)
	if c.underway == 0 {
		c.begin()
	}
	c.mu.Unlock()
	patience := time.NewTimer(c.patience)
	defer patience.Stop()
	for {
		select {
		case <-p.done:
			return cmd.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-patience.C:
			c.mu.Lock()
			if !p.gone && c.underway < maxPipelines {
				c.begin()
			}
			c.mu.Unlock()
		}
	}
}

// begin has one goroutine more send pipelines. The lock is held.
func (c *batcher) begin() {
	c.underway++
	go c.run()
}

// run sends one pipeline after another until nobody waits.
func (c *batcher) run() {
	for next := c.next(); len(next) > 0; next = c.next() {
		c.send(next)
	}
}

func (c *batcher) next() []*pendingCommand {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.waiting), batchSize)
	next := c.waiting[:n:n]
	c.waiting = c.waiting[n:]
	if len(c.waiting) == 0 {
		c.waiting = nil // what has been sent is not kept by it
	}
	for _, p := range next {
		p.gone = true
	}
	if n == 0 {
		c.underway--
	}
	return next
}

// send sends one pipeline. The deadlines of those in it are not its own: who cannot wait any longer has gone by then.
func (c *batcher) send(together []*pendingCommand) {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	pipe := c.client.Pipeline()
	for _, p := range together {
		if over := p.ctx.Err(); over != nil {
			p.cmd.SetErr(over) // nobody is there for what it would bring about
			continue
		}
		_ = pipe.Process(ctx, p.cmd)
	}
	_, _ = pipe.Exec(ctx) // each has its own error
	for _, p := range together {
		close(p.done)
	}
}
