package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The two sizes.
const (
	fewServices  = 10
	manyServices = 10_000
)

// addsPerRound is how often one service is added in a round.
const addsPerRound = 2

// servicesGoals measures G9, G10 and the part of G12 for services: a gateway with ten services and
// one with ten thousand. All are public, so that only routing is measured.
func servicesGoals(ctx context.Context, l *lab, wanted func(string) bool) ([]finding, error) {
	l.say("         starting a gateway with %d services and one with %d", fewServices, manyServices)
	few, err := l.catalogue(ctx, fewServices)
	if err != nil {
		return nil, err
	}
	defer l.end(few.process)
	many, err := l.catalogue(ctx, manyServices)
	if err != nil {
		return nil, err
	}
	defer l.end(many.process)
	var findings []finding
	if wanted("G12") {
		memory, err := l.memory(ctx, many.gateway)
		if err != nil {
			return nil, err
		}
		findings = append(findings, memory.finding("sidecar's memory with 10,000 services", 80))
		ofEnvoy, err := envoyMemory(few, many)
		if err != nil {
			return nil, err
		}
		findings = append(findings, ofEnvoy)
	}
	if wanted("G9") {
		found, err := l.lastService(ctx, few, many)
		if err != nil {
			return nil, err
		}
		findings = append(findings, found)
	}
	if wanted("G10") {
		found, err := l.oneMore(ctx, few, many)
		if err != nil {
			return nil, err
		}
		findings = append(findings, found...)
	}
	return findings, nil
}

// catalogue is a gateway with numbered services.
type catalogue struct {
	*gateway
	services int
	upstream string
}

func (l *lab) catalogue(ctx context.Context, services int) (*catalogue, error) {
	up, err := l.upstream(ctx)
	if err != nil {
		return nil, err
	}
	c := &catalogue{services: services, upstream: up.url()}
	c.gateway, err = l.gatepost(ctx, "gatepost-"+strconv.Itoa(services), c.definitions(), dbOther)
	return c, err
}

func (c *catalogue) definitions() string {
	var b strings.Builder
	b.WriteString("services:\n")
	for n := range c.services {
		fmt.Fprintf(&b, "  - {name: svc%d, path: /svc%[1]d, authenticate: false, upstreams: [\"%s\"]}\n", n, c.upstream)
	}
	return b.String()
}

// envoyMemory returns the memory of Envoy for a service: what it has more with many services than with few.
func envoyMemory(few, many *catalogue) (finding, error) {
	var of [2]resident
	for i, c := range []*catalogue{few, many} {
		child, err := envoyOf(c.pid())
		if err != nil {
			return finding{}, err
		}
		if of[i], err = readResident(child.pid); err != nil {
			return finding{}, err
		}
	}
	return finding{
		Goal: "G12", What: "Envoy's memory for a service", Unit: "KiB", Bound: atMost(60),
		Value: float64(of[1].all-of[0].all) / float64(many.services-few.services),
		Note:  fmt.Sprintf("resident %d MiB with %d services, %d MiB with %d", of[0].all/1024, few.services, of[1].all/1024, many.services),
	}, nil
}

// last is a subject whose clients call the last service.
func (l *lab) last(c *catalogue, name string) subject {
	s := l.http(visit{address: c.address, path: "/svc" + strconv.Itoa(c.services-1) + "/5", open: true}, c.process, l.stack.upstream.process)
	s.name = name
	return s
}

// lastService measures G9.
func (l *lab) lastService(ctx context.Context, few, many *catalogue) (finding, error) {
	const ofFew, ofMany = "the last of 10 services", "the last of 10,000 services"
	got, err := l.rounds(ctx, []subject{l.last(few, ofFew), l.last(many, ofMany)})
	if err != nil {
		return finding{}, err
	}
	l.keep("the last of many services", []string{ofFew, ofMany}, got)
	return finding{Goal: "G9", What: whatLast, Bound: atLeast(0.95), Rounds: got.ratios(ofMany, ofFew, rate)}.summarize(), nil
}

// added are the times for adding one service.
type added struct {
	saved     time.Duration // from the save until every Envoy worker serves it
	read      time.Duration // from the time when the gateway has read the definitions
	published time.Duration // from the time when the configuration is built and published
	bytes     int           // bytes sent to Envoy, if measured
}

