// Package acme decides which certificates a CA issues for the names of the definitions: when one is obtained or renewed
// by ACME (RFC 8555), and what happens if the CA refuses.
//
// A [Manager] looks after each name by itself. Gateways that share a [Storage] share one account, and one certificate
// for each name. One of them obtains it, each can answer the challenges, and all learn of it at once. A failure is
// stored too, so that neither another gateway nor a restart asks the CA before its time.
package acme

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	acmez "github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"gatepost/certs"
	"gatepost/convention"
	"gatepost/regularfile"
)

// Settings are which certificates are obtained, and from whom.
type Settings struct {
	// Domains are DNS names in lower case, without wildcards.
	Domains []string
	// Email is the contact of the account.
	Email string
	// Directory is the URL of the CA's directory.
	Directory string
	// CAFile has the roots that the CA's server is verified against. Empty: the system's.
	CAFile string
	// KeyID and HMACKeyFile are the External Account Binding (RFC 8555, section 7.3.4). Empty: none.
	KeyID, HMACKeyFile string
	// Challenges are those that may be used, convention.ACMEHTTP01 or convention.ACMETLSALPN01.
	Challenges []string
}

// Config configures a Manager.
type Config struct {
	Settings
	// Storage keeps account, certificates and challenges. Required.
	Storage Storage
	// OnPair receives the certificate of a name, at first and after each change. Required. It is called concurrently, and
	// must neither block nor call the Manager.
	OnPair func(name string, p certs.Pair)
	// Logger receives what happens to a certificate. Nil: nothing is logged.
	Logger *slog.Logger
}

// Status is the state of a name.
type Status struct {
	Name string
	// Problem is why the last attempt failed, in the words of the CA. Empty: it did not.
	Problem string
	// Next is when the next attempt is made after a problem.
	Next time.Time
}

// Manager obtains and renews the certificates of its settings while it runs. It is safe for concurrent use.
type Manager struct {
	Config
	domains     []*domain
	started     chan struct{} // closed when Run has begun
	validations chan struct{} // has a value for each connection of TLS-ALPN-01

	mu     sync.Mutex
	cache  *certmagic.Cache  // set when started is closed, as port is
	port   int               // a loopback port on which this Manager listens
	config *certmagic.Config // how the CA is asked; nil: it was not needed yet, or its files cannot be read
	issuer *certmagic.ACMEIssuer
}

// domain is a name and its state.
type domain struct {
	name  string
	retry chan struct{} // an attempt is to be made now

	mu      sync.Mutex
	chain   string // the certificate that OnPair received last
	failure failure
	// answered is the challenge that was logged last. A CA validates each from several places, and anybody can repeat it.
	answered string
}

// checkEvery is how often a certificate is read, and its renewal considered. A renewal is due at the time that the CA
// suggests (ARI, RFC 9773), or else in the last third of the lifetime.
const checkEvery = certmagic.DefaultRenewCheckInterval

// New returns a Manager that does nothing until it runs.
func New(config Config) (*Manager, error) {
	if config.Storage == nil || config.OnPair == nil {
		return nil, errors.New("acme: a Manager needs Storage and OnPair")
	}
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	m := &Manager{Config: config, started: make(chan struct{}), validations: make(chan struct{}, maxValidations)}
	for _, name := range config.Domains {
		m.domains = append(m.domains, &domain{name: name, retry: make(chan struct{}, 1)})
	}
	return m, nil
}

// Stored passes the certificates that are stored to OnPair. It waits for the storage, not for the CA.
func (m *Manager) Stored(ctx context.Context) error {
	var errs []error
	for _, d := range m.domains {
		if ctx.Err() == nil { // otherwise the storage does not answer
			errs = append(errs, m.reload(ctx, d))
		}
	}
	return errors.Join(errs...)
}

