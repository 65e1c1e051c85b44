package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const (
	// countedRequests is the number of requests of one count.
	countedRequests = 300
	// uncountedRequests come before the first count.
	uncountedRequests = 50
)

// What is counted.
const (
	countPublic    = "a public service"
	countWarm      = "a warm check"
	countHealth    = "a warm check, the service has a health check"
	countHost      = "a warm check, the service has a host"
	countUnlimited = "a warm check, another service has a rate limit"
	countLimited   = "a warm check, the service has a rate limit by address"
	countLogged    = "a warm check, with an access log"
	countAsking    = "a warm check, --module off"
	countAlwaysOK  = "a bare Envoy that asks an always-OK server"
	countBare      = "a bare Envoy with one route"
)

// counted is something that is counted: each call of request is one request.
type counted struct {
	name    string
	of      *counter
	request func(ctx context.Context) error
}

// costGoal measures G13: what a feature costs on a warm request, in instructions. Differences of a few percent are
// smaller than what CPU time and rates vary by; instructions vary by less than one percent, under other load too.
func costGoal(ctx context.Context, l *lab, _ func(string) bool) ([]finding, error) {
	all, err := l.everythingCounted(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		for range uncountedRequests {
			if err := c.request(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	got := counts{Rounds: map[string][]float64{}}
	for _, c := range all {
		got.Subjects = append(got.Subjects, c.name)
	}
	for round := range l.count {
		for _, c := range inTurn(all, round) {
			instructions, err := c.of.during(ctx, func() error {
				for range countedRequests {
					if err := c.request(ctx); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("counting %s: %w", c.name, err)
			}
			got.Rounds[c.name] = append(got.Rounds[c.name], float64(instructions)/countedRequests)
			l.say("count %d/%d  %-55s %7.0f instructions per request", round+1, l.count, c.name, got.Rounds[c.name][round])
		}
		l.say("         %s", l.left())
	}
	l.counts = &got
	cost := func(what, with, without string, most float64) finding {
		f := finding{Goal: "G13", What: what, Bound: atMost(most)}
		for round, n := range got.Rounds[with] {
			f.Rounds = append(f.Rounds, n/got.Rounds[without][round])
		}
		return f.summarize()
	}
	traces, err := l.tracingGoal(ctx)
	return []finding{
		cost("Envoy's instructions for a warm check, service with a host ÷ without", countHost, countWarm, 1.02),
		cost("… with a rate limit by address ÷ without, in a gateway without limits", countLimited, countWarm, 1.03),
		cost("… with a health check ÷ without", countHealth, countWarm, 1.01),
		traces,
	}, err
}

// everythingCounted starts all that is counted under callgrind.
func (l *lab) everythingCounted(ctx context.Context) ([]counted, error) {
	up, err := l.upstream(ctx)
	if err != nil {
		return nil, err
	}
	plain := l.envoy
	if l.envoy, err = l.countedEnvoy(); err != nil {
		return nil, err
	}
	defer func() { l.envoy = plain }()
	const secured = ", allowed_methods: [GET, POST, PUT, DELETE], upstreams: [\"%[1]s\"]"
	definitions := func(more string) string {
		return fmt.Sprintf("tokens: {authenticator: {url: \"%[1]s/users/authenticate\"}}\nservices:\n"+
			"  - {name: orders, path: /orders"+secured+"}\n"+
			"  - {name: items, path: /items, authenticate: false, allowed_methods: [GET], upstreams: [\"%[1]s\"]}\n"+
			"  - {name: checked, path: /checked"+secured+", health_check: /5}\n"+more, up.url())
	}
	var all []counted
	for _, g := range []struct {
		name, definitions string
		arguments         []string
		paths             []string // of the requests
		counted           []string // their names
	}{
		{"counted", definitions(""), nil,
			[]string{"/items/5", "/orders/5", "/checked/5"}, []string{countPublic, countWarm, countHealth}},
		{"counted-host", definitions("  - {name: hosted, path: /hosted" + secured + ", hosts: [shop.example]}\n"), nil,
			[]string{"/hosted/5"}, []string{countHost}},
		{"counted-limits", definitions("  - {name: limited, path: /limited" + secured +
			", rate_limits: [{requests: 1000000, by: address}]}\n"), nil,
			[]string{"/orders/5", "/limited/5"}, []string{countUnlimited, countLimited}},
		{"counted-log", definitions("access_log: {format: ecs}\n"), nil, []string{"/orders/5"}, []string{countLogged}},
		{"counted-asking", definitions(""), []string{"--module", "off"}, []string{"/orders/5"}, []string{countAsking}},
	} {
		started, err := l.gatepost(ctx, g.name, g.definitions, dbOther, g.arguments...)
		if err != nil {
			return nil, err
		}
		of, err := l.counter(ctx, started.process)
		if err != nil {
			return nil, err
		}
		token, err := login(ctx, started.url(), "user-0")
		if err != nil {
			return nil, err
		}
		v := visit{address: started.address, path: "/orders/5", tokens: []string{"Bearer " + token},
			user: "user-0", who: "/orders/who"}
		if err := v.check(ctx); err != nil {
			return nil, err
		}
		for i, path := range g.paths {
			all = append(all, counted{g.counted[i], of,
				visits(started.url()+path, "Host: shop.example", "Authorization: Bearer "+token)})
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	alwaysOK, err := l.start("counted-always-ok", l.program("alwaysok"), "-grpc", local(port))
	if err != nil {
		return nil, err
	}
	if err := alwaysOK.awaitListening(ctx, local(port)); err != nil {
		return nil, err
	}
	for _, bare := range []struct {
		counted, name string
		authz         map[string]any
	}{
		{countAlwaysOK, "counted-bare-asking", map[string]any{"GRPC": true, "Port": port}},
		{countBare, "counted-bare", nil},
	} {
		address, p, err := l.bareEnvoy(ctx, bare.name, bare.authz)
		if err != nil {
			return nil, err
		}
		of, err := l.counter(ctx, p)
		if err != nil {
			return nil, err
		}
		all = append(all, counted{bare.counted, of,
			visits("http://"+address+"/orders/5", "Authorization: Bearer 6e1c0000-0000-4000-8000-000000000000")})
	}
	return all, nil
}

// visits returns a request that must be answered with 200.
func visits(url string, headers ...string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		status, text, err := get(ctx, url, headers...)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%w: %s returned %d: %s", errWrong, url, status, text)
		}
		return err
	}
}

// The slices in which a difference of a few percent of a server's CPU time is measured: many and short, so that what
// changes on the machine changes for both.
const (
	slicesPerRound = 20
	slice          = 250 * time.Millisecond
)

// tracingGoal measures the part of G13 for traces that are off: the CPU time of the server for a check, beside that of
// the same server built with the tracing of testdata/untraced.
func (l *lab) tracingGoal(ctx context.Context) (finding, error) {
	untraced, err := l.buildUntraced(ctx)
	if err != nil {
		return finding{}, err
	}
	var servers []subject
	programs := map[string]string{"serve-traceable": l.program("gatepost"), "serve-untraced": untraced}
	for name, program := range programs {
		socket, p, requests, err := l.serve(ctx, name, program)
		if err != nil {
			return finding{}, err
		}
		defer l.end(p)
		s, err := asked(name, socket, requests, true, p)
		if err != nil {
			return finding{}, err
		}
		if err := s.check(ctx); err != nil {
			return finding{}, err
		}
		if _, err := s.run(ctx, warm); err != nil {
			return finding{}, err
		}
		servers = append(servers, s)
	}
	const what = "the server's CPU for a check, traces off ÷ built without traces"
	f := finding{Goal: "G13", What: what, Bound: atMost(1.02)}
	for round := range l.count {
		if err := l.awaitQuiet(ctx); err != nil {
			return finding{}, err
		}
		var ratios []float64
		for n := range slicesPerRound {
			used := map[string]float64{}
			for _, s := range inTurn(servers, n) {
				if used[s.name], err = cpuPerRequest(ctx, s); err != nil {
					return finding{}, err
				}
			}
			ratios = append(ratios, used["serve-traceable"]/used["serve-untraced"])
		}
		f.Rounds = append(f.Rounds, median(ratios))
		l.say("round %d/%d  traces off ÷ built without traces: %.3f", round+1, l.count, median(ratios))
	}
	return f.summarize(), nil
}

// cpuPerRequest returns the CPU time of a subject's only process for a request, in nanoseconds, over one slice.
func cpuPerRequest(ctx context.Context, s subject) (float64, error) {
	before, err := cpuClock(s.processes[0].pid())
	if err != nil {
		return 0, err
	}
	got, err := s.run(ctx, slice)
	if err != nil {
		return 0, err
	}
	after, err := cpuClock(s.processes[0].pid())
	return float64(after-before) / float64(got.Requests), err
}

// buildUntraced builds gatepost with a package tracing that has no code for spans.
func (l *lab) buildUntraced(ctx context.Context) (string, error) {
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(l.root, "tracing", "tracing.go"): filepath.Join(l.root, "bench", "testdata", "untraced", "tracing.go"),
	}})
	if err != nil {
		return "", err
	}
	file, program := filepath.Join(l.dir, "untraced.json"), l.program("gatepost-untraced")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		return "", fmt.Errorf("writing the overlay of a build without traces: %w", err)
	}
	l.say("building gatepost without traces")
	return program, l.build(ctx, ".", program, "-overlay", file, "./cmd/gatepost")
}
