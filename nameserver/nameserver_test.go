package nameserver

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"gatepost/envoy/envoytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A client asks over one connection.
type client struct {
	t    *testing.T
	conn net.Conn
	id   uint16
}

// serveNames has Serve ask these name servers, and connects to it.
func serveNames(t *testing.T, now func() time.Time, servers ...string) *client {
	t.Helper()
	return serveNamesAt(t, listen(t), now, servers...)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func serveNamesAt(t *testing.T, listener net.Listener, now func() time.Time, servers ...string) *client {
	t.Helper()
	var addresses []netip.AddrPort
	for _, s := range servers {
		addresses = append(addresses, netip.MustParseAddrPort(s))
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	config := Config{Servers: func() []netip.AddrPort { return addresses }, Now: now}
	go func() { ended <- Serve(ctx, listener, config) }()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &client{t: t, conn: conn}
}

func (c *client) send(message []byte) {
	c.t.Helper()
	if err := writeMessage(c.conn, message); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) receive() dnsmessage.Message {
	c.t.Helper()
	message, err := readMessage(c.conn)
	if err != nil {
		c.t.Fatal(err)
	}
	var reply dnsmessage.Message
	if err := reply.Unpack(message); err != nil {
		c.t.Fatal(err)
	}
	return reply
}

func questionFor(name string, kind dnsmessage.Type) dnsmessage.Question {
	return dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}
}

// question sends a question and returns its id.
func (c *client) question(name string, kind dnsmessage.Type) uint16 {
	c.t.Helper()
	c.id++
	query, err := newQuery(c.id, questionFor(name, kind), true)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(query)
	return c.id
}

// ask returns the addresses that the reply to a question has, or its code.
func (c *client) ask(name string, kind dnsmessage.Type) string {
	c.t.Helper()
	id := c.question(name, kind)
	reply := c.receive()
	if q := reply.Questions; reply.ID != id || !reply.Response || len(q) != 1 || q[0] != questionFor(name, kind) {
		c.t.Fatalf("the reply to %d, %s is %v", id, name, reply.GoString())
	}
	if reply.RCode != dnsmessage.RCodeSuccess {
		return reply.RCode.String()
	}
	var addresses []string
	for _, a := range reply.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			addresses = append(addresses, netip.AddrFrom4(body.A).String())
		case *dnsmessage.AAAAResource:
			addresses = append(addresses, netip.AddrFrom16(body.AAAA).String())
		}
	}
	return fmt.Sprint(addresses)
}

func (c *client) wants(want, name string, kind dnsmessage.Type) {
	c.t.Helper()
	if got := c.ask(name, kind); got != want {
		c.t.Errorf("%s, %v: %s, want %s", name, kind, got, want)
	}
}

const nameError, failed = "RCodeNameError", "RCodeServerFailure"

func TestANameThatIsSaidNotToExistKeepsItsAddressesForAMoment(t *testing.T) {
	t.Parallel()
	names := envoytest.StartNameServer(t)
	names.Resolve("a.test", "192.0.2.1")
	now := time.Now()
	c := serveNames(t, func() time.Time { return now }, names.Addr())
	c.wants("[192.0.2.1]", "a.test.", dnsmessage.TypeA)
	names.Remove("a.test")
	now = now.Add(Moment - 1)
	c.wants("[192.0.2.1]", "a.test.", dnsmessage.TypeA)
	c.wants(nameError, "a.test.", dnsmessage.TypeAAAA) // which it never had
	now = now.Add(1)
	c.wants(nameError, "a.test.", dnsmessage.TypeA)
	names.Resolve("a.test", "192.0.2.2")
	c.wants("[192.0.2.2]", "a.test.", dnsmessage.TypeA)
	c.wants("[]", "a.test.", dnsmessage.TypeAAAA)
	names.Resolve("a.test", "192.0.2.3")
	c.wants("[192.0.2.3]", "a.test.", dnsmessage.TypeA)
}

