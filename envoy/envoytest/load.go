package envoytest

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// loadPause is between two requests of a client of Load. Without one, the clients take the processors from what they
// load.
const loadPause = 4 * time.Millisecond

// Load is clients that send requests until Stop is called or the test ends. Each has one request under way.
type Load struct {
	t       testing.TB
	sent    atomic.Int64
	done    chan struct{}
	clients sync.WaitGroup
	end     func()
}

// StartLoad starts one client for each function, which sends a request. An error fails the test and ends its client.
func StartLoad(t testing.TB, send ...func() error) *Load {
	l := &Load{t: t, done: make(chan struct{})}
	l.end = sync.OnceFunc(func() {
		close(l.done)
		l.clients.Wait()
	})
	t.Cleanup(l.end)
	for _, one := range send {
		l.clients.Go(func() { l.run(one) })
	}
	return l
}

func (l *Load) run(send func() error) {
	for {
		if err := send(); err != nil {
			l.t.Errorf("request %d of the load: %v", l.sent.Load(), err)
			return
		}
		l.sent.Add(1)
		select {
		case <-l.done:
			return
		case <-time.After(loadPause):
		}
	}
}

// Goes waits until n more requests have succeeded, or one has failed.
func (l *Load) Goes(n int64) {
	l.t.Helper()
	most := l.sent.Load() + n
	Eventually(l.t, "requests of the load", func() bool { return l.sent.Load() >= most || l.t.Failed() })
}

// Stop ends the load, after at least one request of each client, and returns how many requests have succeeded.
func (l *Load) Stop() (requests int64) {
	l.end()
	return l.sent.Load()
}
