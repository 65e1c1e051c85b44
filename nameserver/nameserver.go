// Package nameserver decides which addresses Envoy gets if a name of an upstream is said not to exist: for a moment
// the last ones.
package nameserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Moment is how long a name server's last addresses of a name are repeated at most if the server then replies that
// there are none. After that, the reply passes. It must be short: a network may give the address of a stopped container
// to another one.
const Moment = 10 * time.Second

const (
	// maxConnections and maxLookups bound what the programs of this machine can take.
	maxConnections = 256
	maxLookups     = 1024
	// idle closes connections on which nothing is asked. Envoy closes its own when it has all replies.
	idle = 30 * time.Second
	// replyTimeout is how long a client may take to read a reply.
	replyTimeout = 5 * time.Second
	// acceptPause is how long no connection is accepted if that has failed, since the process has too many open files.
	acceptPause = 100 * time.Millisecond
)

// Config is what a Server needs. The zero value is ready to use.
type Config struct {
	// Servers returns the addresses of the name servers, the preferred one first. Nil: those of the system.
	Servers func() []netip.AddrPort
	// Now is the clock of the moment. Nil: [time.Now].
	Now func() time.Time
}

type server struct {
	servers func() []netip.AddrPort
	memory  memory
	lookups chan struct{}
	open    open
}

// Serve answers DNS questions for addresses over TCP, by asking other name servers, until ctx ends, and closes the
// listener. If the name servers are silent, it is silent too. Clients search domains and read /etc/hosts themselves.
func Serve(ctx context.Context, listener net.Listener, config Config) error {
	s := &server{servers: config.Servers, memory: memory{now: config.Now}, lookups: make(chan struct{}, maxLookups)}
	if s.servers == nil {
		s.servers = systemServers
	}
	if s.memory.now == nil {
		s.memory.now = time.Now
	}
	defer listener.Close()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var all sync.WaitGroup
	defer all.Wait()
	connections, cancel := context.WithCancel(ctx) // it may end after the listener is closed
	defer cancel()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting a connection for names: %w", err)
		case err != nil:
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		s.open.add(conn)
		all.Go(func() {
			defer s.open.remove(conn)
			s.serve(connections, conn)
		})
	}
}

// open are the open connections, the oldest first.
type open struct {
	mu    sync.Mutex
	conns []net.Conn
}

// add adds a connection. One more than maxConnections closes the oldest: otherwise a program that holds so many would
// keep Envoy out.
func (o *open) add(conn net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.conns) == maxConnections {
		o.conns[0].Close()
		o.conns = slices.Delete(o.conns, 0, 1)
	}
	o.conns = append(o.conns, conn)
}

func (o *open) remove(conn net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conns = slices.DeleteFunc(o.conns, func(c net.Conn) bool { return c == conn })
}

// serve answers the questions of a connection as replies to them come. A question takes one of the lookups until its
// reply is written. Without one, nothing more is read before that: a client that reads no replies gets no further.
func (s *server) serve(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	var pending sync.WaitGroup
	defer pending.Wait()
	defer cancel()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	writing := make(chan struct{}, 1) // has the one that writes
	write := func(reply []byte) {
		writing <- struct{}{}
		defer func() { <-writing }()
		_ = conn.SetWriteDeadline(time.Now().Add(replyTimeout))
		if writeMessage(conn, reply) != nil {
			cancel() // a part of the reply may have been sent
		}
	}
	for {
		_ = conn.SetReadDeadline(time.Now().Add(idle))
		message, err := readMessage(conn)
		if err != nil {
			return
		}
		query, err := parseQuery(message)
		if err != nil {
			return
		}
		select {
		case s.lookups <- struct{}{}:
			pending.Go(func() {
				defer func() { <-s.lookups }()
				if reply := s.answer(ctx, query); reply != nil {
					write(reply)
				}
			})
		default:
			write(failure(query, dnsmessage.RCodeServerFailure))
		}
	}
}

// A query is a question of a client.
type query struct {
	id       uint16
	question dnsmessage.Question
}

var errNoQuery = errors.New("not a query with one question")

func parseQuery(message []byte) (query, error) {
	var p dnsmessage.Parser
	header, err := p.Start(message)
	if err != nil {
		return query{}, err
	}
	questions, err := p.AllQuestions()
	if err != nil {
		return query{}, err
	}
	if header.Response || header.OpCode != 0 || len(questions) != 1 {
		return query{}, errNoQuery
	}
	return query{header.ID, questions[0]}, nil
}

// answer returns the reply to a query. It is nil if no name server replies: the client then asks again.
func (s *server) answer(ctx context.Context, q query) []byte {
	if t := q.question.Type; t != dnsmessage.TypeA && t != dnsmessage.TypeAAAA || q.question.Class != dnsmessage.ClassINET {
		return failure(q, dnsmessage.RCodeNotImplemented)
	}
	reply, err := forward(ctx, s.servers(), q.question)
	var timeout net.Error
	switch {
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		return nil
	case err != nil:
		return failure(q, dnsmessage.RCodeServerFailure)
	}
	packed, err := reply.Pack()
	if err != nil {
		return failure(q, dnsmessage.RCodeServerFailure)
	}
	packed = s.memory.amend(q.question, packed, len(reply.Answers) > 0)
	binary.BigEndian.PutUint16(packed, q.id)
	return packed
}

// failure is a reply that makes the client keep what it has.
func failure(q query, code dnsmessage.RCode) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.id, Response: true, RecursionDesired: true, RecursionAvailable: true, RCode: code},
		Questions: []dnsmessage.Question{q.question},
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// readMessage reads a message with its length in front (RFC 1035, section 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}

func writeMessage(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}