func TestWhichNameServerReplies(t *testing.T) {
	t.Parallel()
	names := envoytest.StartNameServer(t)
	names.Resolve("a.test", "192.0.2.1")
	silent := startUDP(t, func([]byte) [][]byte { return nil })
	failing := startUDP(t, func(query []byte) [][]byte { return [][]byte{coded(query, dnsmessage.RCodeServerFailure)} })
	forging := startUDP(t, func(query []byte) [][]byte {
		id, question := slices.Clone(query), slices.Clone(query)
		id[0] ^= 1
		question[13] ^= 1 // the first letter of the name
		return [][]byte{nil, query, query[:12], coded(id, dnsmessage.RCodeNameError), coded(question, dnsmessage.RCodeNameError)}
	})
	refusing := envoytest.Addr(t)
	old := func(reply func(query []byte) []byte) string { // knows no EDNS
		return startUDP(t, func(query []byte) [][]byte {
			if additional := query[11]; additional > 0 {
				return [][]byte{reply(query)}
			}
			return [][]byte{withAddresses(t, query, 1)}
		})
	}
	withoutEDNS := old(func(query []byte) []byte { return coded(query, dnsmessage.RCodeFormatError) })
	withoutQuestion := old(func(query []byte) []byte {
		return append(coded(query, dnsmessage.RCodeFormatError)[:4], make([]byte, 8)...)
	})
	notImplemented := old(func(query []byte) []byte { return coded(query, dnsmessage.RCodeNotImplemented) })
	broken := startUDP(t, func(query []byte) [][]byte { return [][]byte{coded(query, dnsmessage.RCodeFormatError)} })
	for _, c := range []struct {
		what    string
		servers []string
		want    string
	}{
		{"the only one", []string{names.Addr()}, "[192.0.2.1]"},
		{"the second of a silent one", []string{silent, names.Addr()}, "[192.0.2.1]"},
		{"the second of one that fails", []string{failing, names.Addr()}, "[192.0.2.1]"},
		{"the third of some that are not there", []string{refusing, refusing, names.Addr()}, "[192.0.2.1]"},
		{"one after messages that are no reply", []string{forging, names.Addr()}, "[192.0.2.1]"},
		{"one that refuses EDNS", []string{withoutEDNS}, "[192.0.2.1]"},
		{"one that refuses EDNS, without the question", []string{withoutQuestion}, "[192.0.2.1]"},
		{"one that has not implemented EDNS", []string{notImplemented}, "[192.0.2.1]"},
		{"the second of one that refuses every query", []string{broken, names.Addr()}, "[192.0.2.1]"},
		{"none: all fail", []string{failing, failing}, failed},
		{"none: none is there", []string{refusing}, failed},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			serveNames(t, nil, c.servers...).wants(c.want, "a.test.", dnsmessage.TypeA)
		})
	}
}

func TestASilentNameServerDelaysNoOtherName(t *testing.T) {
	t.Parallel()
	names := envoytest.StartNameServer(t)
	names.Resolve("a.test", "192.0.2.1")
	names.Silence("silent.test")
	c := serveNames(t, nil, names.Addr())
	waiting := c.question("silent.test.", dnsmessage.TypeA)
	c.wants("[192.0.2.1]", "a.test.", dnsmessage.TypeA)
	names.Resolve("silent.test", "192.0.2.2")
	if reply := c.receive(); reply.ID != waiting {
		t.Errorf("a reply to %d, want one to %d", reply.ID, waiting)
	}
}

