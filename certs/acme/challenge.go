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

	"gatepost/convention"
)

// A CA validates with a few connections at once, and a handshake takes it less than a second.
const (
	maxValidations    = 64
	validationTimeout = 10 * time.Second
)

// ServeHTTP answers HTTP-01, and TLS-ALPN-01 in a connection that Envoy has opened by CONNECT, for each gateway that
// shares the storage. It answers everything else with 404.
func (m *Manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect && r.Host == convention.ACMEAuthority {
		m.serveConnect(w, r)
		return
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	// A stranger's request does not reach the storage, unless it is for a name of the settings.
	if slices.Contains(m.Domains, strings.ToLower(host)) {
		if _, issuer, err := m.answering(r.Context()); err == nil && issuer.HandleHTTPChallenge(w, r) {
			m.answered(strings.ToLower(host), convention.ACMEHTTP01, r.URL.Path)
			return
		}
	}
	http.NotFound(w, r)
}

// answered logs that a challenge for a name was answered, once.
func (m *Manager) answered(name, kind, challenge string) {
	d := m.domains[slices.Index(m.Domains, name)]
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.answered == challenge {
		return
	}
	d.answered = challenge
	m.Logger.Info("a challenge of the CA was answered", "certificate", name, "type", kind, convention.EventCertificateChallenged.Attr())
}

// serveConnect takes over the connection of a request.
func (m *Manager) serveConnect(w http.ResponseWriter, r *http.Request) {
	select {
	case m.validations <- struct{}{}:
		defer func() { <-m.validations }()
	default:
		http.Error(w, "too many validations at once", http.StatusServiceUnavailable)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the connection cannot be taken over", http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")); err == nil {
		m.handshake(r.Context(), conn)
	}
}

// serveLoopback answers TLS-ALPN-01 on a loopback port until ctx ends.
func (m *Manager) serveLoopback(ctx context.Context, listener net.Listener) {
	listener = netutil.LimitListener(listener, maxValidations)
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var answering sync.WaitGroup
	defer answering.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		answering.Go(func() {
			defer conn.Close()
			m.handshake(ctx, conn)
		})
	}
}

// handshake answers TLS-ALPN-01: a handshake is all that there is to it. The CA reports what is wrong.
func (m *Manager) handshake(ctx context.Context, conn net.Conn) {
	if conn.SetDeadline(time.Now().Add(validationTimeout)) != nil {
		return
	}
	_ = tls.Server(conn, &tls.Config{
		NextProtos: []string{convention.ACMEProtocol},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !slices.Equal(hello.SupportedProtos, []string{convention.ACMEProtocol}) || !slices.Contains(m.Domains, hello.ServerName) {
				return nil, errors.New("this is not a challenge of ACME")
			}
			config, _, err := m.answering(hello.Context())
			if err != nil {
				return nil, err
			}
			certificate, err := config.GetCertificateWithContext(hello.Context(), hello)
			if err == nil {
				m.answered(hello.ServerName, convention.ACMETLSALPN01, string(certificate.Certificate[0]))
			}
			return certificate, err
		},
	}).HandshakeContext(ctx)
}
