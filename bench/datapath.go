package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// warmTokens is the number of tokens that the load uses in turn. There are enough to exceed
// single-entry optimizations, and few enough that all are in the table of decisions.
const warmTokens = 100

// The designs that are compared, all with the same service behind them.
const (
	bareNoAuth    = "envoy, no authorization"
	bareAlwaysOK  = "envoy, always-OK"
	bareRedisGet  = "envoy, go-redis GET"
	bareOPA       = "envoy, OPA"
	bareOath      = "envoy, Oathkeeper"
	nodeAsItWas   = "node gateway, as it was"
	nodeKeepAlive = "node gateway, keep-alive"
	nginxRule     = "nginx auth_request"
	gateDefault   = "gatepost"
	gatePublic    = "gatepost, public service"
	gateLogged    = "gatepost, with an access log"
	gateClustered = "gatepost, a limit of the cluster"
	gateAsking    = "gatepost, --module off"
)

// The environment variables with the paths of peers that the bench does not include.
const (
	envOPA  = "GATEPOST_BENCH_OPA"
	envOath = "GATEPOST_BENCH_OATHKEEPER"
)

// dataPathGoals measures G1, G2, G4, G5, G6 and G13 in one comparison, so that they share its rounds.
func dataPathGoals(ctx context.Context, l *lab, wanted func(string) bool) ([]finding, error) {
	var findings []finding
	var names []string
	need := func(some ...string) {
		for _, name := range some {
			if !contains(names, name) {
				names = append(names, name)
			}
		}
	}
	type comparison struct {
		goal, what, over, under string
		figure                  func(sample) float64
		bound                   bound
	}
	var comparisons []comparison
	compare := func(goal, what, over, under string, figure func(sample) float64, b bound) {
		if wanted(goal) {
			need(over, under)
			comparisons = append(comparisons, comparison{goal, what, over, under, figure, b})
		}
	}
	// Designs whose goals are closest to 1 are measured one after the other.
	compare("G1", whatPublic, gateDefault, gatePublic, rate, atLeast(0.95))
	compare("G13", "warm check with an access log ÷ without", gateLogged, gateDefault, rate, atLeast(0.9))
	compare("G13", "warm check with a rate limit of scope: cluster ÷ without", gateClustered, gateDefault, rate, bound{})
	compare("G13", "… the median of its latency ÷ without the limit", gateClustered, gateDefault, p50, bound{})
	// A finding without a goal shows what no filter in Envoy can exceed.
	compare("G1", "warm check ÷ always-OK on a bare Envoy", gateDefault, bareAlwaysOK, rate, atLeast(2.2))
	compare("G1", "… the most that is possible: a bare Envoy without authorization ÷ always-OK", bareNoAuth, bareAlwaysOK, rate, bound{})
	compare("G2", "warm check, --module off ÷ always-OK on a bare Envoy", gateAsking, bareAlwaysOK, rate, atLeast(1.00))
	compare("G2", "warm check, --module off ÷ go-redis GET on a bare Envoy", gateAsking, bareRedisGet, rate, atLeast(1.3))
	compare("G4", whatNode, gateDefault, nodeAsItWas, rate, atLeast(8))
	compare("G4", "warm check ÷ Node gateway with keep-alive", gateDefault, nodeKeepAlive, rate, atLeast(2.5))
	for _, peer := range []struct {
		name, what, variable string
		bound                bound
	}{{bareOPA, whatOPA, envOPA, atLeast(3.3)}, {bareOath, whatOath, envOath, atLeast(3.0)}} {
		if wanted("G5") && os.Getenv(peer.variable) == "" {
			findings = append(findings, finding{Goal: "G5", What: peer.what, Bound: peer.bound, Missing: "not measured: " + peer.variable + " names no binary"})
			continue
		}
		compare("G5", peer.what, gateDefault, peer.name, rate, peer.bound)
	}
	compare("G6", "CPU per request ÷ nginx auth_request with the same rule", gateDefault, nginxRule, cpu, atMost(0.75))
	compare("G6", "… the least that is possible: a bare Envoy without authorization ÷ nginx auth_request", bareNoAuth, nginxRule, cpu, bound{})
	if len(comparisons) == 0 {
		return findings, nil
	}
	var subjects []subject
	for _, name := range names {
		s, err := l.subject(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("starting %s: %w", name, err)
		}
		subjects = append(subjects, s)
	}
	got, err := l.rounds(ctx, subjects)
	if err != nil {
		return nil, err
	}
	l.keep("the data path through Envoy", names, got)
	for _, c := range comparisons {
		f := finding{Goal: c.goal, What: c.what, Bound: c.bound, Rounds: got.ratios(c.over, c.under, c.figure)}.summarize()
		if c.over == gateClustered {
			if f.Note, err = l.stack.gateways["gatepost-clustered"].uncounted(ctx); err != nil {
				return nil, err
			}
		}
		findings = append(findings, f)
	}
	return findings, nil
}

