package acme_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"

	"gatepost/certs"
	"gatepost/certs/acme"
	"gatepost/certs/acme/acmetest"
	"gatepost/convention"
	"gatepost/redisconn"
	"gatepost/tokens/redistest"
)

const deadline = 5 * time.Minute

// site is where the CA validates: the ports that stand for 80 and 443.
type site struct {
	httpPort, tlsPort int
	names             []string
	manager           atomic.Pointer[acme.Manager] // answers HTTP-01
}

// newSite serves names that no other test has: certmagic keeps the challenges of a process by name.
func newSite(t *testing.T, names ...string) *site {
	t.Helper()
	s := &site{names: names}
	listen := func() (net.Listener, int) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l, l.Addr().(*net.TCPAddr).Port
	}
	listener, httpPort := listen()
	secured, tlsPort := listen()
	s.httpPort, s.tlsPort = httpPort, tlsPort
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.manager.Load().ServeHTTP(w, r) })}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(listener) }()
	go func() {
		for {
			conn, err := secured.Accept()
			if err != nil {
				return
			}
			go s.connect(conn)
		}
	}()
	return s
}

// connect passes a connection on as Envoy does: in a CONNECT.
func (s *site) connect(client net.Conn) {
	defer client.Close()
	conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", s.httpPort))
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nhost: %[1]s\r\n\r\n", convention.ACMEAuthority)
	if _, err := io.ReadFull(conn, make([]byte, len("HTTP/1.1 200 OK\r\n\r\n"))); err != nil {
		return
	}
	go func() { _, _ = io.Copy(conn, client) }()
	_, _ = io.Copy(client, conn)
}

func (s *site) ca(t *testing.T, options acmetest.Options) *acmetest.CA {
	t.Helper()
	options.HTTPPort, options.TLSPort, options.Names = s.httpPort, s.tlsPort, s.names
	return acmetest.Start(t, options)
}

// running is a Manager that runs, and what it has passed on.
type running struct {
	*acme.Manager
	pairs chan certs.Pair
	log   bytes.Buffer
	stop  func()
}

func (s *site) run(t *testing.T, storage acme.Storage, settings acme.Settings) *running {
	t.Helper()
	r := &running{pairs: make(chan certs.Pair, 10)}
	var err error
	r.Manager, err = acme.New(acme.Config{Settings: settings, Storage: storage,
		OnPair: func(_ string, p certs.Pair) { r.pairs <- p }, Logger: slog.New(slog.NewTextHandler(&r.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.manager.Store(r.Manager)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		r.stop = func() {}
	}
	t.Cleanup(func() { r.stop() })
	return r
}

// pair waits for the next certificate.
func (r *running) pair(t *testing.T) certs.Pair {
	t.Helper()
	select {
	case p := <-r.pairs:
		return p
	case <-time.After(deadline):
		t.Fatalf("no certificate: %+v", r.Status())
		return certs.Pair{}
	}
}

// problem waits until the only name has a problem with a text, and returns its status.
func (r *running) problem(t *testing.T, want string) acme.Status {
	t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if s := r.Status()[0]; strings.Contains(s.Problem, want) {
			return s
		}
	}
	t.Fatalf("the status is %+v, want %q", r.Status(), want)
	return acme.Status{}
}

func settings(ca *acmetest.CA, challenge string, names ...string) acme.Settings {
	return acme.Settings{Domains: names, Email: "ops@shop.test", Directory: ca.Directory, CAFile: ca.CAFile, Challenges: []string{challenge}}
}

func verify(t *testing.T, ca *acmetest.CA, p certs.Pair, name string) {
	t.Helper()
	pair, err := tls.X509KeyPair(p.Chain, p.Key.PEM())
	if err != nil {
		t.Fatal(err)
	}
	intermediates := x509.NewCertPool()
	intermediates.AppendCertsFromPEM(p.Chain)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: ca.Roots(), Intermediates: intermediates}); err != nil {
		t.Error(err)
	}
}

