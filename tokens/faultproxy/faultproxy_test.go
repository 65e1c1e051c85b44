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

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// hear returns the next n bytes, or what kept them from coming.
func hear(c net.Conn, n int, within time.Duration) (string, error) {
	_ = c.SetReadDeadline(time.Now().Add(within))
	buffer := make([]byte, n)
	_, err := io.ReadFull(c, buffer)
	return string(buffer), err
}

const plenty = 30 * time.Second

func mustHear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	if got, err := hear(c, len(want), plenty); err != nil || got != want {
		t.Fatalf("heard %q, %v; want %q", got, err, want)
	}
}

func mustHearNothing(t *testing.T, c net.Conn) {
	t.Helper()
	if got, err := hear(c, 1, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("heard %q, %v; want nothing", got, err)
	}
}

func TestForwardsBothWays(t *testing.T) {
	c := dial(t, Start(t, echo(t)))
	say(t, c, "hello")
	mustHear(t, c, "hello")
}

func TestDelayedBytesComeLaterInOrder(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	p.Delay(Down, 300*time.Millisecond)
	start := time.Now()
	say(t, c, "one")
	say(t, c, "two")
	mustHear(t, c, "onetwo")
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Fatalf("bytes came after %v, before their delay", took)
	}
}

func TestHeldBytesArriveAfterHeal(t *testing.T) {
	for _, d := range []Direction{Up, Down} {
		p := Start(t, echo(t))
		c := dial(t, p)
		say(t, c, "before")
		mustHear(t, c, "before")
		p.Hold(d)
		say(t, c, "held")
		mustHearNothing(t, c)
		p.Heal()
		mustHear(t, c, "held")
	}
}

func TestSwallowedBytesAreLostAndTheirConnectionIsResetByHeal(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	say(t, c, "before")
	mustHear(t, c, "before")
	p.Swallow(Down)
	say(t, c, "lost")
	mustHearNothing(t, c)
	p.Heal()
	if _, err := hear(c, 1, plenty); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("after losing bytes the connection goes on: %v", err)
	}
	c = dial(t, p)
	say(t, c, "anew")
	mustHear(t, c, "anew")
}

func TestCutEndsConnectionsAndTakesNewOnes(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	say(t, c, "before")
	mustHear(t, c, "before")
	p.Cut()
	if _, err := hear(c, 1, plenty); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("after a cut the connection goes on: %v", err)
	}
	c = dial(t, p)
	say(t, c, "anew")
	mustHear(t, c, "anew")
}

// passes says whether a new connection passes data. One that is refused may be reset before dial returns, or after.
func passes(t *testing.T, p *Proxy) bool {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write([]byte("abc"))
	got, err := hear(c, 3, plenty)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a new connection is open, and passes nothing")
	}
	return err == nil && got == "abc"
}

func TestRefusedConnectionsEnd(t *testing.T) {
	p := Start(t, echo(t))
	p.Refuse()
	if passes(t, p) {
		t.Fatal("a refused connection passes data")
	}
	p.Heal()
	c := dial(t, p)
	say(t, c, "anew")
	mustHear(t, c, "anew")
}

func TestCutAfterCutsInPlaceOfTheChunkAfterSoMany(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		for _, d := range []Direction{Up, Down} {
			p := Start(t, echo(t))
			c, idle := dial(t, p), dial(t, p)
			say(t, idle, "x")
			if got, err := hear(idle, 1, plenty); err != nil {
				t.Fatalf("before the cut: %q, %v", got, err)
			}
			p.CutAfter(d, 2, refuse)
			for range 2 {
				say(t, c, "abc")
				if got, err := hear(c, 3, plenty); err != nil || got != "abc" {
					t.Fatalf("before the cut: %q, %v", got, err)
				}
			}
			say(t, c, "abc")
			for _, one := range []net.Conn{c, idle} {
				if got, err := hear(one, 1, plenty); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("after the cut: %q, %v", got, err)
				}
			}
			for healed := range 2 {
				if got := passes(t, p); got == (refuse && healed == 0) {
					t.Errorf("a new connection passes data: %v, healed %d times", got, healed)
				}
				p.Heal()
			}
		}
	}
}