// decision is a line of the metrics about limits of the cluster.
var decision = regexp.MustCompile(`(?m)^gatepost_cluster_limit_decisions_total\{decision="\w+",reason="(\w+)"\} (\S+)$`)

// uncounted is a note about requests that passed a limit of the cluster without a count: they cost less.
func (g *gateway) uncounted(ctx context.Context) (string, error) {
	status, text, err := get(ctx, "http://"+g.admin+"/metrics")
	if err != nil {
		return "", err
	}
	all, late := 0.0, 0.0
	for _, line := range decision.FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseFloat(line[2], 64)
		if err != nil {
			return "", fmt.Errorf("reading the metrics of %s: %w", g.name, err)
		}
		all += n
		if line[1] == "no_redis" {
			late += n
		}
	}
	if all == 0 {
		return "", fmt.Errorf("%w: %s counted no requests (%d)", errWrong, g.name, status)
	}
	return fmt.Sprintf("%.0f of %.0f requests passed without a count, because Redis was late; they cost less", late, all), nil
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}

// subject returns a design. It starts the design if it is not running yet.
func (l *lab) subject(ctx context.Context, name string) (subject, error) {
	if s, ok := l.stack.subjects[name]; ok {
		return s, nil
	}
	s, err := l.startSubject(ctx, name)
	if err != nil {
		return subject{}, err
	}
	s.name = name
	if l.stack.subjects == nil {
		l.stack.subjects = map[string]subject{}
	}
	l.stack.subjects[name] = s
	return s, nil
}

func (l *lab) startSubject(ctx context.Context, name string) (subject, error) {
	store, err := l.redis(ctx)
	if err != nil {
		return subject{}, err
	}
	up, err := l.upstream(ctx)
	if err != nil {
		return subject{}, err
	}
	switch name {
	case gateDefault:
		return l.gatepostSubject(ctx, "gatepost", "")
	case gatePublic:
		return l.gatepostSubject(ctx, "gatepost", "/items/5")
	case gateLogged:
		return l.gatepostSubject(ctx, "gatepost-logged", "")
	case gateClustered:
		return l.gatepostSubject(ctx, "gatepost-clustered", "")
	case gateAsking:
		return l.gatepostSubject(ctx, "gatepost-asking", "", "--module", "off")
	case bareNoAuth:
		address, p, err := l.bareEnvoy(ctx, "envoy", nil)
		return l.http(visit{address: address, open: true}, p, up.process), err
	case bareAlwaysOK, bareRedisGet, bareOPA, bareOath:
		return l.authzSubject(ctx, name)
	case nodeAsItWas, nodeKeepAlive:
		short := map[string]string{nodeAsItWas: "node", nodeKeepAlive: "node-ka"}[name]
		address, p, err := l.node(ctx, short, name == nodeKeepAlive)
		if err != nil {
			return subject{}, err
		}
		tokens, err := logins(ctx, "http://"+address, "")
		return l.http(visit{address: address, tokens: tokens}, p, up.process, store.process), err
	case nginxRule:
		return l.nginxSubject(ctx)
	}
	return subject{}, fmt.Errorf("there is no %q", name)
}