// makeRenewable makes the renewal of a stored certificate due, as the CA would with ARI.
func makeRenewable(t *testing.T, storage acme.Storage, ca *acmetest.CA, name string) {
	t.Helper()
	place := certmagic.StorageKeys.SiteMeta((&certmagic.ACMEIssuer{CA: ca.Directory}).IssuerKey(), name)
	text, err := storage.Load(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	if err := storage.Store(t.Context(), place, acmetest.Renewable(t, text)); err != nil {
		t.Fatal(err)
	}
}

func TestACertificateIsObtainedKeptAndRenewed(t *testing.T) {
	t.Parallel()
	s := newSite(t, "kept.test")
	ca := s.ca(t, acmetest.Options{})
	for _, challenge := range []string{convention.ACMEHTTP01, convention.ACMETLSALPN01} {
		t.Run(challenge, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "acme")
			storage := acme.NewFiles(dir)
			authorizations := func() int { return strings.Count(ca.Log(), "authorizations in the db") }
			before := authorizations()
			m := s.run(t, storage, settings(ca, challenge, "kept.test"))
			obtained := m.pair(t)
			verify(t, ca, obtained, "kept.test")
			makeRenewable(t, storage, ca, "kept.test")
			m.Retry()
			renewed := m.pair(t)
			verify(t, ca, renewed, "kept.test")
			if bytes.Equal(obtained.Key.PEM(), renewed.Key.PEM()) {
				t.Error("a renewed certificate has the same key")
			}
			m.stop()
			log := m.log.String()
			var events []string
			for _, event := range regexp.MustCompile(`event\.action=certificate-(\w+)\n`).FindAllStringSubmatch(log, -1) {
				events = append(events, event[1])
			}
			want, challenges := "requested challenged renewed requested challenged renewed", 2
			// With PEBBLE_AUTHZREUSE=0, Pebble still accepts a former authorization in one of a hundred orders.
			if authorizations()-before == 1 {
				want, challenges = "requested challenged renewed requested renewed", 1
			}
			if strings.Join(events, " ") != want || strings.Count(log, "there is none yet") != 1 ||
				strings.Count(log, "the renewal is due") != 1 || strings.Count(log, "type="+challenge) != challenges || strings.Contains(log, "ERROR") {
				t.Errorf("the log is %s", log)
			}
			again := s.run(t, storage, settings(ca, challenge, "kept.test"))
			if p := again.pair(t); !bytes.Equal(p.Chain, renewed.Chain) {
				t.Error("after a restart there is another certificate")
			}
			if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
				if info, _ := entry.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s: %v, %v", path, info.Mode(), err)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	if n := strings.Count(ca.Log(), "Issued certificate serial"); n != 4 {
		t.Errorf("%d certificates were issued, want 4", n)
	}
}

func TestAFailureIsShownInTheWordsOfTheCAAndBacksOff(t *testing.T) {
	t.Parallel()
	s := newSite(t, "failing.test", "blocked.test", "limited.test", "bound.test")
	ca := s.ca(t, acmetest.Options{Blocked: []string{"blocked.test"}})
	tooMany := ca.Proxy(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/order-plz") {
			return false
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprint(w, `{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many certificates for shop.test", "status": 429}`)
		return true
	})
	bound := s.ca(t, acmetest.Options{Keys: map[string]string{"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}})
	keyFile := filepath.Join(t.TempDir(), "hmac")
	if err := os.WriteFile(keyFile, []byte("d3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*acme.Settings), s acme.Settings) acme.Settings {
		change(&s)
		return s
	}
	for _, c := range []struct {
		settings acme.Settings
		want     string
		wait     time.Duration
	}{
		{settings(ca, convention.ACMEHTTP01, "blocked.test"), "rejectedIdentifier", time.Minute},
		{settings(ca, convention.ACMEHTTP01, "unknown.test"), "unknown.test", time.Minute},
		{with(func(s *acme.Settings) { s.Directory = tooMany }, settings(ca, convention.ACMEHTTP01, "limited.test")), "too many certificates for shop.test", time.Hour},
		{with(func(s *acme.Settings) { s.CAFile = "/nothing" }, settings(ca, convention.ACMEHTTP01, "failing.test")), "ca_file", time.Minute},
		{settings(bound, convention.ACMEHTTP01, "bound.test"), "externalAccountRequired", time.Minute},
		{with(func(s *acme.Settings) { s.KeyID, s.HMACKeyFile = "kid-1", keyFile }, settings(bound, convention.ACMEHTTP01, "bound.test")), "HTTP 4", time.Minute},
	} {
		before := time.Now().Add(-time.Second)
		storage := acme.NewFiles(t.TempDir())
		m := s.run(t, storage, c.settings)
		status := m.problem(t, c.want)
		if status.Next.Sub(before) < c.wait {
			t.Errorf("%s: the next attempt is at %v", status.Problem, status.Next)
		}
		t.Log(status.Problem)
		m.stop()
		if log := m.log.String(); !strings.Contains(log, "event.action=certificate-failed\n") || strings.Count(log, "level=ERROR") != 1 {
			t.Errorf("the log is %s", log)
		}
		// A restart neither asks the CA again nor forgets its answer.
		again := s.run(t, storage, c.settings)
		again.problem(t, c.want)
		again.stop()
		if again.log.Len() > 0 {
			t.Errorf("after a restart the log is %s", &again.log)
		}
	}
	if err := os.WriteFile(keyFile, []byte("zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := s.run(t, acme.NewFiles(t.TempDir()), with(func(s *acme.Settings) { s.KeyID, s.HMACKeyFile = "kid-1", keyFile }, settings(bound, convention.ACMEHTTP01, "bound.test")))
	verify(t, bound, m.pair(t), "bound.test")
}

func TestACAThatWasDownIsAskedAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, "down.test")
	ca := s.ca(t, acmetest.Options{})
	ca.Stop()
	storage := acme.NewFiles(t.TempDir())
	m := s.run(t, storage, settings(ca, convention.ACMEHTTP01, "down.test"))
	m.problem(t, "connection refused")
	ca.Start()
	m.Retry()
	verify(t, ca, m.pair(t), "down.test")
	for end := time.Now().Add(deadline); m.Status()[0].Problem != "" && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if status := m.Status()[0]; status.Problem != "" {
		t.Errorf("the status is %+v", status)
	}
}

func secretsKey(t *testing.T, lines ...string) acme.SecretsKey {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := acme.ReadSecretsKey(file)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

const (
	keyA = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	keyB = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
)

func connect(t *testing.T, server *redistest.Server) *redisconn.Conn {
	t.Helper()
	options, err := redisconn.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	conn := redisconn.Open(options)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestGatewaysOnOneRedisShareAccountAndCertificate(t *testing.T) {
	t.Parallel()
	s := newSite(t, "shared.test")
	ca := s.ca(t, acmetest.Options{})
	server := redistest.Start(t)
	storage := acme.NewRedis(connect(t, server), secretsKey(t, keyA))
	one := s.run(t, storage, settings(ca, convention.ACMEHTTP01, "shared.test"))
	two := s.run(t, acme.NewRedis(connect(t, server), secretsKey(t, keyA)), settings(ca, convention.ACMEHTTP01, "shared.test"))
	first := one.pair(t)
	if p := two.pair(t); !bytes.Equal(p.Chain, first.Chain) || !bytes.Equal(p.Key.PEM(), first.Key.PEM()) {
		t.Error("two gateways have two certificates")
	}
	makeRenewable(t, storage, ca, "shared.test")
	one.Retry()
	renewed := one.pair(t)
	if p := two.pair(t); bytes.Equal(p.Chain, first.Chain) || !bytes.Equal(p.Chain, renewed.Chain) {
		t.Error("the other gateway has not learned of the renewal")
	}
	if n := strings.Count(ca.Log(), "Issued certificate serial"); n != 2 {
		t.Errorf("%d certificates were issued, want 2", n)
	}
	if n := strings.Count(ca.Log(), "accounts in memory"); n != 1 {
		t.Errorf("%d accounts were made", n)
	}
	values, err := connect(t, server).Client().HGetAll(t.Context(), "gatepost:{acme}:stored").Result()
	if err != nil || len(values) < 5 {
		t.Fatalf("%d values are stored, %v", len(values), err)
	}
	for place, value := range values {
		if strings.Contains(value, "BEGIN") || strings.Contains(value, "{") && json.Valid([]byte(value)) {
			t.Errorf("%s is not encrypted", place)
		}
	}
	// A gateway with another key reads nothing, and reports why.
	other := s.run(t, acme.NewRedis(connect(t, server), secretsKey(t, keyB)), settings(ca, convention.ACMEHTTP01, "shared.test"))
	other.problem(t, "give each gateway the same --secrets-key-file")
	other.stop()
	// Redis is away, and comes back.
	server.Kill()
	one.Retry()
	one.problem(t, "the storage of ACME cannot be used")
}

// TestAChallengeWaitsForTheStart: it may be of another gateway that has been running for long.
func TestAChallengeWaitsForTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := acme.New(acme.Config{Settings: acme.Settings{Domains: []string{"starting.test"}}, Storage: acme.NewFiles(t.TempDir()), OnPair: func(string, certs.Pair) {}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		answered := make(chan int, 1)
		go func() {
			w := httptest.NewRecorder()
			m.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "http://starting.test/.well-known/acme-challenge/x", nil))
			answered <- w.Code
		}()
		synctest.Wait()
		if len(answered) > 0 {
			t.Error("it was answered before the start")
		}
		cancel()
		if code := <-answered; code != http.StatusNotFound {
			t.Errorf("after the client had left: %d", code)
		}
	})
}

// A Storage does what certmagic expects of one.
func TestStorages(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	redis := connect(t, server)
	for name, storage := range map[string]acme.Storage{"files": acme.NewFiles(t.TempDir()), "redis": acme.NewRedis(redis, secretsKey(t, keyA))} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if _, err := storage.Load(ctx, "a/b"); !os.IsNotExist(err) {
				t.Errorf("Load of nothing = %v", err)
			}
			for _, place := range []string{"a/b", "a/c/d", "ab"} {
				if err := storage.Store(ctx, place, []byte(place)); err != nil {
					t.Fatal(err)
				}
			}
			if v, err := storage.Load(ctx, "a/c/d"); string(v) != "a/c/d" || err != nil {
				t.Errorf("Load = %q, %v", v, err)
			}
			if all, err := storage.List(ctx, "a", false); fmt.Sprint(all) != "[a/b a/c]" || err != nil {
				t.Errorf("List = %v, %v", all, err)
			}
			if info, err := storage.Stat(ctx, "a/c"); info.IsTerminal || err != nil {
				t.Errorf("Stat of a folder = %+v, %v", info, err)
			}
			if info, err := storage.Stat(ctx, "a/b"); !info.IsTerminal || info.Size != 3 || err != nil {
				t.Errorf("Stat = %+v, %v", info, err)
			}
			if err := storage.Delete(ctx, "a"); err != nil || storage.Exists(ctx, "a") || storage.Exists(ctx, "a/b") || !storage.Exists(ctx, "ab") {
				t.Errorf("Delete leaves something, or too little: %v", err)
			}
			if err := storage.Delete(ctx, "a"); err != nil {
				t.Error(err)
			}
			checkLocks(t, storage)
		})
	}
	t.Run("a lock whose owner is gone", func(t *testing.T) {
		killed, next := acme.NewRedis(redis, secretsKey(t, keyA)), acme.NewRedis(connect(t, server), secretsKey(t, keyA))
		if err := killed.Lock(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		server.Do("PEXPIRE", "gatepost:{acme}:lock:x", "1") // as after its time
		if err := next.Lock(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		if err := killed.Unlock(t.Context(), "x"); err != nil {
			t.Error(err)
		}
		if server.Do("GET", "gatepost:{acme}:lock:x") == "" {
			t.Error("the former owner has released the lock of the next")
		}
		if err := next.Unlock(t.Context(), "x"); err != nil {
			t.Error(err)
		}
	})
}

func checkLocks(t *testing.T, storage acme.Storage) {
	t.Helper()
	if err := storage.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := storage.Lock(canceled, "x"); err == nil {
		t.Error("locked twice")
	}
	locked := make(chan error)
	go func() { locked <- storage.Lock(t.Context(), "x") }()
	if err := storage.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	if err := <-locked; err != nil {
		t.Error(err)
	}
	if err := storage.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

func TestTheKeyOfTheSecrets(t *testing.T) {
	t.Parallel()
	conn := connect(t, redistest.Start(t))
	former, both, after := secretsKey(t, keyA), secretsKey(t, keyB, keyA), secretsKey(t, keyB)
	if err := acme.NewRedis(conn, former).Store(t.Context(), "old", []byte("value")); err != nil {
		t.Fatal(err)
	}
	if v, err := acme.NewRedis(conn, both).Load(t.Context(), "old"); string(v) != "value" {
		t.Errorf("with the key and its successor: %v", err)
	}
	if err := acme.NewRedis(conn, both).Store(t.Context(), "new", []byte("value")); err != nil {
		t.Fatal(err)
	}
	if v, err := acme.NewRedis(conn, after).Load(t.Context(), "new"); string(v) != "value" {
		t.Errorf("with the successor alone: %v", err)
	}
	if _, err := acme.NewRedis(conn, after).Load(t.Context(), "old"); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("a value of a former key: %v", err)
	}
	sealed, err := conn.Client().HGet(t.Context(), "gatepost:{acme}:stored", "new").Result()
	if err != nil || conn.Client().HSet(t.Context(), "gatepost:{acme}:stored", "elsewhere", sealed).Err() != nil {
		t.Fatal(err)
	}
	if _, err := acme.NewRedis(conn, after).Load(t.Context(), "elsewhere"); err == nil {
		t.Error("a value can be moved to another place")
	}
	if text := fmt.Sprintf("%v %+v %#v", after, after, after); strings.ReplaceAll(text, "[redacted]", "") != "  " {
		t.Errorf("printed: %s", text)
	}
	for content, want := range map[string]string{"": "is empty", "x": "line 1", keyA + "\nc2hvcnQ=\n": "line 2"} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := acme.ReadSecretsKey(file); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "openssl rand") {
			t.Errorf("a key file %q: %v", content, err)
		}
	}
}

// What is no challenge for a name of the settings reaches neither the storage nor a certificate.
func TestStrangersGetNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ca := s.ca(t, acmetest.Options{})
	ca.Stop()
	m := s.run(t, acme.NewFiles(t.TempDir()), settings(ca, convention.ACMETLSALPN01, "strange.test"))
	m.problem(t, "connection refused")
	for _, protocol := range []string{"acme-tls/1", "h2"} {
		for _, name := range []string{"strange.test", "b.test"} {
			conn, err := tls.Dial("tcp", fmt.Sprint("127.0.0.1:", s.tlsPort), &tls.Config{ServerName: name, NextProtos: []string{protocol}, InsecureSkipVerify: true})
			if err == nil {
				conn.Close()
				t.Errorf("%s, %s: a certificate is shown", name, protocol)
			}
		}
	}
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%sx", s.httpPort, convention.ACMEChallengePath))
	if err != nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("%v, %v", response, err)
	}
	response.Body.Close()
}
