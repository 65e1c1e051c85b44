package xds

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/envoy/envoytest"
	"gatepost/testcert"
)

// secretClient subscribes to secrets, one step at a time.
type secretClient struct {
	t      *testing.T
	stream deltaClient
	last   *discoveryv3.DeltaDiscoveryResponse
}

func (c *control) secretClient(t *testing.T, network, address string) *secretClient {
	t.Helper()
	conn, err := grpc.NewClient(network+":"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &secretClient{t: t, stream: stream}
}

func (e *secretClient) send(req *discoveryv3.DeltaDiscoveryRequest) {
	e.t.Helper()
	req.Node = &corev3.Node{Id: "e"}
	if err := e.stream.Send(req); err != nil {
		e.t.Fatal(err)
	}
}

func (e *secretClient) subscribe(names ...string) {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.SecretType, ResourceNamesSubscribe: names})
}

// receives fails unless the next response has exactly this secret (+name or -name).
func (e *secretClient) receives(want string) {
	e.t.Helper()
	resp, err := e.stream.Recv()
	if err != nil {
		e.t.Fatal(err)
	}
	e.last = resp
	var got []string
	for _, r := range resp.GetResources() {
		got = append(got, "+"+r.GetName())
	}
	for _, name := range resp.GetRemovedResources() {
		got = append(got, "-"+name)
	}
	if resp.GetTypeUrl() != resourcev3.SecretType || strings.Join(got, " ") != want {
		e.t.Fatalf("received %v of %s, want %s", got, resp.GetTypeUrl(), want)
	}
}

func (e *secretClient) acks() {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.SecretType, ResponseNonce: e.last.GetNonce()})
}

func (e *secretClient) nacks() {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.SecretType, ResponseNonce: e.last.GetNonce(),
		ErrorDetail: &rpcstatus.Status{Code: 3, Message: "bad pair"}})
}

func (e *secretClient) takes(names ...string) {
	e.t.Helper()
	for _, name := range names {
		e.receives("+" + name)
		e.acks()
	}
}

// receivesNoMore fails if another secret is sent before the response to a request that follows.
func (e *secretClient) receivesNoMore() {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ListenerType})
	resp, err := e.stream.Recv()
	if err != nil || resp.GetTypeUrl() != resourcev3.ListenerType {
		e.t.Fatalf("received %v (%v), want the listener", resp, err)
	}
}

// secretsOf are secrets with any content: "name=content".
func secretsOf(texts ...string) (out []*tlsv3.Secret) {
	for _, text := range texts {
		name, content, _ := strings.Cut(text, "=")
		out = append(out, certificateSecret(name, content, content))
	}
	return out
}

func certificateSecret(name, chain, key string) *tlsv3.Secret {
	inline := func(pem string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte(pem)}}
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}}
}

func TestSecretsAreSentOneByOneAndAllAgainAfterANack(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	c.publish(withServices(t, "a"))
	path := filepath.Join(t.TempDir(), "grpc.sock")
	c.serveOn(listenUnix(t, path))
	e := c.secretClient(t, "unix", path)
	e.subscribe("a", "b", "c", "late")
	c.SetSecrets(secretsOf("c=1", "a=1", "b=1", "of nobody=1"))
	e.takes("a", "b", "c")
	e.receivesNoMore()

	e = c.secretClient(t, "unix", path) // only the changed one, and one that comes later
	e.subscribe("a", "late")
	e.takes("a")
	c.SetSecrets(secretsOf("a=1", "b=1", "c=1", "late=1"))
	e.takes("late")
	c.SetSecrets(secretsOf("a=2", "b=1", "c=1", "late=1"))
	e.takes("a")
	c.SetSecrets(secretsOf("b=1", "c=1", "late=1"))
	e.receives("-a")
	e.acks()
	e.receivesNoMore()

	c.SetSecrets(secretsOf("a=1", "b=1", "c=1"))
	e = c.secretClient(t, "unix", path) // two are rejected: each time all that are not are sent again
	e.subscribe("a", "b", "c")
	e.takes("a")
	e.receives("+b")
	e.nacks()
	e.takes("a")
	e.receives("+c")
	e.nacks()
	e.takes("a")
	e.receivesNoMore()
	c.onlyRejected(t, "b: bad pair", "c: bad pair")
	c.SetSecrets(secretsOf("a=1", "b=2", "c=1")) // b is good now: c may have been rejected because of it
	e.takes("b", "a")
	e.receives("+c")
	e.nacks()
	e.takes("a", "b")
	e.receivesNoMore()
	c.onlyRejected(t, "c: bad pair")
	c.SetSecrets(secretsOf("a=1", "b=2"))
	e.receives("-c")
	e.acks()
	e.receivesNoMore()
	c.onlyRejected(t)
	if got := c.progress(); len(got.Rejected) > 0 {
		t.Errorf("a rejected secret is a rejected version: %v", got.Rejected)
	}
}

// onlyRejected waits until these, of all Envoys together, are rejected.
func (c *control) onlyRejected(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, e := range c.progress().Envoys {
		got = append(got, c.RejectedSecrets(e.ID)...)
	}
	if !slices.Equal(got, want) {
		t.Errorf("rejected: %q, want %q", got, want)
	}
}

