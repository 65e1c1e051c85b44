package rollout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gatepost/definitions"
	"gatepost/envoy"
	"gatepost/envoy/envoytest"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kit is a rollout with a real Envoy. The file of roots is not there, so that Envoy refuses each https upstream.
type kit struct {
	*Rollout
	t        *testing.T
	addr     string
	lastGood *disk
	registry *prometheus.Registry
	used     atomic.Pointer[definitions.Tokens] // of what was published last
	grpc     string                             // where Envoys connect
}

// disk is a real LastGood on a disk that can hang: Save blocks while the lock is held.
type disk struct {
	definitions.LastGood
	sync.Mutex
	saves atomic.Int64
}

func (d *disk) Save(what *definitions.Definitions) error {
	d.saves.Add(1)
	d.Lock()
	defer d.Unlock()
	return d.LastGood.Save(what)
}

// newKit starts one that keeps what is verified in dir, and listens on addr if the definitions say so. change may
// change its configuration.
func newKit(t *testing.T, addr, dir string, change ...func(*Config)) *kit {
	t.Helper()
	k := newKitWithoutEnvoy(t, addr, dir, change...)
	k.startEnvoy()
	return k
}

func (k *kit) startEnvoy() {
	k.t.Helper()
	envoytest.Start(k.t, envoytest.Options{GRPC: k.grpc, NotReady: true})
}

func newControl(t *testing.T, o xds.Config) *xds.Server {
	t.Helper()
	control, err := xds.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return control
}

