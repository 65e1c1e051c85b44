package gateway

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"gatepost/certs"
	"gatepost/certs/acme"
	"gatepost/convention"
	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/redisconn"
)

// storedWithin is how long a start waits for the certificates of ACME that are stored.
const storedWithin = time.Second

// errNoSecretsKey is why ACME is not used with Redis.
var errNoSecretsKey = errors.New("tls.acme with Redis needs --secrets-key-file: without it, private keys would lie in Redis unencrypted " +
	"(make a key that all gateways have: openssl rand -base64 32)")

// acmeRunner obtains the certificates of the definitions from a CA.
type acmeRunner struct {
	storage acme.Storage // nil: errNoSecretsKey
	conn    *redisconn.Conn
	set     *certs.Set
	options func(acme.Settings) acme.Config

	mu       sync.Mutex
	managers []*acme.Manager // of the versions since the one that is published
	// published is the manager of the published version, and active that of the last one that was active; nil: none.
	published, active *acme.Manager
	// placeholders are the names that have no certificate yet.
	placeholders map[string]bool
	changed      chan struct{} // has a value if another version was published, or the Envoys serve it
}

func newACMERunner(config Config, set *certs.Set) (*acmeRunner, error) {
	a := &acmeRunner{set: set, placeholders: map[string]bool{}, changed: make(chan struct{}, 1)}
	a.options = func(s acme.Settings) acme.Config {
		return acme.Config{Settings: s, Storage: a.storage, OnPair: a.obtained, Logger: config.Logger}
	}
	if config.Redis == nil {
		a.storage = acme.NewFiles(filepath.Join(config.Data, "acme"))
		return a, nil
	}
	if config.SecretsKeyFile == "" {
		return a, nil
	}
	key, err := acme.ReadSecretsKey(config.SecretsKeyFile)
	if err != nil {
		return nil, err
	}
	a.conn = redisconn.Open(config.Redis)
	a.storage = acme.NewRedis(a.conn, key)
	return a, nil
}

// refuse returns why the definitions cannot be served, whether a gateway starts with them or they are newer ones.
func (a *acmeRunner) refuse(d *definitions.Definitions) error {
	if settingsOf(d) != nil && a.storage == nil {
		return errNoSecretsKey
	}
	return nil
}

// settingsOf returns the settings of definitions, or nil without ACME.
func settingsOf(d *definitions.Definitions) *acme.Settings {
	if d == nil || d.Gateway.TLS == nil || d.Gateway.TLS.ACME == nil {
		return nil
	}
	of := d.Gateway.TLS.ACME
	s := &acme.Settings{Domains: of.Domains, Email: of.Email, Directory: of.Directory, Challenges: of.Challenges}
	if of.CAFile != "" {
		s.CAFile = d.Path(of.CAFile)
	}
	if of.EAB != nil {
		s.KeyID, s.HMACKeyFile = of.EAB.KeyID, d.Path(of.EAB.HMACKeyFile)
	}
	return s
}

// obtained puts a certificate into the set.
func (a *acmeRunner) obtained(name string, p certs.Pair) {
	a.mu.Lock()
	delete(a.placeholders, name)
	a.mu.Unlock()
	a.set.Put(name, p)
}

// load has the set contain a certificate for each domain of definitions: the one that is stored, or else a placeholder,
// since Envoy waits for a certificate that is missing. The CA is not asked.
func (a *acmeRunner) load(d *definitions.Definitions) error {
	settings := settingsOf(d)
	if settings == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), storedWithin)
	defer cancel()
	m, err := a.manager(settings)
	if err != nil {
		return err
	}
	_ = m.Stored(ctx) // it is read again when the manager runs, and then an error is logged
	for _, name := range settings.Domains {
		if _, there := a.set.Pair(name); there {
			continue
		}
		if p, err := certs.SelfSigned([]string{name}, time.Now()); err == nil {
			a.mu.Lock()
			a.placeholders[name] = true
			a.mu.Unlock()
			a.set.Put(name, p)
		}
	}
	return nil
}

