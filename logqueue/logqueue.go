// Package logqueue decides whether a log line waits to be written or is dropped: a log that nobody
// reads must not delay a request, and a client must not fill a disk.
package logqueue

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxBytes bounds the log lines that wait to be written: some thousands of lines.
	maxBytes = 1 << 20
	// flushTimeout bounds how long an exit waits for the last lines to be written.
	flushTimeout = time.Second
)

// Queue is an io.Writer that never blocks. One goroutine writes the queued lines, so a pipe that
// nobody reads or a full disk delays no request. Lines beyond the bound, and lines that cannot be
// written, are dropped and counted.
type Queue struct {
	out     io.Writer
	dropped atomic.Uint64 // lines
	wake    chan struct{} // holds one element if there is work for the writer
	done    chan struct{} // closed when the writer has ended

	mu     sync.Mutex
	lines  []byte // what waits to be written
	closed bool
}

// New returns a queue in front of out. Close must be called.
func New(out io.Writer) *Queue {
	q := &Queue{out: out, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

// Dropped returns how many lines were not written.
func (q *Queue) Dropped() uint64 { return q.dropped.Load() }

// Write queues one line. It always succeeds.
func (q *Queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.lines) > 0 && len(q.lines)+len(line) > maxBytes {
		q.dropped.Add(1)
		return len(line), nil
	}
	q.lines = append(q.lines, line...)
	q.signal()
	return len(line), nil
}

// Close writes the queued lines and ends the queue. If they cannot be written within flushTimeout,
// it returns anyway.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.signal()
	q.mu.Unlock()
	select {
	case <-q.done:
	case <-time.After(flushTimeout):
	}
	return nil
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default: // the writer has yet to take the last signal
	}
}

func (q *Queue) run() {
	defer close(q.done)
	var lines []byte
	for range q.wake {
		q.mu.Lock()
		lines, q.lines = q.lines, lines[:0] // the two buffers take turns
		closed := q.closed
		q.mu.Unlock()
		if n, err := q.out.Write(lines); err != nil {
			q.dropped.Add(uint64(bytes.Count(lines[n:], []byte("\n"))))
		}
		if closed {
			return
		}
	}
}
