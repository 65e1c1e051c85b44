package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"gatepost/envoy"
	"gatepost/regularfile"
)

// readEvery limits how often the files are read, because every client can start a handshake.
const readEvery = time.Second

// mutualTLS is TLS in which both sides show a certificate, from a folder of files. They are read
// again at a handshake, so that renewed ones are used without a restart.
type mutualTLS struct {
	dir    string
	log    *slog.Logger
	now    func() time.Time
	failed rate.Sometimes

	mu     sync.Mutex
	last   *tls.Config // what was read last
	lastAt time.Time   // when reading was last tried
}

// newMutualTLS returns an error if the files cannot be used.
func newMutualTLS(dir string, log *slog.Logger, now func() time.Time) (*mutualTLS, error) {
	m := &mutualTLS{dir: dir, log: log, now: now, lastAt: now(), failed: rate.Sometimes{Interval: time.Minute}}
	config, err := m.read()
	if err != nil {
		return nil, fmt.Errorf("reading --grpc-tls: %w", err)
	}
	m.last = config
	return m, nil
}

// current returns what is in the files, or was a second ago, or what was in them before they became
// unusable.
func (m *mutualTLS) current() *tls.Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if now.Sub(m.lastAt) < readEvery {
		return m.last
	}
	m.lastAt = now
	config, err := m.read()
	if err != nil {
		m.failed.Do(func() { m.log.Error("reading --grpc-tls failed, keeping the previous certificate", "error", err) })
		return m.last
	}
	m.last = config
	return config
}

func (m *mutualTLS) read() (*tls.Config, error) {
	chain, certErr := regularfile.Read(filepath.Join(m.dir, envoy.TLSCert))
	key, keyErr := regularfile.Read(filepath.Join(m.dir, envoy.TLSKey))
	path := filepath.Join(m.dir, envoy.TLSCA)
	text, caErr := regularfile.Read(path)
	if err := errors.Join(certErr, keyErr, caErr); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM", path)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}, nil
}

// config returns the server's side for clients that speak a protocol (ALPN).
func (m *mutualTLS) config(protocol string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		config := m.current().Clone()
		config.NextProtos = []string{protocol}
		return config, nil
	}}
}

// secured returns a listener that accepts only mutual TLS, if it is configured. Unix sockets are
// not changed.
func (m *mutualTLS) secured(listener net.Listener, protocol string) net.Listener {
	if m == nil || listener.Addr().Network() == "unix" {
		return listener
	}
	return tls.NewListener(listener, m.config(protocol))
}

// isSocket reports whether an address of the flags is that of a Unix socket.
func isSocket(address string) bool { return strings.HasPrefix(address, "unix:") }

// secureGRPC reads the files of Config.GRPCTLS, if it is given, and returns the options that make
// the gRPC server use them.
func (g *Gateway) secureGRPC() (options []grpc.ServerOption, err error) {
	if g.config.GRPCTLS == "" {
		return nil, nil
	}
	if g.tls, err = newMutualTLS(g.config.GRPCTLS, g.logger, time.Now); err != nil {
		return nil, err
	}
	if isSocket(g.config.GRPC) {
		return nil, nil
	}
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(g.tls.config("h2")))}, nil
}
