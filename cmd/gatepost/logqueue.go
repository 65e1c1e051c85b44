package main

import (
	"bytes"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// logQueueBytes bounds the log lines that wait to be written: some thousands of lines.
	logQueueBytes = 1 << 20
	// logFlushTimeout bounds how long an exit waits for the last lines to be written.
	logFlushTimeout = time.Second
)

// logQueue is an io.Writer that never blocks. One goroutine writes the queued lines, so a pipe that nobody reads or
// a full disk delays no request. Lines beyond the bound, and lines that cannot be written, are dropped and counted.
type logQueue struct {
	out     io.Writer
	dropped atomic.Uint64 // lines
	wake    chan struct{} // holds one element if there is work for the writer
	done    chan struct{} // closed when the writer has ended

	mu     sync.Mutex
	lines  []byte // what waits to be written
	closed bool
}

// newLogQueue returns a queue in front of out. Close must be called.
func newLogQueue(out io.Writer) *logQueue {
	q := &logQueue{out: out, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

// Write queues one line. It always succeeds.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.lines) > 0 && len(q.lines)+len(line) > logQueueBytes {
		q.dropped.Add(1)
		return len(line), nil
	}
	q.lines = append(q.lines, line...)
	q.signal()
	return len(line), nil
}

// Close writes the queued lines and ends the queue. If they cannot be written within logFlushTimeout, it returns anyway.
func (q *logQueue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.signal()
	q.mu.Unlock()
	select {
	case <-q.done:
	case <-time.After(logFlushTimeout):
	}
	return nil
}

func (q *logQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default: // the writer has yet to take the last signal
	}
}

func (q *logQueue) run() {
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

// surviveBrokenLog makes a write to a standard error whose reader is gone an error. By default the runtime ends the
// process (os/signal, "SIGPIPE").
func surviveBrokenLog() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
