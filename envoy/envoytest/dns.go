package envoytest

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// NameServer is a DNS server on loopback. Names do not exist until Resolve or Silence is called.
type NameServer struct {
	t    testing.TB
	conn net.PacketConn

	mu      sync.Mutex
	names   map[string]netip.Addr // lower case, without the final dot; the zero address means no reply
	waiting map[string][]question // unanswered questions
	asked   map[string]int        // questions for IPv4 addresses
}

type question struct {
	message dnsmessage.Message
	from    net.Addr
}

// StartNameServer starts a DNS server that stops with the test.
func StartNameServer(t testing.TB) *NameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &NameServer{t: t, conn: conn, names: map[string]netip.Addr{}, waiting: map[string][]question{}, asked: map[string]int{}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.serve()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return s
}

// Addr returns the server's address as ip:port.
func (s *NameServer) Addr() string { return s.conn.LocalAddr().String() }

// Silence leaves questions for a name unanswered until Resolve is called.
func (s *NameServer) Silence(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = netip.Addr{}
}

// Remove makes a name not exist.
func (s *NameServer) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.names, name)
}

// Resolve sets the IPv4 address of a name and answers the pending questions for it.
func (s *NameServer) Resolve(name, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = netip.MustParseAddr(address)
	for _, q := range s.waiting[name] {
		s.reply(q)
	}
	delete(s.waiting, name)
}

// Waits reports whether a question for a name is unanswered.
func (s *NameServer) Waits(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting[name]) > 0
}

// Asked returns how many times the IPv4 address of a name was asked for.
func (s *NameServer) Asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name]
}

func (s *NameServer) serve() {
	buffer := make([]byte, 4096)
	for {
		n, from, err := s.conn.ReadFrom(buffer)
		if err != nil {
			return // the socket was closed
		}
		q := question{from: from}
		if q.message.Unpack(buffer[:n]) == nil && len(q.message.Questions) == 1 {
			s.mu.Lock()
			if q.message.Questions[0].Type == dnsmessage.TypeA {
				s.asked[nameOf(q)]++
			}
			s.reply(q)
			s.mu.Unlock()
		}
	}
}

func nameOf(q question) string {
	return strings.ToLower(strings.TrimSuffix(q.message.Questions[0].Name.String(), "."))
}

// reply answers a question or keeps it. The caller holds the lock.
func (s *NameServer) reply(q question) {
	m := q.message
	asked := m.Questions[0]
	name := nameOf(q)
	address, known := s.names[name]
	if known && !address.IsValid() {
		s.waiting[name] = append(s.waiting[name], q)
		return
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	switch {
	case !known:
		m.RCode = dnsmessage.RCodeNameError
	case asked.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: asked.Name, Type: asked.Type, Class: asked.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: address.As4()},
		}}
	}
	packed, err := m.Pack()
	if err != nil {
		s.t.Errorf("packing a DNS reply: %v", err)
		return
	}
	_, _ = s.conn.WriteTo(packed, q.from) // UDP can lose the reply anyway
}
