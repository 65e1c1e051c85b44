// Package testport decides which port the server of a test uses, if it needs a fixed number.
package testport

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
	"time"
)

// Ports are allocated below the ephemeral port range of Linux (32768 and up), so that outgoing
// connections of other tests cannot occupy them.
const first, last = 20_000, 32_000

// New returns a port that is free for TCP and UDP on every address. It stays reserved until the test ends, also for
// other test processes.
func New(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := first + rand.IntN(last-first)
		mark, err := reserve(strconv.Itoa(port))
		if err != nil {
			continue
		}
		if !free(port) {
			mark.Close()
			continue
		}
		t.Cleanup(func() { mark.Close() })
		return port
	}
	t.Fatal("no free port on loopback")
	return 0
}

// Reserve waits until no other test uses a thing of this machine, such as a port of a fixed number,
// and reserves it until this test ends. The tests of all processes wait for each other.
func Reserve(t testing.TB, thing string) {
	t.Helper()
	mark, err := reserve(thing)
	for ; err != nil; mark, err = reserve(thing) {
		time.Sleep(50 * time.Millisecond)
	}
	t.Cleanup(func() { mark.Close() })
}

// reserve marks a thing as reserved by an abstract Unix socket. It has no file, and ends with the process.
func reserve(thing string) (mark net.Listener, err error) {
	return net.Listen("unix", "@gatepost-testport-"+thing)
}

// free reports whether nothing listens on a port.
func free(port int) bool {
	tcp, err := net.Listen("tcp4", address("0.0.0.0", port))
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp4", address("0.0.0.0", port))
	if err != nil {
		return false
	}
	return udp.Close() == nil
}

// Addr returns an address of loopback, allocated as by New: 127.0.0.1:20123.
func Addr(t testing.TB) string {
	t.Helper()
	return address("127.0.0.1", New(t))
}

func address(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
