package explain

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"gatepost/authz"
	"gatepost/certs"
	"gatepost/definitions"
	"gatepost/envoy"
	"gatepost/envoy/envoytest"
	"gatepost/envoy/module/moduletest"
	"gatepost/testcert"
	"gatepost/tokens"
	"gatepost/xds"
)

// options are the options of a real gateway, so that the versions are equal.
var options = xds.Options{GRPCCluster: envoy.ClusterGRPC, HTTPCluster: envoy.ClusterHTTP, ClusterLimits: true}

// world is a real Envoy with its control plane and authorization server, and upstreams that echo
// requests.
type world struct {
	t         *testing.T
	addr      string
	tlsAddr   string // of the listener for TLS; empty: there is none
	client    tls.Certificate
	control   *xds.Server
	version   string      // what is served
	delivered chan string // holds the version that was delivered last
	envoy     *envoytest.Envoy
	sessions  sessions
	module    xds.Module
	upstreams map[string]*upstream // :: name → upstream; includes the token handler
}

// sessions is a store in memory. It is read-only once it is filled.
type sessions map[tokens.Hash]*tokens.Session

func (s sessions) Principal(_ context.Context, h tokens.Hash) (tokens.Principal, error) {
	if found := s[h]; found != nil {
		return found.Principal(), nil
	}
	return tokens.Principal{}, tokens.ErrUnknown
}

// open stores a session and returns its token.
func (s sessions) open(t *testing.T, format tokens.Format, user string, lifetime time.Duration, scopes ...string) string {
	t.Helper()
	token, err := tokens.Mint(format)
	if err != nil {
		t.Fatal(err)
	}
	s[token.Hash()] = &tokens.Session{Hash: token.Hash(), User: user, Scopes: scopes, Expires: time.Now().Add(lifetime)}
	return token.Reveal()
}

const tokenHandler = "token handler"

