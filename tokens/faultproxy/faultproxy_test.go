package faultproxy

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo starts a server that sends back what it reads.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return listener.Addr().String()
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next n bytes, or the error.
func receive(c net.Conn, n int, within time.Duration) (string, error) {
	_ = c.SetReadDeadline(time.Now().Add(within))
	buffer := make([]byte, n)
	_, err := io.ReadFull(c, buffer)
	return string(buffer), err
}

const plenty = 5 * time.Minute

func mustReceive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	if got, err := receive(c, len(want), plenty); err != nil || got != want {
		t.Fatalf("received %q, %v; want %q", got, err, want)
	}
}

func mustReceiveNothing(t *testing.T, c net.Conn) {
	t.Helper()
	if got, err := receive(c, 1, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("received %q, %v; want nothing", got, err)
	}
}

func TestForwardsBothWays(t *testing.T) {
	c := dial(t, Start(t, echo(t)))
	send(t, c, "hello")
	mustReceive(t, c, "hello")
}

func TestDelayedBytesComeLaterInOrder(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	p.Delay(Down, 300*time.Millisecond)
	start := time.Now()
	send(t, c, "one")
	send(t, c, "two")
	mustReceive(t, c, "onetwo")
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Fatalf("the bytes arrived after %v, want at least 300ms", took)
	}
}

func TestHeldBytesArriveAfterHeal(t *testing.T) {
	for _, d := range []Direction{Up, Down} {
		p := Start(t, echo(t))
		c := dial(t, p)
		send(t, c, "before")
		mustReceive(t, c, "before")
		p.Hold(d)
		send(t, c, "held")
		mustReceiveNothing(t, c)
		p.Heal()
		mustReceive(t, c, "held")
	}
}

func TestHealResetsConnectionsThatLostBytes(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	send(t, c, "before")
	mustReceive(t, c, "before")
	p.Swallow(Down)
	send(t, c, "lost")
	mustReceiveNothing(t, c)
	p.Heal()
	if _, err := receive(c, 1, plenty); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection is open after lost bytes: %v", err)
	}
	c = dial(t, p)
	send(t, c, "anew")
	mustReceive(t, c, "anew")
}

func TestCutResetsConnections(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	send(t, c, "before")
	mustReceive(t, c, "before")
	p.Cut()
	if _, err := receive(c, 1, plenty); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection is open after a cut: %v", err)
	}
	c = dial(t, p)
	send(t, c, "anew")
	mustReceive(t, c, "anew")
}

// passes reports whether a new connection forwards data. A refused one may be reset before or after
// dial returns.
func passes(t *testing.T, p *Proxy) bool {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write([]byte("abc"))
	got, err := receive(c, 3, plenty)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a new connection is open but forwards nothing")
	}
	return err == nil && got == "abc"
}

func TestRefusedConnectionsEnd(t *testing.T) {
	p := Start(t, echo(t))
	p.Refuse()
	if passes(t, p) {
		t.Fatal("a refused connection forwards data")
	}
	p.Heal()
	c := dial(t, p)
	send(t, c, "anew")
	mustReceive(t, c, "anew")
}

func TestCutAfter(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		for _, d := range []Direction{Up, Down} {
			p := Start(t, echo(t))
			c, idle := dial(t, p), dial(t, p)
			send(t, idle, "x")
			if got, err := receive(idle, 1, plenty); err != nil {
				t.Fatalf("before the cut: %q, %v", got, err)
			}
			p.CutAfter(d, 2, refuse)
			for range 2 {
				send(t, c, "abc")
				if got, err := receive(c, 3, plenty); err != nil || got != "abc" {
					t.Fatalf("before the cut: %q, %v", got, err)
				}
			}
			send(t, c, "abc")
			for _, one := range []net.Conn{c, idle} {
				if got, err := receive(one, 1, plenty); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("after the cut: %q, %v", got, err)
				}
			}
			for healed := range 2 {
				if got := passes(t, p); got == (refuse && healed == 0) {
					t.Errorf("a new connection forwards data: %v, after %d heals", got, healed)
				}
				p.Heal()
			}
		}
	}
}
