package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

// ChallengePath is the path below which HTTP-01 is answered.
const ChallengePath = "/.well-known/acme-challenge/"

// alpnProtocol is the protocol of TLS-ALPN-01.
const alpnProtocol = "acme-tls/1"

// A CA validates with a few connections at once, and a handshake takes it less than a second.
const (
	maxValidations    = 64
	validationTimeout = 10 * time.Second
)

// ServeHTTP answers HTTP-01 for each gateway that shares the storage, and everything else with 404.
func (m *Manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	// A stranger's request does not reach the storage, unless it is for a name of the settings.
	if slices.Contains(m.Domains, strings.ToLower(host)) {
		if _, err := m.asking(); err == nil {
			m.mu.Lock()
			issuer := m.issuer
			m.mu.Unlock()
			if issuer.HandleHTTPChallenge(w, r) {
				return
			}
		}
	}
	http.NotFound(w, r)
}

// serveALPN answers TLS-ALPN-01 for each gateway that shares the storage until ctx ends: a handshake is all that there
// is to it.
func (m *Manager) serveALPN(ctx context.Context, listener net.Listener) {
	listener = netutil.LimitListener(listener, maxValidations)
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	config := &tls.Config{
		NextProtos: []string{alpnProtocol},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !slices.Equal(hello.SupportedProtos, []string{alpnProtocol}) || !slices.Contains(m.Domains, hello.ServerName) {
				return nil, errors.New("this is not a challenge of ACME")
			}
			config, err := m.asking()
			if err != nil {
				return nil, err
			}
			return config.GetCertificateWithContext(hello.Context(), hello)
		},
	}
	var answering sync.WaitGroup
	defer answering.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		answering.Go(func() {
			defer conn.Close()
			if conn.SetDeadline(time.Now().Add(validationTimeout)) == nil {
				_ = tls.Server(conn, config).HandshakeContext(ctx) // the CA reports what is wrong
			}
		})
	}
}
