package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"time"

	"github.com/caddyserver/certmagic"
	acmez "github.com/mholt/acmez/v3/acme"

	"gatepost/certs"
	"gatepost/convention"
)

// failure is why the last attempt for a name failed. It is stored beside the certificates.
type failure struct {
	Problem  string    `json:"problem"`
	Attempts int       `json:"attempts"` // how many failed in a row
	Next     time.Time `json:"next"`     // when the next one may be made
}

// The wait after a failed attempt: it doubles from first to longest. After an answer that there were too many requests
// it is limited at least.
const (
	first   = time.Minute
	longest = 6 * time.Hour
	limited = time.Hour
)

// unreachable is how long a name waits for the storage.
const unreachable = 10 * time.Second

// keep looks after a name until ctx ends.
func (m *Manager) keep(ctx context.Context, d *domain) {
	for forced := false; ctx.Err() == nil; {
		wait := time.NewTimer(m.look(ctx, d, forced))
		forced = false
		select {
		case <-ctx.Done():
		case <-wait.C:
		case <-d.retry:
			forced = true
		}
		wait.Stop()
	}
}

// look makes an attempt for a name, unless one has failed and its wait is not over. It returns the time until the next
// look. One gateway at a time looks after a name.
func (m *Manager) look(ctx context.Context, d *domain, forced bool) time.Duration {
	lock := "look_" + d.name
	if err := m.Storage.Lock(ctx, lock); err != nil {
		return m.stuck(ctx, d, err)
	}
	defer func() { _ = m.Storage.Unlock(context.WithoutCancel(ctx), lock) }() // the lock of a gateway that ended expires too
	if err := m.reload(ctx, d); err != nil {
		m.Logger.Warn("reading a certificate of ACME failed", "certificate", d.name, "error", err)
	}
	d.mu.Lock()
	former, chain := d.failure, d.chain
	d.answered = ""
	d.mu.Unlock()
	if wait := time.Until(former.Next); wait > 0 && !forced {
		return wait
	}
	err := m.attempt(ctx, d.name, former.Attempts)
	if ctx.Err() != nil {
		return 0
	}
	now, wait := failure{}, checkEvery
	if err != nil {
		wait = backoff(err, former.Attempts)
		now = failure{Problem: inWordsOfTheCA(err), Attempts: former.Attempts + 1, Next: time.Now().Add(wait).Round(time.Second)}
		m.Logger.Error("obtaining a certificate failed, it is tried again", "certificate", d.name, "error", now.Problem, "wait_seconds", int(wait.Seconds()),
			convention.EventCertificateFailed.Attr())
	}
	if now != former {
		err = m.store(ctx, d.name, now)
	}
	if err := errors.Join(err, m.reload(ctx, d)); err != nil && now.Problem == "" {
		return m.stuck(ctx, d, err)
	}
	d.mu.Lock()
	renewed := d.chain != chain
	d.failure = now
	d.mu.Unlock()
	if renewed || now != former {
		_ = m.Storage.Announce(ctx, d.name) // a gateway that misses it reads it within checkEvery
	}
	return wait
}

// stuck reports that the storage cannot be used, and returns the time until the next look.
func (m *Manager) stuck(ctx context.Context, d *domain, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	problem := fmt.Sprintf("the storage of ACME cannot be used: %v", err)
	d.mu.Lock()
	known := d.failure.Problem == problem
	d.failure = failure{Problem: problem, Attempts: d.failure.Attempts, Next: time.Now().Add(unreachable)}
	d.mu.Unlock()
	if !known {
		m.Logger.Error("using the storage of ACME failed, it is tried again", "certificate", d.name, "error", err)
	}
	return unreachable
}

// attempt obtains the certificate of a name, or renews it if that is due.
func (m *Manager) attempt(ctx context.Context, name string, failed int) error {
	config, _, err := m.asking()
	if err != nil {
		return err
	}
	defer m.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
	// After a failure the staging directory of Let's Encrypt is asked first, which has higher limits.
	return config.ManageSync(context.WithValue(ctx, certmagic.AttemptsCtxKey, &failed), []string{name})
}

// event logs that the CA is asked for a certificate. certmagic calls it if there is none yet or its renewal is due.
func (m *Manager) event(_ context.Context, event string, data map[string]any) error {
	if event != "cert_obtaining" {
		return nil
	}
	reason := "there is none yet"
	if data["renewal"] != nil {
		reason = "the renewal is due"
	}
	m.Logger.Info("asking the CA for a certificate, which can take minutes", "certificate", data["identifier"], "reason", reason,
		convention.EventCertificateRequested.Attr())
	return nil
}

// backoff returns the wait after a failed attempt, some of it random.
func backoff(err error, failed int) time.Duration {
	wait := min(first<<min(failed, 10), longest)
	var problem acmez.Problem
	if errors.As(err, &problem) && problem.Type == acmez.ProblemTypeRateLimited {
		wait = max(wait, limited)
	}
	return wait + rand.N(wait/10)
}

// inWordsOfTheCA returns why the CA refused, or why it could not be asked.
func inWordsOfTheCA(err error) string {
	if problem := (acmez.Problem{}); errors.As(err, &problem) {
		return "the CA answered " + problem.Error()
	}
	return err.Error()
}

// reload reads the certificate of a name and the last failure, and passes a changed certificate to OnPair.
func (m *Manager) reload(ctx context.Context, d *domain) error {
	failed, err := m.loadFailure(ctx, d.name)
	if err != nil {
		return err
	}
	p, err := m.load(ctx, d.name)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failure = failed
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if chain := string(p.Chain); err == nil && chain != d.chain {
		d.chain = chain
		m.Logger.Info("a certificate of ACME is served", "certificate", d.name, convention.EventCertificateRenewed.Attr())
		m.OnPair(d.name, p)
	}
	return nil
}

// load returns the stored certificate of a name. The error is fs.ErrNotExist if there is none.
func (m *Manager) load(ctx context.Context, name string) (certs.Pair, error) {
	issuer := (&certmagic.ACMEIssuer{CA: m.Directory}).IssuerKey()
	chain, err := m.Storage.Load(ctx, certmagic.StorageKeys.SiteCert(issuer, name))
	if err != nil {
		return certs.Pair{}, err
	}
	key, err := m.Storage.Load(ctx, certmagic.StorageKeys.SitePrivateKey(issuer, name))
	if err != nil {
		return certs.Pair{}, err
	}
	return certs.Parse(chain, key, time.Now())
}

// failureKey is where the failure of a name is stored. Another CA may succeed.
func (m *Manager) failureKey(name string) string {
	return path.Join("failures", (&certmagic.ACMEIssuer{CA: m.Directory}).IssuerKey(), name+".json")
}

func (m *Manager) loadFailure(ctx context.Context, name string) (f failure, err error) {
	text, err := m.Storage.Load(ctx, m.failureKey(name))
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	return f, err
}

// store replaces the stored failure of a name.
func (m *Manager) store(ctx context.Context, name string, f failure) error {
	if f.Problem == "" {
		return m.Storage.Delete(ctx, m.failureKey(name))
	}
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return m.Storage.Store(ctx, m.failureKey(name), text)
}
