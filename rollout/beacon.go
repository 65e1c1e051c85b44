package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"gatepost/definitions"
	"gatepost/xds"
)

// askTimeout bounds one question.
const askTimeout = time.Second

// maxAnswer is more than any version is long.
const maxAnswer = 256

// asker makes a connection for each question: one that was kept could be held by a worker of an Envoy that is on its
// way out. No proxy is used: it is this Envoy that is asked.
var asker = &http.Client{
	Timeout:       askTimeout,
	Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// askVersion returns the version that the Envoy at an address (host:port) serves.
func askVersion(ctx context.Context, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+definitions.VersionPath, nil)
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", address, err)
	}
	answer, err := asker.Do(request)
	if err != nil {
		return "", fmt.Errorf("asking for the version: %w", err) // the address is in it
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", address, err)
	}
	var version string
	if answer.StatusCode != http.StatusOK || json.Unmarshal(body, &version) != nil || version == "" {
		return "", fmt.Errorf("asking %s for its version: it answers %d, and with no version", address, answer.StatusCode)
	}
	return version, nil
}

// errElsewhere: an Envoy listens on an address that only its own machine can reach.
var errElsewhere = errors.New("it listens on the loopback of another machine")

// beacon returns the address at which an Envoy whose listener is on listen can be asked. If the Envoy names no
// host, that follows from the address of its stream: one that is not an IP address is a Unix socket on this machine.
func beacon(listen netip.AddrPort, e xds.Peer) (string, error) {
	at, port := listen.Addr(), strconv.Itoa(int(listen.Port()))
	if e.Host != "" {
		return net.JoinHostPort(e.Host, port), nil
	}
	from, remote := remoteOf(e.Address)
	switch {
	case at.IsLoopback() && remote:
		return "", errElsewhere
	case at.IsUnspecified() && remote:
		return net.JoinHostPort(from.String(), port), nil
	case at.IsUnspecified():
		return net.JoinHostPort("127.0.0.1", port), nil // also of ::, which takes IPv4 too
	}
	return net.JoinHostPort(at.String(), port), nil
}

// remoteOf is the address of a peer on another machine.
func remoteOf(peer string) (netip.Addr, bool) {
	parsed, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Addr{}, false
	}
	from := parsed.Addr().Unmap()
	if from.IsLoopback() {
		return from, false
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return from, true
	}
	for _, one := range own {
		if prefix, ok := one.(*net.IPNet); ok && prefix.IP.String() == from.WithZone("").String() {
			return from, false
		}
	}
	return from, true
}