func TestALongReplyComesByTCP(t *testing.T) {
	t.Parallel()
	const addresses = 1000
	server := startUDP(t, func(query []byte) [][]byte {
		reply := coded(query, dnsmessage.RCodeSuccess)
		reply[2] |= 2 // truncated
		return [][]byte{reply}
	})
	listener, err := net.Listen("tcp", server)
	if err != nil {
		t.Skipf("the port of a test is taken for TCP: %v", err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		_ = writeMessage(conn, withAddresses(t, query, addresses)) // otherwise the client gets no reply
	}()
	c := serveNames(t, nil, server)
	c.question("a.test.", dnsmessage.TypeA)
	if got := len(c.receive().Answers); got != addresses {
		t.Errorf("%d addresses, want %d", got, addresses)
	}
}

func TestOnlyQuestionsForAddressesAreForwarded(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	server := startUDP(t, func([]byte) [][]byte { asked.Add(1); return nil })
	c := serveNames(t, nil, server)
	c.wants("RCodeNotImplemented", "a.test.", dnsmessage.TypeTXT)
	c.send([]byte("GET / HTTP/1.1"))
	if message, err := readMessage(c.conn); err == nil {
		t.Errorf("a reply to no query: %q", message)
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the name server was asked %d times", n)
	}
}

// A client that reads no replies takes a bounded number of goroutines, and its connection ends.
func TestQuestionsOfAClientThatReadsNoReplyAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		query, err := newQuery(1, questionFor("a.test.", dnsmessage.TypeTXT), true)
		if err != nil {
			t.Fatal(err)
		}
		s := &server{lookups: make(chan struct{}, 2)}
		here, there := net.Pipe()
		go s.serve(t.Context(), there)
		sent := 0
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for sent < 100 && writeMessage(here, query) == nil {
				sent++
			}
		}()
		synctest.Wait()
		if want := cap(s.lookups) + 1; sent != want {
			t.Errorf("%d questions were taken, want %d", sent, want)
		}
		<-ended
	})
}

// tooMany is a listener that fails once, as if the process had too many open files.
type tooMany struct {
	net.Listener
	failed atomic.Bool
}