// gatepostSubject is a service of a Gatepost: the public one at a path, or the secured one if there is no path. All
// belong to one gateway.
func (l *lab) gatepostSubject(ctx context.Context, name, public string, arguments ...string) (subject, error) {
	if l.stack.gateways == nil {
		l.stack.gateways = map[string]*gateway{}
	}
	g := l.stack.gateways[name]
	if g == nil {
		var err error
		definitions := dataPath(l.stack.upstream)
		switch name {
		case "gatepost-logged":
			definitions += "access_log: {format: ecs}\n"
		case "gatepost-clustered":
			definitions = strings.Replace(definitions, "path: /orders",
				"path: /orders, rate_limits: [{requests: 1000000, by: address, scope: cluster}]", 1)
		}
		if g, err = l.gatepost(ctx, name, definitions, dbGatepost, arguments...); err != nil {
			return subject{}, err
		}
		l.stack.gateways[name] = g
	}
	if public != "" {
		return l.http(visit{address: g.address, path: public, open: true}, g.process, l.stack.upstream.process, l.stack.redis.process), nil
	}
	tokens, err := logins(ctx, g.url(), "Bearer ")
	return l.http(visit{address: g.address, tokens: tokens, user: "user-0", who: "/orders/who"}, g.process, l.stack.upstream.process, l.stack.redis.process), err
}

// authzSubject is a bare Envoy with an ext_authz server behind it.
func (l *lab) authzSubject(ctx context.Context, name string) (subject, error) {
	port, err := freePort()
	if err != nil {
		return subject{}, err
	}
	store, up := l.stack.redis, l.stack.upstream
	authz := map[string]any{"GRPC": true, "Port": port}
	v := visit{open: true}
	var server *process
	short := "authz"
	switch name {
	case bareAlwaysOK:
		short = "always-ok"
		server, err = l.start(short, l.program("alwaysok"), "-grpc", local(port))
	case bareRedisGet:
		short = "go-redis"
		server, err = l.start(short, l.program("redisget"), "-grpc", local(port), "-redis", store.url(dbRule))
		if err != nil {
			return subject{}, err
		}
		v = visit{user: "user-0", who: "/who"}
		v.tokens, err = l.ruleTokens(ctx)
	case bareOPA:
		short = "opa"
		server, err = l.opa(port)
	case bareOath:
		short = "oathkeeper"
		authz = map[string]any{"HTTP": true, "Port": port, "PathPrefix": "/decisions"}
		server, err = l.oathkeeper(port)
	}
	if err != nil {
		return subject{}, err
	}
	if err := server.awaitListening(ctx, local(port)); err != nil {
		return subject{}, err
	}
	address, p, err := l.bareEnvoy(ctx, "envoy-"+short, authz)
	v.address = address
	return l.http(v, p, server, up.process, store.process), err
}

func (l *lab) opa(port int) (*process, error) {
	policy, err := l.fill("peers/opa/policy.rego", filepath.Join(l.dir, "policy.rego"), nil)
	if err != nil {
		return nil, err
	}
	other, err := freePort()
	if err != nil {
		return nil, err
	}
	return l.start("opa", os.Getenv(envOPA), "run", "--server", "--addr", local(other), "--log-level", "error", "--disable-telemetry",
		"--set", "plugins.envoy_ext_authz_grpc.addr="+local(port), "--set", "plugins.envoy_ext_authz_grpc.path=envoy/authz/allow", policy)
}

func (l *lab) oathkeeper(port int) (*process, error) {
	proxy, err := freePort()
	if err != nil {
		return nil, err
	}
	config, err := l.fill("peers/oathkeeper/config.yaml", filepath.Join(l.dir, "oathkeeper.yaml"), map[string]any{"Proxy": proxy, "API": port, "Dir": l.dir})
	if err != nil {
		return nil, err
	}
	rules, err := peerFiles.ReadFile("peers/oathkeeper/rules.json")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(l.dir, "rules.json"), rules, 0o644); err != nil {
		return nil, err
	}
	// Without the variable it reports its use to its vendor.
	return l.start("oathkeeper", "env", "SQA_OPT_OUT=true", os.Getenv(envOath), "serve", "--config", config)
}