func newKitWithoutEnvoy(t *testing.T, addr, dir string, change ...func(*Config)) *kit {
	t.Helper()
	envoytest.Require(t)
	log, registry := slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry()
	k := &kit{t: t, addr: addr, lastGood: &disk{LastGood: definitions.LastGood{Dir: dir}}, registry: registry}
	control := newControl(t, xds.Config{Grace: 100 * time.Millisecond, Warmup: time.Millisecond, Logger: log, Registerer: registry})
	socket := filepath.Join(t.TempDir(), "grpc.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	control.Register(server)
	config := Config{
		Control:  control,
		Options:  xds.Options{GRPCCluster: envoy.ClusterGRPC, HTTPCluster: envoy.ClusterHTTP, CAFile: filepath.Join(t.TempDir(), "roots.pem")},
		LastGood: k.lastGood, OnPublish: func(d *definitions.Definitions) { k.used.Store(&d.Gateway.Tokens) }, Logger: log, Registerer: registry,
	}
	for _, f := range change {
		f(&config)
	}
	if k.Rollout, err = New(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	running.Go(func() { _ = k.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		control.Close()
		server.Stop()
		running.Wait()
	})
	k.grpc = "unix:" + socket
	return k
}

// define reads definitions of a file: where Envoy listens, how long a token lives, and the services.
func define(t *testing.T, addr, lifetime string, services ...string) *definitions.Definitions {
	t.Helper()
	text := fmt.Sprintf("listen: %s\ntokens: {lifetime: %s, authenticator: {url: \"http://127.0.0.1:1/login\"}}\nservices:\n%s\n", addr, lifetime, strings.Join(services, "\n"))
	d, err := definitions.Parse("gateway.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return d
}

// service is one of the definitions.
func service(name, upstream string, more ...string) string {
	return fmt.Sprintf("  - {%s}", strings.Join(append([]string{"name: " + name, "path: /" + name, "upstreams: [\"" + upstream + "\"]"}, more...), ", "))
}

const (
	taken   = "http://127.0.0.1:1"
	refused = "https://127.0.0.1:1"
)

func (k *kit) apply(d *definitions.Definitions) {
	k.t.Helper()
	if err := k.Apply(d, time.Now()); err != nil {
		k.t.Fatal(err)
	}
}

// awaits waits until Envoy serves what is published, and the status is as it should be.
func (k *kit) awaits(what string, ok func(*gatewayv1.Status) bool) {
	k.t.Helper()
	envoytest.Eventually(k.t, what, func() bool {
		now := k.Status()
		return now.Applied() && ok(now.message())
	})
}

// keeps waits until these definitions are what is kept as the last good.
func (k *kit) keeps(d *definitions.Definitions) {
	k.t.Helper()
	envoytest.Eventually(k.t, "the verified definitions to be kept", func() bool {
		kept, err := k.lastGood.Load()
		return err == nil && kept.Hash() == d.Hash()
	})
}

// serves applies definitions and waits until they are served and kept.
func (k *kit) serves(d *definitions.Definitions) {
	k.t.Helper()
	k.apply(d)
	k.awaits("the definitions", func(s *gatewayv1.Status) bool { return s.GetRejected() == "" })
	k.keeps(d)
}

// hasLifetime fails the test if the token handler does not use definitions with this lifetime of a token.
func (k *kit) hasLifetime(lifetime time.Duration) {
	k.t.Helper()
	if got := k.used.Load().Lifetime; got != lifetime {
		k.t.Errorf("a token lives %v, want %v", got, lifetime)
	}
}

// isDegraded fails the test if readiness does not report this, or if the gauges do not count it.
func (k *kit) isDegraded(want string, withheld float64) {
	k.t.Helper()
	if got := k.Status().Degraded(); !strings.Contains(got, want) {
		k.t.Errorf("degraded: %q, want %q in it", got, want)
	}
	if current, n := k.gauge("gatepost_definitions_current"), k.gauge("gatepost_services_withheld"); current != 0 || n != withheld {
		k.t.Errorf("definitions current %v, services withheld %v; want 0 and %v", current, n, withheld)
	}
}

func (k *kit) isCurrent() {
	k.t.Helper()
	if got := k.Status().Degraded(); got != "" {
		k.t.Errorf("degraded: %q, want nothing", got)
	}
	if current, n := k.gauge("gatepost_definitions_current"), k.gauge("gatepost_services_withheld"); current != 1 || n != 0 {
		k.t.Errorf("definitions current %v, services withheld %v; want 1 and 0", current, n)
	}
}

func (k *kit) gauge(name string) float64 {
	k.t.Helper()
	families, err := k.registry.Gather()
	if err != nil {
		k.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	k.t.Fatalf("no metric %s", name)
	return 0
}

// names are the services that are served in their former form.
func names(services []*gatewayv1.Service) []string {
	var out []string
	for _, s := range services {
		out = append(out, s.GetName())
	}
	return out
}

func TestWhatEnvoyServesIsObeyedAndKept(t *testing.T) {
	k := newKit(t, envoytest.Addr(t), t.TempDir())
	if k.Status().Loaded() == nil {
		t.Error("loaded before anything was applied")
	}
	if _, err := k.lastGood.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("kept before anything was verified: %v", err)
	}
	k.serves(define(t, k.addr, "100s", service("a", taken)))
	k.hasLifetime(100 * time.Second)
	k.serves(define(t, k.addr, "200s", service("a", taken), service("b", taken)))
	k.hasLifetime(200 * time.Second)
	if err := errors.Join(k.Status().Loaded(), k.Status().Missing()); err != nil {
		t.Error(err)
	}
}

// A disk that hangs while definitions are saved delays neither readiness nor the status nor the next change.
func TestADiskThatHangsHoldsUpNothing(t *testing.T) {
	k := newKit(t, envoytest.Addr(t), t.TempDir())
	hung := sync.OnceFunc(k.lastGood.Unlock)
	k.lastGood.Lock()
	t.Cleanup(hung)
	k.apply(define(t, k.addr, "100s", service("a", taken)))
	envoytest.Eventually(t, "the disk to hang", func() bool { return k.lastGood.saves.Load() == 1 })

	second := define(t, k.addr, "200s", service("a", taken), service("b", taken))
	served := make(chan struct{})
	go func() {
		defer close(served)
		k.apply(second)
		k.awaits("the next definitions", func(*gatewayv1.Status) bool { return k.Status().Loaded() == nil && k.Status().Degraded() == "" })
	}()
	select {
	case <-served:
	case <-time.After(envoytest.Deadline):
		hung() // or the test could not end
		t.Fatal("the rollout waits for the disk")
	}
	hung()
	k.keeps(second)
}

func TestDefinitionsThatCannotBeBuiltChangeNothing(t *testing.T) {
	k := newKit(t, envoytest.Addr(t), t.TempDir())
	first := define(t, k.addr, "100s", service("a", taken))
	k.serves(first)
	before := k.Message()
	broken := define(t, k.addr, "200s", service("a", taken))
	broken.Gateway.Services[0].Name = "\xff" // no string of Envoy's
	k.Changed(t.Context(), broken)
	if now := k.Message(); now.GetVersion() != before.GetVersion() || !strings.Contains(now.GetRejected(), "building Envoy's configuration") {
		t.Errorf("version %s, rejected %q; want %s, and why", now.GetVersion(), now.GetRejected(), before.GetVersion())
	}
	k.hasLifetime(100 * time.Second)
	k.keeps(first)
	k.isDegraded("serving the previous version: gateway.yaml: building Envoy's configuration", 0)
	k.serves(first)
	k.isCurrent()
}

// TestDefinitionsThatCouldNotBeBuiltAreTriedAgain: a file that they name may have been repaired.
func TestDefinitionsThatCouldNotBeBuiltAreTriedAgain(t *testing.T) {
	missing := errors.New("a file is missing")
	var wrong error
	k := newKitWithoutEnvoy(t, envoytest.Addr(t), t.TempDir(), func(c *Config) {
		c.Certificates = func(*definitions.Definitions) ([]xds.Certificate, error) { return nil, wrong }
	})
	k.Changed(t.Context(), define(t, k.addr, "100s", service("a", taken)))
	wrong = missing
	next := define(t, k.addr, "200s", service("a", taken))
	k.Changed(t.Context(), next)
	if got := k.Message().GetRejected(); !strings.Contains(got, missing.Error()) {
		t.Errorf("rejected %q", got)
	}
	k.RetryRejected()
	if got := k.Message().GetRejected(); !strings.Contains(got, missing.Error()) {
		t.Errorf("rejected %q although the file is missing still", got)
	}
	wrong = nil
	k.RetryRejected()
	if got := k.Message().GetRejected(); got != "" {
		t.Errorf("rejected %q", got)
	}
	k.hasLifetime(200 * time.Second)
	// What is wrong in itself is not tried again, and neither is what was before it.
	wrong = missing
	k.Changed(t.Context(), define(t, k.addr, "300s", service("a", taken)))
	k.Failed(errors.New("a syntax error"))
	wrong = nil
	k.RetryRejected()
	k.hasLifetime(200 * time.Second)
}

// TestAnUpstreamAtTheAddressOfListenIsRefused: --listen overrides the address that the definitions were checked
// against.
func TestAnUpstreamAtTheAddressOfListenIsRefused(t *testing.T) {
	r, err := New(Config{Options: xds.Options{GRPCCluster: envoy.ClusterGRPC, HTTPCluster: envoy.ClusterHTTP, Listen: netip.MustParseAddrPort("127.0.0.1:5501")},
		Control: newControl(t, xds.Config{}), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Apply(define(t, "127.0.0.1:5500", "100s", service("a", taken), service("b", "http://127.0.0.1:5501")), time.Now())
	if err == nil || !strings.HasPrefix(err.Error(), `gateway.yaml:5:5: services[1].upstreams: "http://127.0.0.1:5501" is the address on which this gateway listens (write where the service runs)`) {
		t.Errorf("got %v", err)
	}
}

func TestWhatEnvoyRefusesAsAWholeIsTakenBackUntilItIsTriedAgain(t *testing.T) {
	inTheWay, err := net.Listen("tcp", envoytest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inTheWay.Close() })
	k := newKit(t, envoytest.Addr(t), t.TempDir())
	first := define(t, k.addr, "100s", service("a", taken))
	k.serves(first)
	before := k.Message().GetVersion()

	moved := define(t, inTheWay.Addr().String(), "200s", service("a", taken))
	k.apply(moved)
	k.awaits("the definitions before", func(s *gatewayv1.Status) bool { return s.GetVersion() == before && s.GetRejected() != "" })
	envoytest.Eventually(t, "the token handler to go back too", func() bool { return k.used.Load().Lifetime == 100*time.Second })
	k.keeps(first)
	k.isDegraded("serving the previous version: rejected by Envoy", 0)

	if err := inTheWay.Close(); err != nil {
		t.Fatal(err)
	}
	k.RetryRejected()
	k.awaits("what was refused", func(s *gatewayv1.Status) bool { return s.GetVersion() != before && s.GetRejected() == "" })
	k.hasLifetime(200 * time.Second)
	k.keeps(moved)
	k.isCurrent()
}

func TestOnlyTheServicesThatEnvoyRefusesAreServedOtherwise(t *testing.T) {
	k := newKit(t, envoytest.Addr(t), t.TempDir())
	k.serves(define(t, k.addr, "100s",
		service("moves", taken), service("closes", taken, "authenticate: false"), service("stays", taken)))

	k.apply(define(t, k.addr, "200s",
		service("moves", refused), service("closes", refused), service("stays", taken, "timeout: 7s"), service("fresh", refused)))
	k.awaits("the others", func(s *gatewayv1.Status) bool { return len(s.GetWithheld()) > 0 && s.GetVersion() != "" })
	status := k.Message()
	withheld := slices.Sorted(slices.Values(status.GetWithheld()))
	if !slices.Equal(withheld, []string{"closes", "fresh"}) { // what is to be closed is not left open
		t.Errorf("withheld are %v, want closes and fresh", withheld)
	}
	if former := status.GetFormer(); !slices.Equal(names(former), []string{"moves"}) || former[0].GetUpstreams()[0] != taken {
		t.Errorf("in a former form are %v, want moves with its former upstream", former)
	}
	if told := status.GetRejected(); !strings.Contains(told, "not as defined: closes, fresh, moves") {
		t.Errorf("rejected: %q, want all three by name", told)
	}
	k.isDegraded("serving some services not as defined: closes, fresh, moves", 2)
	k.hasLifetime(200 * time.Second)
	if got := k.Status().Definitions.Gateway.Services[2].Timeout; got != 7*time.Second {
		t.Errorf("the service that Envoy takes has a timeout of %v, want what is defined now", got)
	}

	mended := define(t, k.addr, "300s", service("moves", taken), service("stays", taken))
	k.serves(mended)
	k.isCurrent()
	if s := k.Message(); len(s.GetWithheld())+len(s.GetFormer()) > 0 {
		t.Errorf("after the file was mended: %v, %v", s.GetWithheld(), s.GetFormer())
	}
}

// What a gateway begins with may be refused before anything was verified.
func TestAGatewayThatBeginsWithWhatEnvoyRefusesServesWhatWasVerifiedOfTheSameFile(t *testing.T) {
	inTheWay, err := net.Listen("tcp", envoytest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inTheWay.Close() })
	addr, dir := envoytest.Addr(t), t.TempDir()
	before := define(t, addr, "100s", service("a", taken))
	if err := (definitions.LastGood{Dir: dir}).Save(before); err != nil {
		t.Fatal(err)
	}

	k := newKit(t, addr, dir)
	k.apply(define(t, inTheWay.Addr().String(), "200s", service("a", taken)))
	k.awaits("what was verified", func(s *gatewayv1.Status) bool { return s.GetRejected() != "" })
	k.hasLifetime(100 * time.Second)
	k.keeps(before)
}

func TestAServiceThatEnvoyRefusesFromTheStartHasTheFormerFormThatWasVerified(t *testing.T) {
	addr, dir := envoytest.Addr(t), t.TempDir()
	if err := (definitions.LastGood{Dir: dir}).Save(define(t, addr, "100s", service("moves", taken))); err != nil {
		t.Fatal(err)
	}
	k := newKit(t, addr, dir)
	k.apply(define(t, addr, "200s", service("moves", refused), service("fresh", refused)))
	k.awaits("the others", func(s *gatewayv1.Status) bool {
		return slices.Equal(s.GetWithheld(), []string{"fresh"}) && slices.Equal(names(s.GetFormer()), []string{"moves"})
	})
	k.hasLifetime(200 * time.Second)
}

func TestWhatWasVerifiedOfAnotherFileIsNotServed(t *testing.T) {
	inTheWay, err := net.Listen("tcp", envoytest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inTheWay.Close() })
	addr, dir := envoytest.Addr(t), t.TempDir()
	other := define(t, addr, "100s", service("a", taken))
	other.Name = "other.yaml"
	if err := (definitions.LastGood{Dir: dir}).Save(other); err != nil {
		t.Fatal(err)
	}
	k := newKit(t, addr, dir)
	k.apply(define(t, inTheWay.Addr().String(), "200s", service("a", taken)))
	envoytest.Eventually(t, "the rejection", func() bool { return k.Message().GetRejected() != "" })
	k.isIdle()
	k.hasLifetime(200 * time.Second)
	if envoytest.Accepts(addr) {
		t.Error("Envoy listens on the address of the other file")
	}
}

// isIdle waits until all that was reported is handled, and all that follows from it is done.
func (k *kit) isIdle() {
	k.t.Helper()
	done := make(chan struct{})
	k.mu.Lock()
	k.later(func() { close(done) })
	k.mu.Unlock()
	<-done
}

// rejectAll connects to the control plane and rejects the clusters that it is sent, until the returned function is
// called.
func (k *kit) rejectAll() (leave func()) {
	k.t.Helper()
	conn, err := grpc.NewClient(k.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		k.t.Fatal(err)
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(k.t.Context())
	if err != nil {
		k.t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType, Node: &corev3.Node{Id: "stranger"}}
		for stream.Send(answer) == nil {
			sent, err := stream.Recv()
			if err != nil {
				return
			}
			answer = &discoveryv3.DeltaDiscoveryRequest{
				TypeUrl: resourcev3.ClusterType, ResponseNonce: sent.GetNonce(), ErrorDetail: &status.Status{Code: 3, Message: "no"},
			}
		}
	})
	leave = sync.OnceFunc(func() {
		conn.Close()
		running.Wait()
	})
	k.t.Cleanup(leave)
	return leave
}

// A client that connects before any Envoy does can reject what the gateway starts with, but only while it stays.
func TestWhatAStrangerHasRejectedIsServedWhenHeIsGone(t *testing.T) {
	addr, dir := envoytest.Addr(t), t.TempDir()
	if err := (definitions.LastGood{Dir: dir}).Save(define(t, addr, "100s", service("a", taken))); err != nil {
		t.Fatal(err)
	}
	k := newKitWithoutEnvoy(t, addr, dir)
	now := define(t, addr, "200s", service("a", taken), service("b", taken))
	k.apply(now)
	leave := k.rejectAll()
	envoytest.Eventually(t, "the previous definitions", func() bool { return k.used.Load().Lifetime == 100*time.Second })
	leave()
	envoytest.Eventually(t, "the definitions again", func() bool { return k.used.Load().Lifetime == 200*time.Second })
	k.startEnvoy()
	k.keeps(now)
	k.isCurrent()
}
