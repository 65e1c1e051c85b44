package redisstore

import (
	"context"
	"sync"
	"time"

	"gatepost/redisconn"

	"github.com/redis/go-redis/v9"
)

const (
	// batchSize is the maximum number of commands in a pipeline, so also the number of callers that
	// a broken connection affects.
	batchSize = 64
	// batchWait is how long a command waits for the pipelines before it. Then another pipeline
	// is started, up to maxPipelines, because the earlier ones may hang.
	batchWait    = 100 * time.Millisecond
	maxPipelines = 8
)

// batcher sends the commands of concurrent callers together. Commands that arrive while a pipeline
// is in progress go into the next one, with one write and one read for all. A single command is
// sent at once. If a pipeline hangs, later commands wait for batchWait, unless all pipelines hang.
// A batcher is safe for concurrent use.
type batcher struct {
	client  redis.UniversalClient
	timeout time.Duration // of a pipeline
	maxWait time.Duration

	mu      sync.Mutex
	waiting []*pendingCommand
	running int // the number of goroutines that send pipelines
}

func newBatcher(conn *redisconn.Conn) *batcher {
	return &batcher{client: conn.Client(), timeout: conn.CallTimeout(), maxWait: batchWait}
}

// pendingCommand is one caller's command.
type pendingCommand struct {
	ctx   context.Context
	cmd   redis.Cmder
	taken bool          // taken into a pipeline; guarded by the batcher's lock
	done  chan struct{} // closed when cmd has its answer or its error
}

// process runs a command in Redis and returns its error, or the context's cause if that ends first.
// In that case Redis may still run the command, and the caller must not read cmd.
func (c *batcher) process(ctx context.Context, cmd redis.Cmder) error {
	p := &pendingCommand{ctx: ctx, cmd: cmd, done: make(chan struct{})}
	c.mu.Lock()
	c.waiting = append(c.waiting, p)
	if c.running == 0 {
		c.startPipeline()
	}
	c.mu.Unlock()
	maxWait := time.NewTimer(c.maxWait)
	defer maxWait.Stop()
	for {
		select {
		case <-p.done:
			return cmd.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-maxWait.C:
			c.mu.Lock()
			if !p.taken && c.running < maxPipelines {
				c.startPipeline()
			}
			c.mu.Unlock()
		}
	}
}

// startPipeline starts another goroutine that sends pipelines. The caller holds the lock.
func (c *batcher) startPipeline() {
	c.running++
	go c.run()
}

// run sends pipelines until no command waits.
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
		c.waiting = nil // releases the sent commands
	}
	for _, p := range next {
		p.taken = true
	}
	if n == 0 {
		c.running--
	}
	return next
}

// send sends one pipeline. It ignores the callers' deadlines: a caller past its deadline has
// returned.
func (c *batcher) send(batch []*pendingCommand) {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	pipe := c.client.Pipeline()
	for _, p := range batch {
		if over := p.ctx.Err(); over != nil {
			p.cmd.SetErr(over) // no caller is left to use the result
			continue
		}
		_ = pipe.Process(ctx, p.cmd)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for _, p := range batch {
		close(p.done)
	}
}