// nginxSubject is nginx with auth_request and the same rule on Redis.
func (l *lab) nginxSubject(ctx context.Context) (subject, error) {
	rulePort, err := freePort()
	if err != nil {
		return subject{}, err
	}
	port, err := freePort()
	if err != nil {
		return subject{}, err
	}
	rule, err := l.start("go-redis-http", l.program("redisget"), "-http", local(rulePort), "-redis", l.stack.redis.url(dbRule))
	if err != nil {
		return subject{}, err
	}
	if err := rule.awaitListening(ctx, local(rulePort)); err != nil {
		return subject{}, err
	}
	p, err := l.nginx(ctx, "nginx", "gateway.conf", port, map[string]any{"Upstream": l.stack.upstream.port, "Rule": rulePort})
	if err != nil {
		return subject{}, err
	}
	tokens, err := l.ruleTokens(ctx)
	return l.http(visit{address: local(port), tokens: tokens, user: "user-0", who: "/orders/who"}, p, rule, l.stack.upstream.process, l.stack.redis.process), err
}

// ruleTokens creates tokens for the peers that read Redis: keys with the user as the value.
func (l *lab) ruleTokens(ctx context.Context) ([]string, error) {
	var tokens []string
	for i := range warmTokens {
		token := fmt.Sprintf("6e1c0000-0000-4000-8000-%012d", i)
		if err := l.stack.redis.client(dbRule).Set(ctx, token, "user-"+strconv.Itoa(i), time.Hour).Err(); err != nil {
			return nil, fmt.Errorf("putting tokens into Redis: %w", err)
		}
		tokens = append(tokens, token)
	}
	return tokens, nil
}

// logins logs users in through a gateway and returns their values of Authorization.
func logins(ctx context.Context, gateway, scheme string) ([]string, error) {
	var tokens []string
	for i := range warmTokens {
		token, err := login(ctx, gateway, "user-"+strconv.Itoa(i))
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, scheme+token)
	}
	return tokens, nil
}

// visit describes the requests of a client and the expected responses.
type visit struct {
	address string
	path    string   // the default is /orders/5
	open    bool     // no token is required
	tokens  []string // valid values of Authorization
	user    string   // the user that the service must receive with the first token; "" means none
	who     string   // the path at which the service returns the user that it received
}

// http returns a subject with HTTP clients. Responses are checked, and each connection has one
// request at a time.
func (l *lab) http(v visit, processes ...*process) subject {
	if v.path == "" {
		v.path = "/orders/5"
	}
	what := load{method: http.MethodGet, address: v.address, path: v.path, header: "Authorization", values: v.tokens}
	if len(v.tokens) == 0 {
		what.values = []string{"Bearer 6e1c0000-0000-4000-8000-000000000000"} // as long as the other values
	}
	return subject{
		run:       func(ctx context.Context, during time.Duration) (outcome, error) { return l.run(ctx, what, during) },
		check:     v.check,
		processes: processes,
	}
}

// check sends a request with a valid token, an invalid one, and none.
func (v visit) check(ctx context.Context) error {
	url := "http://" + v.address + v.path
	want := func(status int, headers ...string) error {
		got, text, err := get(ctx, url, headers...)
		if err != nil {
			return err
		}
		if got != status {
			return fmt.Errorf("%w: %s returned %d, not %d: %s", errWrong, url, got, status, text)
		}
		return nil
	}
	if v.open {
		return want(http.StatusOK)
	}
	if err := want(http.StatusOK, "Authorization: "+v.tokens[0]); err != nil {
		return err
	}
	if v.user != "" {
		status, who, err := get(ctx, "http://"+v.address+v.who, "Authorization: "+v.tokens[0], "X-User-Id: admin")
		if err != nil {
			return err
		}
		if status != http.StatusOK || who != v.user {
			return fmt.Errorf("%w: the service received %q (%d), not %q", errWrong, who, status, v.user)
		}
	}
	if err := want(http.StatusUnauthorized, "Authorization: Bearer 6e1cffff-ffff-4fff-8fff-ffffffffffff"); err != nil {
		return err
	}
	return want(http.StatusUnauthorized)
}