// oneMore measures G10. For a peer, the time starts with the request that adds the service: it has
// the service in memory at once, but Gatepost must read a file.
func (l *lab) oneMore(ctx context.Context, few, many *catalogue) ([]finding, error) {
	peer, err := l.oneRoute(ctx, manyServices)
	if err != nil {
		return nil, err
	}
	defer peer.stop(l)
	adders := []struct {
		name string
		add  func(context.Context) (added, error)
	}{{"few", few.add}, {"many", many.add}, {"peer", peer.add}}
	all := map[string][]added{}
	for round := range l.count * addsPerRound {
		for i := range adders {
			if round%2 == 1 {
				i = len(adders) - 1 - i
			}
			if err := l.awaitQuiet(ctx); err != nil {
				return nil, err
			}
			got, err := adders[i].add(ctx)
			if err != nil {
				return nil, fmt.Errorf("adding a service (%s): %w", adders[i].name, err)
			}
			all[adders[i].name] = append(all[adders[i].name], got)
			l.say("add %d/%d  %-5s served after %8.1f ms from the save, %8.1f ms from the reading, %8.1f ms from the publishing, %d bytes",
				round+1, l.count*addsPerRound, adders[i].name, milliseconds(got.saved), milliseconds(got.read), milliseconds(got.published), got.bytes)
		}
	}
	ratio := func(over, under string, figure func(added) time.Duration) []float64 {
		var out []float64
		for i := range all[over] {
			out = append(out, float64(figure(all[over][i]))/float64(figure(all[under][i])))
		}
		return out
	}
	saved := func(a added) time.Duration { return a.saved }
	read := func(a added) time.Duration { return a.read }
	figures := func(name string, figure func(added) float64) []float64 {
		var out []float64
		for _, a := range all[name] {
			out = append(out, figure(a))
		}
		return out
	}
	middle := func(name string, figure func(added) time.Duration) float64 {
		return median(figures(name, func(a added) float64 { return milliseconds(figure(a)) }))
	}
	published := func(a added) time.Duration { return a.published }
	note := fmt.Sprintf("medians at 10 and at 10,000: served %.1f and %.1f ms from the save, %.1f and %.1f ms from the reading, %.1f and %.1f ms from the publishing; the peer %.1f ms",
		middle("few", saved), middle("many", saved), middle("few", read), middle("many", read),
		middle("few", published), middle("many", published), middle("peer", saved))
	return []finding{
		finding{Goal: "G10", What: "one service added at 10,000: from the save until it is served", Unit: "s", Bound: atMost(1),
			Rounds: figures("many", func(a added) float64 { return a.saved.Seconds() }), Note: note}.summarize(),
		finding{Goal: "G10", What: "from when the definitions are read ÷ SnapshotCache with one route table", Bound: atMost(0.2), Rounds: ratio("many", "peer", read)}.summarize(),
		finding{Goal: "G10", What: "bytes to Envoy for one service added at 10,000", Unit: "B", Bound: atMost(2048), Rounds: figures("many", func(a added) float64 { return float64(a.bytes) })}.summarize(),
	}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// add saves definitions with one more service, and waits until Envoy serves it.
func (c *catalogue) add(ctx context.Context) (added, error) {
	c.services++
	next := c.definitions()
	admin, err := envoyAdmin(c.pid())
	if err != nil {
		return added{}, err
	}
	before, err := received(ctx, admin)
	if err != nil {
		return added{}, err
	}
	logged, err := os.Stat(c.logFile)
	if err != nil {
		return added{}, err
	}
	if err := c.define(next); err != nil {
		return added{}, err
	}
	begin := time.Now()
	if err := awaitServed(ctx, c.address, c.services-1); err != nil {
		return added{}, err
	}
	end := time.Now()
	readAt, err := loggedAt(c.logFile, logged.Size(), "definitions read")
	if err != nil {
		return added{}, err
	}
	publishedAt, err := loggedAt(c.logFile, logged.Size(), "publishing a configuration")
	if err != nil {
		return added{}, err
	}
	time.Sleep(time.Second) // wait for the rest of the update
	after, err := received(ctx, admin)
	return added{saved: end.Sub(begin), read: end.Sub(readAt), published: end.Sub(publishedAt), bytes: after - before}, err
}

// awaitServed calls a service until it has responded on each of several connections, which Envoy
// distributes over its workers.
func awaitServed(ctx context.Context, address string, service int) error {
	const probes = 8
	clients := make([]*http.Client, probes)
	for i := range clients {
		transport := &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}
		defer transport.CloseIdleConnections()
		clients[i] = &http.Client{Timeout: 10 * time.Second, Transport: transport}
	}
	url := "http://" + address + "/svc" + strconv.Itoa(service) + "/5"
	served := 0
	for end := time.Now().Add(readyWithin); served < probes; {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		answer, err := clients[served].Do(request)
		if err != nil {
			return err
		}
		answer.Body.Close()
		switch {
		case answer.StatusCode == http.StatusOK:
			served++
		case time.Now().After(end):
			return fmt.Errorf("%w: %s returned %d for %v", errWrong, url, answer.StatusCode, readyWithin)
		default:
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// loggedAt returns the time of the first log line with a text, from an offset in the file.
func loggedAt(logFile string, offset int64, what string) (time.Time, error) {
	log, err := os.ReadFile(logFile)
	if err != nil {
		return time.Time{}, err
	}
	for line := range bytes.Lines(log[offset:]) {
		var entry struct {
			Time time.Time `json:"time"`
			Msg  string    `json:"msg"`
		}
		if json.Unmarshal(line, &entry) == nil && entry.Msg == what {
			return entry.Time, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s does not contain %q", logFile, what)
}

// envoyOf returns the Envoy of a gateway.
func envoyOf(gateway int) (stat, error) {
	all, err := readProcesses()
	if err != nil {
		return stat{}, err
	}
	for _, one := range below(all, gateway) {
		if one.name == "envoy" {
			return one, nil
		}
	}
	return stat{}, fmt.Errorf("process %d keeps no Envoy", gateway)
}

// envoyAdmin returns the path of the admin socket of a gateway's Envoy. It is in the private folder
// of Envoy's bootstrap.
func envoyAdmin(gateway int) (string, error) {
	child, err := envoyOf(gateway)
	if err != nil {
		return "", err
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child.pid))
	if err != nil {
		return "", fmt.Errorf("reading Envoy's command line: %w", err)
	}
	for _, word := range strings.Split(string(command), "\x00") {
		socket := filepath.Join(filepath.Dir(word), "admin.sock")
		if _, err := os.Stat(socket); err == nil && filepath.IsAbs(word) {
			return socket, nil
		}
	}
	return "", fmt.Errorf("process %d has no admin socket that could be found", child.pid)
}

// received returns the number of bytes that Envoy received from its control plane.
func received(ctx context.Context, socket string) (int, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy/stats?filter=upstream_cx_rx_bytes_total", nil)
	if err != nil {
		return 0, err
	}
	answer, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(request)
	if err != nil {
		return 0, fmt.Errorf("reading Envoy's statistics: %w", err)
	}
	defer answer.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(answer.Body); err != nil {
		return 0, fmt.Errorf("reading Envoy's statistics: %w", err)
	}
	for line := range strings.Lines(text.String()) {
		if value, ok := strings.CutPrefix(line, "cluster.gatepost-grpc.upstream_cx_rx_bytes_total: "); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("reading Envoy's statistics: none for gatepost-grpc in %.200q", text.String())
}

// oneRoute is the peer with SnapshotCache and one route table, and its Envoy.
type oneRoute struct {
	plane, envoy   *process
	control, proxy string
	services       int
}

func (l *lab) oneRoute(ctx context.Context, services int) (*oneRoute, error) {
	up, err := l.upstream(ctx)
	if err != nil {
		return nil, err
	}
	var ports [3]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	o := &oneRoute{control: local(ports[1]), proxy: local(ports[2]), services: services}
	o.plane, err = l.start("one-route", l.program("oneroute"), "-grpc", local(ports[0]), "-http", o.control,
		"-services", strconv.Itoa(services), "-port", strconv.Itoa(ports[2]), "-upstream", strconv.Itoa(up.port))
	if err != nil {
		return nil, err
	}
	if err := o.plane.awaitListening(ctx, o.control); err != nil {
		return nil, err
	}
	file, err := l.fill("peers/envoy/ads.yaml", filepath.Join(l.dir, "one-route.yaml"), map[string]any{
		"Admin": filepath.Join(l.dir, "one-route.sock"), "APIType": "DELTA_GRPC", "Control": ports[0],
	})
	if err != nil {
		return nil, err
	}
	if o.envoy, err = l.startEnvoy("envoy-one-route", file); err != nil {
		return nil, err
	}
	if err := o.envoy.awaitListening(ctx, o.proxy); err != nil {
		return nil, err
	}
	return o, awaitServed(ctx, o.proxy, services-1)
}

func (o *oneRoute) stop(l *lab) {
	l.end(o.envoy)
	l.end(o.plane)
}

func (o *oneRoute) add(ctx context.Context) (added, error) {
	n := o.services
	o.services++
	begin := time.Now()
	status, _, text, err := ask(ctx, http.MethodPost, "http://"+o.control+"/add?n="+strconv.Itoa(n), "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%w: the peer returned %d: %s", errWrong, status, text)
	}
	if err != nil {
		return added{}, err
	}
	err = awaitServed(ctx, o.proxy, n)
	took := time.Since(begin)
	return added{saved: took, read: took, published: took}, err
}