func newWorld(t *testing.T) *world {
	t.Helper()
	envoytest.Require(t)
	w := &world{t: t, addr: envoytest.Addr(t), sessions: sessions{}, upstreams: map[string]*upstream{}}
	for _, name := range []string{tokenHandler, "a", "b", "c"} {
		w.upstreams[name] = startUpstream(t, name)
	}
	m := moduletest.Start(t)
	w.module = xds.Module{Library: m.Library, Table: m.TablePath}
	checker, err := authz.New(authz.Config{Sessions: w.sessions, Decisions: m})
	if err != nil {
		t.Fatal(err)
	}
	if w.control, err = xds.New(xds.Config{Grace: 100 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	w.delivered = make(chan string, 1)
	w.control.Subscribe(func(e xds.Event) {
		if e, isDelivered := e.(xds.Delivered); isDelivered {
			select {
			case <-w.delivered:
			default:
			}
			w.delivered <- e.Version
		}
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(authz.ServerOptions()...)
	checker.Register(server)
	w.control.Register(server)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		w.control.Close()
		server.Stop()
		serving.Wait()
	})
	w.envoy = envoytest.Start(t, envoytest.Options{GRPC: listener.Addr().String(), HTTP: w.upstreams[tokenHandler].addr, NotReady: true})
	return w
}

// serve publishes definitions without the upstreams of the withheld services, and returns when
// Envoy serves them.
func (w *world) serve(text string, withheld ...string) *definitions.Definitions {
	w.t.Helper()
	d, err := definitions.Parse("gateway.yaml", []byte(text))
	if err != nil {
		w.t.Fatalf("%v\n%s", err, text)
	}
	opts := w.options()
	opts.Withheld = withheld
	snapshot, err := xds.Build(d.Gateway, opts)
	if err != nil {
		w.t.Fatalf("%v\n%s", err, text)
	}
	if snapshot.Version == w.version {
		return d
	}
	w.version = snapshot.Version
	if err := w.control.Publish(snapshot); err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.After(envoytest.Deadline); ; {
		select {
		case version := <-w.delivered:
			if version == w.version {
				return d
			}
		case <-deadline:
			w.t.Fatalf("version %s is not delivered:\n%s", w.version, text)
		}
	}
}

// got is the response that a client received.
type got struct {
	status int
	header fields
	body   string
}

// send sends a request over a new connection.
func (w *world) send(r Request) (got, error) {
	conn, err := net.Dial("tcp", w.addr)
	if w.tlsAddr != "" && !r.Plain {
		config := &tls.Config{InsecureSkipVerify: true}
		if r.Certificate {
			config.Certificates = []tls.Certificate{w.client}
		}
		conn, err = tls.Dial("tcp", w.tlsAddr, config)
	}
	if err != nil {
		return got{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(envoytest.Deadline)); err != nil {
		return got{}, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", r.Method, r.Target)
	for _, h := range r.Header {
		fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
	}
	b.WriteString("\r\n")
	_, _ = io.WriteString(conn, b.String()) // Envoy may respond and close before it has read everything
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: r.Method})
	if err != nil {
		return got{}, fmt.Errorf("no answer: %w", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	g := got{status: answer.StatusCode, body: string(body)}
	for name, values := range answer.Header {
		g.header.add(strings.ToLower(name), strings.Join(values, ","))
	}
	return g, err
}

// notOurs are response headers of HTTP itself, which are not compared.
var notOurs = []string{"date", "content-length", "connection", "transfer-encoding", "upgrade", "x-request-id",
	"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}

// summary formats a response for comparison.
func summary(status int, header fields, body string) string {
	var lines []string
	for _, h := range header {
		if !slices.Contains(notOurs, h.Name) {
			value := strings.ReplaceAll(header.value(h.Name), ", ", ",")
			lines = append(lines, h.Name+": "+value)
		}
	}
	slices.Sort(lines)
	return fmt.Sprintf("%d\n%s\n%s", status, strings.Join(slices.Compact(lines), "\n"), body)
}

// expected returns the summary of the response that an outcome predicts, including the upstream's
// part.
func (w *world) expected(o Outcome, r Request) string {
	if o.Forward == nil {
		return summary(o.Status, o.Headers, o.Body)
	}
	by := tokenHandler
	for name, upstream := range w.upstreams {
		if !o.Forward.TokenHandler && o.Forward.To[0] == "http://"+upstream.addr {
			by = name
		}
	}
	header := fields{{"seen-by", by}, {"seen", o.Forward.Method + " " + o.Forward.Path}, {"vary", "accept-encoding"}, {"content-type", "text/x-upstream"}, {"server", "own"}}
	header = append(header, Field{"access-control-allow-origin", "*"}, Field{"access-control-allow-credentials", "true"})
	for _, name := range o.Removed {
		header.remove(name)
	}
	for _, h := range o.Headers {
		if h.Name == "vary" {
			header.add(h.Name, h.Value)
		} else {
			header.set(h.Name, h.Value)
		}
	}
	for _, name := range shownHeaders {
		if value, ok := arrives(o.Forward, r, name); ok {
			header.set("seen-"+name, value)
		}
	}
	switch {
	case o.Forward.Upgrade != "":
		return summary(101, header, "")
	case r.Method == "HEAD":
		return summary(200, header, "")
	}
	return summary(200, header, "from "+by)
}

// arrives returns a request header as the upstream receives it.
func arrives(f *Forward, r Request, name string) (string, bool) {
	if value, set := fields(f.Set).get(name); set {
		return value, true
	}
	if slices.Contains(f.Removed, name) {
		return "", false
	}
	var sent fields
	for _, h := range r.Header {
		sent.add(strings.ToLower(h.Name), strings.Trim(h.Value, " \t"))
	}
	return sent.get(name)
}

// TestExplanationsMatchARealEnvoy explains requests, sends them through a real Envoy, and compares
// the results. GATEPOST_EXPLAIN_REQUESTS is the number of requests (default 3000),
// GATEPOST_EXPLAIN_SEED the seed.
func TestExplanationsMatchARealEnvoy(t *testing.T) {
	t.Parallel()
	const sets = 24
	standard := int64(3000)
	if testing.Short() {
		standard = 480
	}
	requests, seed := envoytest.Number(t, "GATEPOST_EXPLAIN_REQUESTS", standard), envoytest.Number(t, "GATEPOST_EXPLAIN_SEED", rand.Int64N(1<<31))
	t.Logf("GATEPOST_EXPLAIN_SEED=%d GATEPOST_EXPLAIN_REQUESTS=%d", seed, requests)
	d := dice{rand.New(rand.NewPCG(uint64(seed), 1))}
	w := newWorld(t)
	alice := w.sessions.open(t, tokens.FormatUUID, "alice", time.Hour)
	bob := w.sessions.open(t, tokens.FormatSecret, "bob", time.Hour, "read", "write:all", "x")
	carol := w.sessions.open(t, tokens.FormatUUID, "carol", time.Hour, "read")
	late := w.sessions.open(t, tokens.FormatUUID, "late", -time.Hour)
	odd := w.sessions.open(t, tokens.FormatUUID, "line\nend", time.Hour, someScopes...)
	credentials := []string{
		alice, "Bearer " + alice, "bearer   " + bob, "BEARER " + carol, bob, bob, late, odd, "Bearer " + late, "Basic YTpi", "", "Bearer", "Bearer ",
		alice + "," + bob, alice + " ", "x" + alice, "7a6b3c50-1c2d-4e5f-8a9b-0c1d2e3f4a5b", "\xff", strings.Repeat("a", 600),
	}
	urls := []string{"http://" + w.upstreams["a"].addr, "http://" + w.upstreams["b"].addr, "http://" + w.upstreams["c"].addr}
	seen, hits := map[string]int{}, 0 // :: reason → number of requests
	for set := range int64(sets) {
		text := d.definitions(w.addr, urls)
		served := w.serve(text)
		w.awaitServed(t, served)
		paths := []string{served.Gateway.Tokens.Path}
		for _, s := range served.Gateway.Services {
			paths = append(paths, s.Path, s.Path)
		}
		with, without := w.explainer(served, w.sessions), w.explainer(served, nil)
		for range requests / sets {
			r := d.request(paths, credentials, served.Gateway.Identity.UserHeader)
			seen[w.compare(t, with, without, r)]++
			if d.chance(4) { // a cached decision must be the same
				w.compare(t, with, without, r)
			}
			if t.Failed() {
				t.Fatalf("seed %d, set %d, with the definitions\n%s", seed, set, text)
			}
		}
		hits = max(hits, w.envoy.Stat("http.gatepost.ext_authz.disabled")) // a new listener resets it
	}
	t.Logf("outcomes: %v; with up to %d hits of the module by one set of definitions", seen, hits)
	reached := []string{"forwarded", "preflight", "not_found", "method_not_allowed", "malformed", "origin_refused", "token_missing", "token_malformed", "redirected", "maintenance"}
	if requests >= 20_000 { // these are rare
		reached = append(reached, "token_unknown", "scope_missing", "upgrade_refused", "version")
	}
	for _, reason := range reached {
		if seen[reason] == 0 && requests >= 3000 {
			t.Errorf("no request had the outcome %q: the generators do not reach it", reason)
		}
	}
}

// TestRequestsNearTheLimitOfHeadersAreExplainedAsEnvoyDoes: a header counts that Envoy removes from allowed requests.
func TestRequestsNearTheLimitOfHeadersAreExplainedAsEnvoyDoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.sessions.open(t, tokens.FormatSecret, "bob", time.Hour)
	served := w.serve(fmt.Sprintf(`listen: %q
tokens: {authenticator: {url: "http://users.example/authenticate"}}
services:
  - {name: removed, path: /removed, upstreams: ["http://%s"]}
  - {name: kept, path: /kept, forward_token: true, upstreams: ["http://%[2]s"]}
`, w.addr, w.upstreams["a"].addr))
	w.awaitServed(t, served)
	e, seen := w.explainer(served, w.sessions), map[string]int{}
	for _, path := range []string{"/removed", "/kept"} {
		for size := 16<<10 - 400; size < 16<<10; size += 3 {
			r := Request{Method: "GET", Target: path, Header: []Field{{"Host", "h"}, {"X-Big", strings.Repeat("b", size)}, {"Authorization", token}}}
			a, err := e.Explain(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			g, err := w.send(r)
			if want := cmp.Or(a.Outcomes[0].Status, http.StatusOK); err != nil || g.status != want {
				t.Errorf("%s with %d bytes is explained as %d %s, and gets %d, %v", path, size, want, a.Outcomes[0].Reason, g.status, err)
			}
			seen[a.Outcomes[0].Reason]++
		}
	}
	for _, reason := range []string{"forwarded", "too_many_headers", "malformed"} {
		if seen[reason] == 0 {
			t.Errorf("no request had the outcome %q: %v", reason, seen)
		}
	}
}

// TestHostsAreExplainedAsEnvoyDoes compares each host with each path.
func TestHostsAreExplainedAsEnvoyDoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	text := strings.NewReplacer("LISTEN", w.addr, "UP", "http://"+w.upstreams["a"].addr).Replace(severalHosts)
	seen := map[string]int{}
	w.compareHosts(t, w.serve(text), seen)
	w.tlsAddr = envoytest.Addr(t)
	w.sendCertificate(t)
	w.compareHosts(t, w.serve(fmt.Sprintf(`tls:
  listen: %q
  certificates: [{cert_file: any, key_file: any}]
  hsts: 1h
  client_certificates: {ca_file: any, mode: optional}
%s  - {name: partner, path: /partner, hosts: ["*.shop.example"], client_certificate: true, authenticate: false, upstreams: ["http://%s"]}
`, w.tlsAddr, text, w.upstreams["b"].addr)), seen)
	for _, reason := range []string{"forwarded", "preflight", "not_found", "method_not_allowed", "malformed", "token_missing", "version", "redirected", "certificate_missing"} {
		if seen[reason] == 0 {
			t.Errorf("no request had the outcome %q: %v", reason, seen)
		}
	}
}

// compareHosts compares each host with each path and, if there is a listener for TLS, with each listener.
func (w *world) compareHosts(t *testing.T, served *definitions.Definitions, seen map[string]int) {
	t.Helper()
	w.awaitServed(t, served)
	with, without := w.explainer(served, w.sessions), w.explainer(served, nil)
	for _, host := range []string{
		"api.shop.example", "API.shop.example:80", "api.shop.example.", "api.shop.example.:80", "api.shop.example:", "x.shop.example", "x.y.shop.example",
		"eu.shop.example", "x.eu.shop.example", "shop.example", "xshop.example", "admin.example", "ADMIN.example:1", "x.admin.example", "other.example", "10.0.0.7:80", "[::1]:80", "[::1]",
		"user@api.shop.example", "api.shop.example:x@other.example", "a:1:2", ".shop.example", "x..shop.example", "x.shop.example,y", "api.shop.example..", "x%2e.shop.example", "*.shop.example", "",
	} {
		for _, path := range []string{"/", "/orders", "/ORDERS/5", "/orders/deep", "/status", "/STATUS", "/auth/token", "/auth/x", "/Auth", "/nobody", definitions.VersionPath} {
			for _, method := range []string{"GET", "POST", "OPTIONS"} {
				r := Request{Method: method, Target: path, Header: []Field{{"Host", host}, {"Origin", "https://a.example"}, {"Access-Control-Request-Method", "GET"}, {"Connection", "close"}}}
				seen[w.compare(t, with, without, r)]++
				if r.Plain = w.tlsAddr != ""; r.Plain {
					seen[w.compare(t, with, without, r)]++
				}
			}
		}
		if w.tlsAddr != "" {
			r := Request{Method: "GET", Target: "/partner/5", Header: []Field{{"Host", host}, {"Connection", "close"}}}
			seen[w.compare(t, with, without, r)]++
			r.Certificate = true
			seen[w.compare(t, with, without, r)]++
		}
	}
}

// sendCertificate sends Envoy a certificate for every name, and the CA of a client certificate.
func (w *world) sendCertificate(t *testing.T) {
	t.Helper()
	ca := testcert.New(t)
	pair, err := certs.SelfSigned([]string{"gate.example"}, time.Now())
	if err == nil {
		w.client, err = tls.X509KeyPair(ca.Sign(new(x509.Certificate)))
	}
	if err != nil {
		t.Fatal(err)
	}
	w.control.SetSecrets(xds.Secrets(map[string]certs.Pair{"any": pair}, map[string]certs.Roots{
		xds.ClientCAs(&definitions.ClientCertificates{CAFile: "any"}): {PEM: ca.PEM()},
	}))
}

const severalHosts = `listen: LISTEN
tokens: {path: /auth/token, hosts: [login.example, "*.shop.example", other.example], authenticator: {url: "http://users.example/users/authenticate"}}
services:
  - {name: all-orders, path: /orders, authenticate: false, upstreams: ["UP/1"]}
  - {name: all-deep, path: /orders/deep, authenticate: false, upstreams: ["UP/2"]}
  - {name: all-status, path: /Status, authenticate: false, upstreams: ["UP/3"]}
  - {name: orders, path: /Orders, hosts: [api.shop.example], upstreams: ["UP/4"]}
  - {name: wild-orders, path: /orders, hosts: ["*.shop.example"], authenticate: false, allowed_methods: [GET], upstreams: ["UP/5"]}
  - {name: wild-auth, path: /auth, hosts: ["*.shop.example"], authenticate: false, upstreams: ["UP/6"]}
  - {name: eu, path: /, hosts: ["*.eu.shop.example"], authenticate: false, upstreams: ["UP/7"]}
  - {name: unknown, path: /, hosts: [admin.example], upstreams: ["UP/8"]}
  - {name: token, path: /status/token, hosts: [admin.example], authenticate: false, upstreams: ["UP/9"]}
`

// awaitServed waits until new connections are served these definitions, including the listener's
// part.
func (w *world) awaitServed(t *testing.T, d *definitions.Definitions) {
	t.Helper()
	w.awaitServedBy(t, w.explainer(d, w.sessions))
}

// awaitServedBy waits until responses match the explanations.
func (w *world) awaitServedBy(t *testing.T, e *Explainer) {
	t.Helper()
	var probes []Request
	for _, origin := range append(slices.Clone(someOrigins), "https://evil.example") {
		for _, target := range []string{definitions.VersionPath, "/%2f"} {
			probes = append(probes, Request{Method: "GET", Target: target, Header: []Field{{"Host", "h"}, {"Origin", origin}, {"Connection", "close"}}})
		}
	}
	var differs string
	t.Cleanup(func() {
		if t.Failed() && differs != "" {
			t.Logf("the last probe that differed:\n%s", differs)
		}
	})
	envoytest.Eventually(t, "the definitions to be served", func() bool {
		differs = ""
		return !slices.ContainsFunc(probes, func(r Request) bool {
			a, err := e.Explain(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			g, err := w.send(r)
			if have, want := summary(g.status, g.header, g.body), w.expected(a.Outcomes[0], r); err != nil || have != want {
				differs = fmt.Sprintf("%+v: %v\n%s\nis explained as\n%s", r, err, have, want)
			}
			return differs != ""
		})
	})
}

// explainer returns an explainer for the configuration of the world's Envoy, which has the module.
func (w *world) explainer(d *definitions.Definitions, sessions authz.Sessions) *Explainer {
	w.t.Helper()
	e, err := New(Config{Definitions: d, Options: w.options(), Sessions: sessions})
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) options() xds.Options {
	o := options
	o.Module = w.module
	o.Certificates = []xds.Certificate{{Name: "any", Default: true}}
	return o
}

func explainer(t *testing.T, d *definitions.Definitions, sessions authz.Sessions) *Explainer {
	t.Helper()
	e, err := New(Config{Definitions: d, Options: options, Sessions: sessions})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// compare explains a request with the store and without, sends it, and returns the reason of the
// outcome.
func (w *world) compare(t *testing.T, with, without *Explainer, r Request) string {
	t.Helper()
	a, err := with.Explain(t.Context(), r)
	if err != nil {
		return "not explained"
	}
	if a.Outcomes[0].Reason == "too_many_headers" && w.module.Library != "" {
		return "not compared" // Envoy counts again only if it asks, and the module may know the decision
	}
	for _, u := range w.upstreams {
		u.seen.Store(0)
	}
	g, err := w.send(r)
	if err != nil {
		t.Errorf("%+v: explained as %+v, and: %v", r, a.Outcomes, err)
		return ""
	}
	have := summary(g.status, g.header, g.body)
	if want := w.expected(a.Outcomes[0], r); have != want {
		t.Errorf("%s %q %q\nis explained as\n%s\nand gets\n%s", r.Method, r.Target, r.Header, want, have)
	}
	reached := int64(0)
	for _, u := range w.upstreams {
		reached += u.seen.Load()
	}
	if want := a.Outcomes[0].Forward != nil; (reached == 1) != want || reached > 1 {
		t.Errorf("%s %q %q: explained that it is forwarded: %t; %d requests reached upstreams", r.Method, r.Target, r.Header, want, reached)
	}
	if len(a.Unsure) > 0 {
		t.Errorf("settings of Envoy's that are not modelled: %v", a.Unsure)
	}
	blind, err := without.Explain(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(blind.Outcomes, func(o Outcome) bool { return w.sameBut(o, a.Outcomes[0], r) }) {
		t.Errorf("%s %q %q: without the store the outcomes are %+v, want one of them to be %+v", r.Method, r.Target, r.Header, blind.Outcomes, a.Outcomes[0])
	}
	return a.Outcomes[0].Reason
}

// sameBut reports whether an outcome without lookups equals the one with lookups, except for the
// user's id.
func (w *world) sameBut(without, with Outcome, r Request) bool {
	if with.Reason == "bad_user" || without.Reason == "too_many_headers" {
		return true // these need the store, or the length of the user's id
	}
	if with.Forward != nil && without.Forward != nil {
		known := *without.Forward
		known.Set = slices.Clone(known.Set)
		for i := range known.Set {
			if known.Set[i].Value == placeholderUser {
				known.Set[i].Value = with.Forward.Set[i].Value
			}
		}
		without.Forward = &known
	}
	return w.expected(without, r) == w.expected(with, r)
}
