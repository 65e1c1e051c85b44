package xds

import (
	"context"
	"net"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// trustedPeer reports whether a peer is connected by a Unix socket or has shown a valid client certificate.
func trustedPeer(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return false
	}
	secured, isTLS := p.AuthInfo.(credentials.TLSInfo)
	return p.Addr.Network() == "unix" || isTLS && len(secured.State.VerifiedChains) > 0
}

// HostMetadata is the key of the node metadata that names the host of an Envoy's listener. Gatepost sends requests
// there, so it is read only from peers on a Unix socket or with a client certificate.
const HostMetadata = "gatepost.host"

// maxHost is the longest host name of DNS.
const maxHost = 253

func hostOf(node *corev3.Node) string {
	host := node.GetMetadata().GetFields()[HostMetadata].GetStringValue()
	if len(host) > maxHost {
		return ""
	}
	return host
}

// The bounds of what a peer can make Gatepost keep and log.
const (
	maxNode   = 128
	maxReason = 16 << 10 // Envoy names each service that it rejects
	maxLogged = 4 << 10  // of the reason; the status has all of it
	// maxStreams is how many streams one peer may have open: one for each of its Envoys, and lost ones that are not closed
	// yet.
	maxStreams = 32
)

// bounded returns at most so many bytes of a peer's text, in valid UTF-8.
func bounded(text string, most int) string {
	if len(text) > most {
		text = text[:most] + "…"
	}
	return strings.ToValidUTF8(text, "?")
}

// peerHost returns the IP address of a peer; "" for a Unix socket.
func peerHost(ctx context.Context) string {
	host, _, err := net.SplitHostPort(peerAddress(ctx))
	if err != nil {
		return ""
	}
	return host
}

func peerAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