// manager returns the manager with these settings, or nil without settings.
func (a *acmeRunner) manager(settings *acme.Settings) (*acme.Manager, error) {
	if settings == nil {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.managers {
		if reflect.DeepEqual(m.Settings, *settings) {
			return m, nil
		}
	}
	m, err := acme.New(a.options(*settings))
	if err == nil {
		a.managers = append(a.managers, m)
	}
	return m, err
}

// follow has the manager of the published definitions answer challenges, and no other. If it is another one than
// before, the CA is asked nothing until the definitions are active: an Envoy that has no route for a challenge yet
// would fail it, and the next attempt is a minute later.
func (a *acmeRunner) follow(d *definitions.Definitions) {
	m, _ := a.manager(settingsOf(d)) // load has made it
	a.mu.Lock()
	a.managers, a.published = nil, m
	if m != nil {
		a.managers = []*acme.Manager{m}
	}
	a.mu.Unlock()
	a.wake()
}

// activate has the manager of the published definitions ask the CA.
func (a *acmeRunner) activate() {
	a.mu.Lock()
	a.active = a.published
	a.mu.Unlock()
	a.wake()
}

func (a *acmeRunner) wake() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// current returns the manager of the published definitions, or nil.
func (a *acmeRunner) current() *acme.Manager {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.published
}

// activated returns the manager of the published definitions, or nil until they are active.
func (a *acmeRunner) activated() *acme.Manager {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.active != a.published {
		return nil
	}
	return a.active
}

// run runs the manager of the active definitions until ctx ends.
func (a *acmeRunner) run(ctx context.Context) error {
	var running *acme.Manager
	var wait sync.WaitGroup
	defer wait.Wait()
	end := func() {}
	defer func() { end() }()
	failed := make(chan error, 1)
	for {
		if m := a.activated(); m != running {
			end()
			wait.Wait()
			running, end = m, func() {}
			if m != nil {
				managing, cancel := context.WithCancel(ctx)
				end = cancel
				wait.Go(func() {
					if err := m.Run(managing); err != nil {
						failed <- err
					}
				})
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-a.changed:
		}
	}
}

// retry asks the CA again for what has failed.
func (a *acmeRunner) retry() {
	if m := a.current(); m != nil {
		m.Retry()
	}
}

// status returns the certificates of a listener for HTTPS that come from a CA.
func (a *acmeRunner) status(tls *definitions.TLS, now time.Time) (all []*gatewayv1.CertificateStatus) {
	if tls == nil || tls.ACME == nil {
		return nil
	}
	a.mu.Lock()
	placeholders := maps.Clone(a.placeholders)
	a.mu.Unlock()
	problems := a.problems()
	for _, one := range serving(tls, a.set) {
		if !slices.Contains(tls.ACME.Domains, one.Name) {
			continue
		}
		status := &gatewayv1.CertificateStatus{Name: one.Name, Names: one.ServerNames, Problem: problems[one.Name], Source: sourceACME}
		if pair, ok := a.set.Pair(one.Name); ok && !placeholders[one.Name] {
			setValidity(status, pair.NotBefore, pair.NotAfter, now)
		} else if status.Problem == "" {
			status.Problem = "the CA has issued no certificate yet"
		}
		all = append(all, status)
	}
	return all
}

// problems returns why the last attempts failed. :: domain → problem
func (a *acmeRunner) problems() map[string]string {
	out := map[string]string{}
	if m := a.current(); m != nil {
		for _, s := range m.Status() {
			if s.Problem != "" {
				out[s.Name] = s.Problem + " (next attempt at " + s.Next.UTC().Format(time.RFC3339) + ")"
			}
		}
	}
	return out
}

// handler answers challenges, and passes other requests on.
func (a *acmeRunner) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := a.current()
		switch {
		case r.Method != http.MethodConnect && !strings.HasPrefix(r.URL.Path, convention.ACMEChallengePath):
			next.ServeHTTP(w, r)
		case m == nil:
			http.NotFound(w, r)
		default:
			m.ServeHTTP(w, r)
		}
	})
}

func (a *acmeRunner) close() error {
	if a.conn == nil {
		return nil
	}
	return a.conn.Close()
}