// A peer that is neither trusted nor on this machine could be anybody.
func TestAStrangerGetsNoSecret(t *testing.T) {
	t.Parallel()
	c := startControl(t, quick)
	c.publish(withServices(t, "a"))
	c.SetSecrets(secretsOf("a=1"))
	e := &secretClient{t: t, stream: c.stream(t)}
	e.subscribe("a")
	e.receivesNoMore()
	c.onlyRejected(t, "all: "+noSecrets)
	e.subscribe("*")
	if _, err := e.stream.Recv(); err == nil {
		t.Error("a subscription to all secrets goes on")
	}
}

// withTLS gives a snapshot's listener a chain for each server name, with the secret of that name.
func withTLS(t *testing.T, s *Snapshot, names ...string) *Snapshot {
	t.Helper()
	pack := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	listener := resourcesOf(s, resourcev3.ListenerType)[s.listeners.all[0].name].(*listenerv3.Listener)
	plain := listener.FilterChains[0]
	listener.FilterChains = nil
	listener.ListenerFilters = append(listener.ListenerFilters, &listenerv3.ListenerFilter{Name: "tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(&tlsinspectorv3.TlsInspector{})}})
	for _, name := range names {
		chain := proto.CloneOf(plain)
		chain.Name, chain.FilterChainMatch = name, &listenerv3.FilterChainMatch{ServerNames: []string{name}}
		chain.TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{
			TypedConfig: pack(&tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: name, SdsConfig: &corev3.ConfigSource{
					ResourceApiVersion:    corev3.ApiVersion_V3,
					ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
				}}},
			}}),
		}}
		listener.FilterChains = append(listener.FilterChains, chain)
	}
	one, err := newResource(listener)
	if err != nil {
		t.Fatal(err)
	}
	out := *s
	out.Version += "-tls"
	out.listeners = out.listeners.with(map[string]*resource{listener.GetName(): one})
	out.listeners.seal()
	return &out
}

func TestARealEnvoyServesChangedSecretsBesideABadOne(t *testing.T) {
	t.Parallel()
	first, second := testcert.New(t), testcert.New(t)
	issue := func(ca *testcert.CA) (chain, key string) {
		chainPEM, keyPEM := ca.Sign(&x509.Certificate{DNSNames: []string{"a.test", "bad.test", "c.test"}})
		return string(chainPEM), string(keyPEM)
	}
	oldChain, oldKey := issue(first)
	newChain, newKey := issue(second)
	l := startLive(t, func(listen, upstream string) *Snapshot { return build(t, openServices(listen, upstream, "", "a")) })
	names := []string{"a.test", "bad.test", "c.test"}
	l.SetSecrets([]*tlsv3.Secret{certificateSecret(names[0], oldChain, oldKey), certificateSecret(names[1], oldChain, newKey), certificateSecret(names[2], oldChain, oldKey)})
	l.serves(withTLS(t, l.open("", "a"), names...))
	serves := func(name string, ca *testcert.CA) bool {
		conn, err := tls.Dial("tcp", l.addr, &tls.Config{ServerName: name, RootCAs: ca.Pool()})
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	both := func(ca *testcert.CA) func() bool {
		return func() bool { return serves("a.test", ca) && serves("c.test", ca) }
	}
	envoytest.Eventually(t, "the good ones are served", both(first))
	rejected := func() []string { return l.RejectedSecrets(l.progress().Envoys[0].ID) }
	envoytest.Eventually(t, "the bad one is shown", func() bool {
		got := rejected()
		return len(got) == 1 && strings.HasPrefix(got[0], "bad.test: ") && strings.Contains(got[0], "KEY_VALUES_MISMATCH")
	})

	kept := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{ServerName: "a.test", InsecureSkipVerify: true}, MaxConnsPerHost: 1}} // which certificate it got is compared
	defer kept.CloseIdleConnections()
	keptServes := func(chain string) {
		t.Helper()
		res, err := kept.Get("https://" + l.addr + "/a")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s (%v)", res.Status, err)
		}
		if got := string(res.TLS.PeerCertificates[0].Raw); got != string(derOf(t, chain)) {
			t.Error("the connection has another certificate")
		}
	}
	keptServes(oldChain)
	l.SetSecrets([]*tlsv3.Secret{certificateSecret(names[0], newChain, newKey), certificateSecret(names[1], oldChain, newKey), certificateSecret(names[2], newChain, newKey)})
	envoytest.Eventually(t, "the changed ones are served beside it", both(second))
	keptServes(oldChain)
	if serves("bad.test", first) || serves("bad.test", second) {
		t.Error("the bad one is served")
	}
	l.SetSecrets([]*tlsv3.Secret{certificateSecret(names[0], newChain, newKey), certificateSecret(names[1], newChain, newKey), certificateSecret(names[2], newChain, newKey)})
	envoytest.Eventually(t, "the fixed one is served", func() bool { return serves("bad.test", second) && len(rejected()) == 0 })
	keptServes(oldChain)
}

func derOf(t *testing.T, chain string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		t.Fatal("no PEM")
	}
	return block.Bytes
}
