// Package faultproxy decides how TCP connections between a client and a server fail in tests. Bytes
// are delayed, in one direction or both, or lost. Connections are reset, refused, or half-open.
//
// Bytes are never altered or reordered. A fault applies to the whole proxy. If the connections of
// one client have to fail separately, give it several proxies.
package faultproxy

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Direction is the direction of bytes.
type Direction int

const (
	// Up is from the client to the server.
	Up Direction = iota
	// Down is from the server to the client.
	Down
)

// Proxy forwards connections to one target. Its methods are safe for concurrent use.
type Proxy struct {
	// Addr is its listening address on loopback, as host:port.
	Addr string

	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	ways    [2]way
	refuse  bool
	cutting *cutting // nil: no cut is planned
	closed  bool
	changed chan struct{} // closed and replaced when anything above changes
	links   map[*link]bool
}

// way is the fault of one direction.
type way struct {
	delay   time.Duration
	held    bool
	swallow bool
}

// cutting is a planned cut after a number of chunks in a direction.
type cutting struct {
	direction Direction
	left      int
	refuse    bool
}

// link is one connection, with its client and its server side.
type link struct {
	client, server net.Conn
	once           sync.Once
	done           chan struct{} // closed when either side has ended
	lost           bool          // bytes were swallowed; guarded by Proxy.mu
}

// Start listens on a free port and forwards to target. It stops at the end of the test.
func Start(t testing.TB, target string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("starting a fault proxy: %v", err)
	}
	p := &Proxy{
		Addr:     listener.Addr().String(),
		target:   target,
		listener: listener,
		changed:  make(chan struct{}),
		links:    make(map[*link]bool),
	}
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Delay delays the bytes of a direction, including those in transit. Their order does not change.
func (p *Proxy) Delay(d Direction, by time.Duration) { p.change(func() { p.ways[d].delay = by }) }

// Hold keeps the bytes of the directions back until Heal, like a partition that ends before TCP
// times out. A connection can be opened meanwhile, because the kernel accepts it; the peer does not
// see it.
func (p *Proxy) Hold(directions ...Direction) {
	p.change(func() {
		for _, d := range directions {
			p.ways[d].held = true
		}
	})
}

// Swallow drops the bytes of the directions, so connections are half-open. Heal resets the
// connections that lost bytes.
func (p *Proxy) Swallow(directions ...Direction) {
	p.change(func() {
		for _, d := range directions {
			p.ways[d].swallow = true
		}
	})
}

// Refuse makes the proxy reset new connections.
func (p *Proxy) Refuse() { p.change(func() { p.refuse = true }) }

// Heal ends every fault. Held bytes arrive.
func (p *Proxy) Heal() {
	p.change(func() { p.ways, p.refuse, p.cutting = [2]way{}, false, nil })
	p.cut(func(l *link) bool { return l.lost })
}

// Cut resets all connections. New ones are accepted.
func (p *Proxy) Cut() { p.cut(func(*link) bool { return true }) }

// CutAfter resets all connections, and with refuse also new ones, after n more chunks in a
// direction. A chunk is the result of one read. In a request-response protocol it is one message.
func (p *Proxy) CutAfter(d Direction, n int, refuse bool) {
	p.change(func() { p.cutting = &cutting{d, n, refuse} })
}

// Connections returns the number of open connections.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

func (p *Proxy) change(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) cut(which func(*link) bool) {
	p.mu.Lock()
	var doomed []*link
	for l := range p.links {
		if which(l) {
			doomed = append(doomed, l)
		}
	}
	p.mu.Unlock()
	for _, l := range doomed {
		l.reset()
	}
}

func (p *Proxy) close() {
	p.change(func() { p.closed = true })
	_ = p.listener.Close()
	p.Cut()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.connect(client) })
	}
}

// connect forwards one connection until either side has ended.
func (p *Proxy) connect(client net.Conn) {
	server, err := net.DialTimeout("tcp", p.target, time.Minute)
	if err != nil {
		reset(client)
		return
	}
	l := &link{client: client, server: server, done: make(chan struct{})}
	p.mu.Lock()
	refused := p.refuse || p.closed
	if !refused {
		p.links[l] = true
	}
	p.mu.Unlock()
	if refused {
		l.reset()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.forward(l, Up, client, server) })
	both.Go(func() { p.forward(l, Down, server, client) })
	both.Wait()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// chunk is the result of one read.
type chunk struct {
	bytes []byte
	at    time.Time
}

// forward reads from one side at once and writes to the other when the bytes are due.
func (p *Proxy) forward(l *link, d Direction, from, to net.Conn) {
	defer l.end()
	chunks := make(chan chunk, 1024)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(chunks)
		for {
			buffer := make([]byte, 16<<10)
			n, err := from.Read(buffer)
			if n > 0 {
				select {
				case chunks <- chunk{buffer[:n], time.Now()}:
				case <-l.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for c := range chunks {
		if !p.await(l, d, c.at) {
			continue
		}
		if p.cutsNow(d) {
			break
		}
		if _, err := to.Write(c.bytes); err != nil {
			break
		}
	}
	l.end()
	reading.Wait()
}

// cutsNow counts a chunk that is due, and cuts if it is the planned one.
func (p *Proxy) cutsNow(d Direction) bool {
	p.mu.Lock()
	c := p.cutting
	due := c != nil && c.direction == d && c.left == 0
	if due {
		p.cutting, p.refuse = nil, p.refuse || c.refuse
	} else if c != nil && c.direction == d {
		c.left--
	}
	p.mu.Unlock()
	if due {
		p.Cut()
	}
	return due
}

// await returns true when bytes that were read at the time at are due, or false if they are lost.
func (p *Proxy) await(l *link, d Direction, at time.Time) bool {
	for {
		p.mu.Lock()
		w, changed := p.ways[d], p.changed
		if w.swallow {
			l.lost = true
		}
		lost := l.lost
		p.mu.Unlock()
		if lost { // nothing may follow a gap; Heal will reset the connection
			return false
		}
		var timer <-chan time.Time
		if !w.held {
			wait := time.Until(at.Add(w.delay))
			if wait <= 0 {
				return true
			}
			timer = time.After(wait)
		}
		select {
		case <-timer:
		case <-changed:
		case <-l.done:
			return false
		}
	}
}

// end closes both sides.
func (l *link) end() {
	l.once.Do(func() {
		close(l.done)
		_ = l.client.Close()
		_ = l.server.Close()
	})
}

// reset closes both sides with a reset.
func (l *link) reset() {
	linger(l.client)
	linger(l.server)
	l.end()
}

func reset(c net.Conn) {
	linger(c)
	_ = c.Close()
}

func linger(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
}
