// Package testport decides which TCP port the server of a test uses, if it needs a fixed number.
package testport

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Ports are allocated below the ephemeral port range of Linux (32768 and up), so that outgoing
// connections of other tests cannot occupy them.
const first, last = 20_000, 32_000

// New returns a free TCP port of loopback. It stays reserved until the test ends, also for other
// test processes.
func New(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := first + rand.IntN(last-first)
		// The UDP port of the same number, which is otherwise unused, marks the port as reserved.
		mark, err := net.ListenPacket("udp4", address("127.0.0.1", port))
		if err != nil {
			continue
		}
		tcp, err := net.Listen("tcp4", address("0.0.0.0", port))
		if err != nil {
			mark.Close()
			continue
		}
		tcp.Close()
		t.Cleanup(func() { mark.Close() })
		return port
	}
	t.Fatal("no free port on loopback")
	return 0
}

// Addr returns a free loopback address, allocated as by New: 127.0.0.1:20123.
func Addr(t testing.TB) string {
	t.Helper()
	return address("127.0.0.1", New(t))
}

func address(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
