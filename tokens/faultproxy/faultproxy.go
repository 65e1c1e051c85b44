// Package faultproxy stands between a client and a server in tests and does to their TCP connections what networks
// do: bytes come late, in one direction only, or not at all; connections are reset, refused, or half-open.
//
// Bytes are never altered or reordered. The faults are the whole proxy's; where the connections of one client are
// to fail apart, it is given several proxies.
package faultproxy

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Direction is one of the two ways that bytes go.
type Direction int

const (
	// Up is from the client to the server.
	Up Direction = iota
	// Down is from the server to the client.
	Down
)

// Proxy forwards connections to one target. Its methods may be called at once from several goroutines.
type Proxy struct {
	// Addr is where it listens on loopback, as host:port.
	Addr string

	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	ways    [2]way
	refuse  bool
	cutting *cutting // nil: nothing is to be cut
	closed  bool
	changed chan struct{} // closed, and made anew, when anything above changes
	links   map[*link]bool
}

// way is what befalls the bytes of one direction.
type way struct {
	delay   time.Duration
	held    bool
	swallow bool
}

// cutting is a cut that is to come, once so many chunks have passed in a direction.
type cutting struct {
	direction Direction
	left      int
	refuse    bool
}

// link is one connection: the client's half and the server's.
type link struct {
	client, server net.Conn
	once           sync.Once
	done           chan struct{} // closed when either half has ended
	lost           bool          // bytes of it were swallowed; under Proxy.mu
}

// Start listens on a free port and forwards to target. It ends with the test, and waits for its goroutines.
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

// Delay has the bytes of a direction arrive by that much later, those on their way included. The order stays.
func (p *Proxy) Delay(d Direction, by time.Duration) { p.change(func() { p.ways[d].delay = by }) }

// Hold keeps the bytes of the directions back until Heal, as a partition does that ends before TCP gives up. A connection can be
// opened meanwhile: the kernel does that, and the peer knows nothing of it.
func (p *Proxy) Hold(directions ...Direction) {
	p.change(func() {
		for _, d := range directions {
			p.ways[d].held = true
		}
	})
}

// Swallow loses the bytes of the directions for ever: the connection is half-open. After Heal the connections that lost any are reset.
func (p *Proxy) Swallow(directions ...Direction) {
	p.change(func() {
		for _, d := range directions {
			p.ways[d].swallow = true
		}
	})
}

// Refuse has new connections reset at once.
func (p *Proxy) Refuse() { p.change(func() { p.refuse = true }) }

// Heal ends every fault. What was held arrives.
func (p *Proxy) Heal() {
	p.change(func() { p.ways, p.refuse, p.cutting = [2]way{}, false, nil })
	p.cut(func(l *link) bool { return l.lost })
}

// Cut resets all connections. New ones are taken.
func (p *Proxy) Cut() { p.cut(func(*link) bool { return true }) }

// CutAfter resets all connections, and with refuse those to come, in place of passing on what follows the next n chunks in
// a direction. A chunk is what one read returns: of a protocol of questions and answers, in turn, one of them.
func (p *Proxy) CutAfter(d Direction, n int, refuse bool) {
	p.change(func() { p.cutting = &cutting{d, n, refuse} })
}

// Connections returns how many are open.
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

// connect forwards one connection until either half has ended.
func (p *Proxy) connect(client net.Conn) {
	server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
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

// chunk is bytes that were read at a time.
type chunk struct {
	bytes []byte
	at    time.Time
}

// forward reads from one half at once, and writes to the other when it is time.
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

// cutsNow counts a chunk that is about to go on, and cuts if it is the one to be cut at.
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

// await returns when bytes that were read at the time at may go on, or false where they are lost.
func (p *Proxy) await(l *link, d Direction, at time.Time) bool {
	for {
		p.mu.Lock()
		w, changed := p.ways[d], p.changed
		if w.swallow {
			l.lost = true
		}
		lost := l.lost
		p.mu.Unlock()
		if lost { // nothing comes after a gap: Heal is about to reset it
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

// end closes both halves.
func (l *link) end() {
	l.once.Do(func() {
		close(l.done)
		_ = l.client.Close()
		_ = l.server.Close()
	})
}

// reset closes both halves so that the peers see a reset.
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
