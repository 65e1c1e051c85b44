// Package acmetest decides how tests run a real ACME CA: Pebble, the test server of Let's Encrypt.
package acmetest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"gatepost/testcert"
	"gatepost/testlog"
	"gatepost/testport"
)

// deadline is how long an event may take on a busy machine.
const deadline = 2 * time.Minute

// Options say what the CA asks for.
type Options struct {
	// HTTPPort and TLSPort are where it validates HTTP-01 and TLS-ALPN-01.
	HTTPPort, TLSPort int
	// Names are the names whose address is 127.0.0.1. Others do not exist.
	Names []string
	// Keys are the keys of external accounts by their ids. If there are any, an account needs one.
	Keys map[string]string
	// Blocked are names for which nothing is issued.
	Blocked []string
}

// CA is a running Pebble. It keeps nothing over a restart.
type CA struct {
	// Directory is the URL of its directory, and CAFile has the root of its server, not of what it issues.
	Directory, CAFile string

	t                  testing.TB
	options            Options
	dir, addr, control string
	names              string // the address of its name server
	client             *http.Client
	process            *exec.Cmd      // nil: it is stopped
	log                testlog.Buffer // what it has printed
}

// New returns a CA that is not started yet.
func New(t testing.TB, options Options) *CA {
	t.Helper()
	c := &CA{t: t, options: options, dir: t.TempDir(), addr: testport.Addr(t), control: testport.Addr(t)}
	servers := testcert.New(t)
	servers.Issue(filepath.Join(c.dir, "cert.pem"), filepath.Join(c.dir, "key.pem"))
	c.CAFile = servers.Write(filepath.Join(c.dir, "ca.pem"))
	c.Directory = "https://" + c.addr + "/dir"
	c.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: servers.Pool()}, DisableKeepAlives: true}}
	t.Cleanup(c.Stop)
	c.serveNames()
	return c
}

// serveNames starts the name server, which Pebble asks over TCP.
func (c *CA) serveNames() {
	c.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.names = listener.Addr().String()
	server := &dns.Server{Listener: listener, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, asked *dns.Msg) {
		reply := new(dns.Msg).SetReply(asked)
		switch q := asked.Question[0]; {
		case !slices.Contains(c.options.Names, strings.TrimSuffix(q.Name, ".")):
			reply.Rcode = dns.RcodeNameError
		case q.Qtype == dns.TypeA:
			header := dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: net.IPv4(127, 0, 0, 1)})
		}
		_ = w.WriteMsg(reply)
	})}
	c.t.Cleanup(func() { _ = server.Shutdown() })
	go func() { _ = server.ActivateAndServe() }()
}

// Start starts a CA, and waits until it answers.
func Start(t testing.TB, options Options) *CA {
	t.Helper()
	c := New(t, options)
	c.Start()
	return c
}

// Start starts the CA again, as one that has seen nothing, and waits until it answers.
func (c *CA) Start() {
	c.t.Helper()
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": c.addr, "managementListenAddress": c.control,
		"certificate": filepath.Join(c.dir, "cert.pem"), "privateKey": filepath.Join(c.dir, "key.pem"),
		"httpPort": c.options.HTTPPort, "tlsPort": c.options.TLSPort, "keyAlgorithm": "ecdsa",
		"externalAccountBindingRequired": len(c.options.Keys) > 0, "externalAccountMACKeys": c.options.Keys,
		"domainBlocklist": c.options.Blocked, "retryAfter": map[string]int{"authz": 1, "order": 1},
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	file := filepath.Join(c.dir, "pebble.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.process = exec.Command(program(c.t), "-config", file, "-dnsserver", c.names)
	c.process.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_AUTHZREUSE=0")
	c.process.Stdout, c.process.Stderr = &c.log, &c.log
	if err := c.process.Start(); err != nil {
		c.t.Fatal(err)
	}
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err := c.get(c.Directory)
		_, controlErr := c.get(c.rootURL()) // Pebble opens its two listeners in no order
		if err == nil && controlErr == nil {
			return
		}
	}
	c.t.Fatalf("pebble does not answer:\n%s", c.Log())
}

// program returns the path of Pebble, which is built from its Go module if it was not.
func program(t testing.TB) string {
	t.Helper()
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	tools := filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), "tools", "go.mod")
	build := exec.Command("go", "tool", "-modfile="+tools, "-n", "pebble")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // once, for tests with the race detector and without it
	path, err := build.Output()
	if err != nil {
		t.Fatalf("building pebble: %v", err)
	}
	return strings.TrimSpace(string(path))
}

// Stop stops the CA.
func (c *CA) Stop() {
	if c.process != nil {
		_ = c.process.Process.Kill()
		_ = c.process.Wait()
		c.process = nil
	}
}

// Log returns what the CA has printed.
func (c *CA) Log() string {
	return c.log.String()
}

// Roots returns the root of what the CA issues.
func (c *CA) Roots() *x509.CertPool {
	c.t.Helper()
	text, err := c.get(c.rootURL())
	if err != nil {
		c.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

func (c *CA) rootURL() string { return "https://" + c.control + "/roots/0" }

// Proxy returns the directory of a server in front of the CA, with the same root, that passes requests to the CA unless
// a handler has answered them.
func (c *CA) Proxy(intercept func(w http.ResponseWriter, r *http.Request) (answered bool)) (directory string) {
	c.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !intercept(w, r) {
			c.pass(w, r)
		}
	})}
	c.t.Cleanup(func() { server.Close() })
	go func() {
		_ = server.ServeTLS(listener, filepath.Join(c.dir, "cert.pem"), filepath.Join(c.dir, "key.pem"))
	}()
	return "https://" + listener.Addr().String() + "/dir"
}

// pass sends a request to the CA, which makes its URLs with the Host of the request.
func (c *CA) pass(w http.ResponseWriter, r *http.Request) {
	out := r.Clone(r.Context())
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", "https", c.addr
	response, err := c.client.Transport.RoundTrip(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	for name, values := range response.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(response.StatusCode)
	_, _ = io.Copy(w, response.Body)
}

func (c *CA) get(url string) ([]byte, error) {
	response, err := c.client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

// Renewable returns the metadata of a stored certificate with its renewal due, as the CA would make it with ARI.
func Renewable(t testing.TB, text []byte) []byte {
	t.Helper()
	var meta map[string]any
	if err := json.Unmarshal(text, &meta); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	meta["issuer_data"].(map[string]any)["renewal_info"] = map[string]any{
		"suggestedWindow": map[string]any{"start": now.Add(-2 * time.Hour), "end": now.Add(-time.Hour)},
		"_selectedTime":   now.Add(-time.Hour), "_retryAfter": now.Add(time.Hour),
	}
	text, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