// Run obtains and renews certificates until ctx ends. It is called once.
func (m *Manager) Run(ctx context.Context) error {
	// certmagic starts servers of its own for a challenge, unless something listens on their ports.
	loopback, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening for ACME challenges: %w", err)
	}
	// The maintenance of the cache never finds a certificate there, since each attempt removes its own again.
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) {
			config, _, err := m.asking()
			return config, err
		},
		RenewCheckInterval: checkEvery,
		Logger:             zap.NewNop(),
	})
	defer cache.Stop()
	m.mu.Lock()
	m.cache, m.port = cache, loopback.Addr().(*net.TCPAddr).Port
	m.mu.Unlock()
	close(m.started)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { m.serveLoopback(ctx, loopback) })
	running.Go(func() { m.Storage.Follow(ctx, func(name string) { m.changed(ctx, name) }) })
	for _, d := range m.domains {
		running.Go(func() { m.keep(ctx, d) })
	}
	<-ctx.Done()
	return nil
}

// Retry makes an attempt for each name now, with the files of the settings read again.
func (m *Manager) Retry() {
	m.mu.Lock()
	m.config, m.issuer = nil, nil
	m.mu.Unlock()
	for _, d := range m.domains {
		select {
		case d.retry <- struct{}{}:
		default: // it is to be made already
		}
	}
}

// Status returns the state of each name, in the order of the settings.
func (m *Manager) Status() []Status {
	all := make([]Status, 0, len(m.domains))
	for _, d := range m.domains {
		d.mu.Lock()
		all = append(all, Status{Name: d.name, Problem: d.failure.Problem, Next: d.failure.Next})
		d.mu.Unlock()
	}
	return all
}

// changed is called if another gateway reports a change of a name, or of any if it is empty.
func (m *Manager) changed(ctx context.Context, name string) {
	for _, d := range m.domains {
		if name == "" || name == d.name {
			if err := m.reload(ctx, d); err != nil && ctx.Err() == nil {
				m.Logger.Warn("reading a certificate of ACME failed", "certificate", d.name, "error", err)
			}
		}
	}
}

// answering returns what answers challenges. They may be another gateway's, so those that arrive before Run has begun
// wait for it: a refused one would fail the other gateway's attempt.
func (m *Manager) answering(ctx context.Context) (*certmagic.Config, *certmagic.ACMEIssuer, error) {
	select {
	case <-m.started:
		return m.asking()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

// asking returns how the CA is asked. It reads the files of the settings.
func (m *Manager) asking() (*certmagic.Config, *certmagic.ACMEIssuer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.config != nil {
		return m.config, m.issuer, nil
	}
	roots, err := m.roots()
	if err != nil {
		return nil, nil, err
	}
	account, err := m.externalAccount()
	if err != nil {
		return nil, nil, err
	}
	quiet := zap.NewNop() // what matters is logged here
	config := certmagic.New(m.cache, certmagic.Config{
		Storage: m.Storage, DisableStorageCheck: true, Logger: quiet, OnEvent: m.event, OCSP: certmagic.OCSPConfig{DisableStapling: true},
	})
	m.issuer = certmagic.NewACMEIssuer(config, certmagic.ACMEIssuer{
		CA: m.Directory, Email: m.Email, Agreed: true, TrustedRoots: roots, ExternalAccount: account, Logger: quiet,
		DisableHTTPChallenge:    !slices.Contains(m.Challenges, convention.ACMEHTTP01),
		DisableTLSALPNChallenge: !slices.Contains(m.Challenges, convention.ACMETLSALPN01),
		ListenHost:              "127.0.0.1", AltHTTPPort: m.port, AltTLSALPNPort: m.port,
	})
	config.Issuers = []certmagic.Issuer{m.issuer}
	m.config = config
	return config, m.issuer, nil
}

// roots returns the roots of CAFile, or nil for the system's.
func (m *Manager) roots() (*x509.CertPool, error) {
	if m.CAFile == "" {
		return nil, nil
	}
	roots, err := certs.ReadRoots(m.CAFile, time.Now())
	if err != nil {
		return nil, fmt.Errorf("reading the roots of the CA (ca_file): %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots.PEM)
	return pool, nil
}

func (m *Manager) externalAccount() (*acmez.EAB, error) {
	if m.KeyID == "" {
		return nil, nil
	}
	text, err := regularfile.Read(m.HMACKeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the key of the external account (hmac_key_file): %w", err)
	}
	return &acmez.EAB{KeyID: m.KeyID, MACKey: strings.TrimRight(strings.TrimSpace(string(text)), "=")}, nil
}