func (l *tooMany) Accept() (net.Conn, error) {
	if l.failed.CompareAndSwap(false, true) {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestTooManyOpenFilesEndNothing(t *testing.T) {
	t.Parallel()
	names := envoytest.StartNameServer(t)
	names.Resolve("a.test", "192.0.2.1")
	serveNamesAt(t, &tooMany{Listener: listen(t)}, nil, names.Addr()).wants("[192.0.2.1]", "a.test.", dnsmessage.TypeA)
}

func TestTheMemoryIsBounded(t *testing.T) {
	now := time.Now()
	m := memory{now: func() time.Time { return now }}
	fill := func(from, to int) {
		for i := from; i < to; i++ {
			m.amend(questionFor(fmt.Sprintf("n%d.test.", i), dnsmessage.TypeA), []byte("addresses"), true)
		}
	}
	kept := func(i int) bool {
		return string(m.amend(questionFor(fmt.Sprintf("n%d.test.", i), dnsmessage.TypeA), []byte("none"), false)) == "addresses"
	}
	fill(0, 2*maxRemembered)
	if len(m.replies) != maxRemembered || !kept(0) || kept(maxRemembered) {
		t.Errorf("%d replies are kept, want the first %d", len(m.replies), maxRemembered)
	}
	m.amend(questionFor("n0.test.", dnsmessage.TypeA), make([]byte, maxReply+1), true)
	if kept(0) {
		t.Error("a large reply has not replaced the former one")
	}
	now = now.Add(Moment)
	fill(2*maxRemembered, 2*maxRemembered+2)
	if len(m.replies) != 2 || kept(1) || !kept(2*maxRemembered) {
		t.Errorf("%d replies are kept, want the last 2", len(m.replies))
	}
}

func TestNameServersOfResolvConf(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "[127.0.0.1:53]",
		"search a.test\nnameserver": "[127.0.0.1:53]",
		"# nameserver 192.0.2.9\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # b\nnameserver fe80::1%eth0\nnameserver x\n": "[192.0.2.1:53 [2001:db8::1]:53 [fe80::1%eth0]:53]",
	} {
		if got := fmt.Sprint(parseServers(text)); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// FuzzMessages has a name server send any reply, and a client any query.
func FuzzMessages(f *testing.F) {
	q := questionFor("a.test.", dnsmessage.TypeA)
	query, err := newQuery(1, q, true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(query)
	f.Add(coded(query, dnsmessage.RCodeNameError))
	f.Add(append(coded(query, dnsmessage.RCodeFormatError)[:4], make([]byte, 8)...))
	f.Add(withAddresses(f, query, 2))
	f.Fuzz(func(t *testing.T, message []byte) {
		if got, err := parseQuery(message); err == nil {
			if _, err := newQuery(got.id, got.question, true); err != nil {
				t.Errorf("a question that cannot be forwarded: %v", err)
			}
		}
		id := uint16(0)
		if len(message) > 1 {
			id = binary.BigEndian.Uint16(message)
		}
		reply := parseReply(message, id, q)
		if reply == nil {
			return
		}
		if len(reply.Questions) != 1 || reply.Questions[0] != q {
			t.Errorf("a reply to %v", reply.Questions)
		}
		packed, err := reply.Pack()
		if err != nil {
			return // the client is sent a failure
		}
		var again dnsmessage.Message
		if err := again.Unpack(packed); err != nil {
			t.Errorf("a reply that the client cannot read: %v", err)
		}
		for _, a := range again.Answers {
			if kind := a.Header.Type; kind != dnsmessage.TypeA && kind != dnsmessage.TypeCNAME {
				t.Errorf("an answer of the type %v", kind)
			}
		}
	})
}

// startUDP starts a name server that sends these messages for each query.
func startUDP(t *testing.T, replies func(query []byte) [][]byte) (address string) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buffer := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return // it was closed
			}
			for _, reply := range replies(buffer[:n]) {
				_, _ = conn.WriteTo(reply, from) // UDP can lose the reply anyway
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return conn.LocalAddr().String()
}

// coded is a reply without answers.
func coded(query []byte, code dnsmessage.RCode) []byte {
	reply := slices.Clone(query)
	reply[2] |= 0x80
	reply[3] = byte(code)
	return reply
}

func withAddresses(t testing.TB, query []byte, n int) []byte {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		t.Fatal(err)
	}
	m.Response, m.Additionals = true, nil
	for range n {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
		})
	}
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// another returns a client on a connection of its own, which has looked up a.test.
func (c *client) another() *client {
	c.t.Helper()
	conn, err := net.Dial("tcp", c.conn.RemoteAddr().String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	other := &client{t: c.t, conn: conn}
	other.wants("[192.0.2.1]", "a.test.", dnsmessage.TypeA)
	return other
}

// TestConnectionsThatEndAreClosed: Envoy opens one for its questions, and closes it when it has all replies.
func TestConnectionsThatEndAreClosed(t *testing.T) {
	t.Parallel()
	names := envoytest.StartNameServer(t)
	names.Resolve("a.test", "192.0.2.1")
	c := serveNames(t, nil, names.Addr())
	for range 2 * maxConnections {
		conn := c.another().conn
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil {
			t.Fatalf("after the last reply: %q, %v", rest, err)
		}
		conn.Close()
	}
}

// TestConnectionsThatStayOpenKeepNobodyOut: every program of this machine can open them.
func TestConnectionsThatStayOpenKeepNobodyOut(t *testing.T) {
	t.Parallel()
	names := envoytest.StartNameServer(t)
	names.Resolve("a.test", "192.0.2.1")
	c := serveNames(t, nil, names.Addr())
	for range 2 * maxConnections {
		c.another()
	}
}

// TestServeEndsWithoutAnError: the listener is closed for the end of the context, and that is no error. Other contexts
// that end with it give the closing time to come first.
func TestServeEndsWithoutAnError(t *testing.T) {
	for range 100 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- Serve(ctx, listener, Config{}) }()
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			context.AfterFunc(ctx, func() {})
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}
