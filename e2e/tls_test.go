package e2e

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"gatepost/envoy"
	"gatepost/envoy/envoytest"
	"gatepost/testcert"
)

// tlsDir writes a folder for --grpc-tls.
func tlsDir(t *testing.T, own, other *testcert.CA) string {
	t.Helper()
	dir := t.TempDir()
	other.Write(filepath.Join(dir, envoy.TLSCA))
	own.Issue(filepath.Join(dir, envoy.TLSCert), filepath.Join(dir, envoy.TLSKey))
	return dir
}

// startEnvoyByCommand starts an Envoy with the output of `gatepost bootstrap`.
func (g *served) startEnvoyByCommand(t *testing.T, args ...string) {
	t.Helper()
	out, code := gatepost(t, nil, append([]string{"bootstrap", "--format=json", "--grpc", g.GRPC, "--http", g.HTTP}, args...)...)
	b := new(bootstrapv3.Bootstrap)
	if err := protojson.Unmarshal([]byte(out), b); err != nil || code != 0 {
		t.Fatalf("gatepost bootstrap exits %d and prints %s", code, out)
	}
	g.Envoy = envoytest.Start(t, envoytest.Options{Bootstrap: b})
}

func TestRemoteEnvoysNeedACertificate(t *testing.T) {
	t.Parallel()
	server, clients := testcert.New(t), testcert.New(t)
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	g := prepareServed(t, shop.definitions(), setup{}, overTCP)
	dir := tlsDir(t, server, clients)
	g.args = append(g.args, "--grpc-tls", dir)
	g.Run()
	g.startEnvoyByCommand(t, "--grpc-tls", tlsDir(t, clients, server))
	g.AwaitReady()
	login := g.Do("POST", "/token", `{"username":"alice","password":"right"}`) // by way of --http
	want(t, "a login", login, http.StatusOK, "")
	g.Await("a secured service", http.StatusOK, "GET", "/orders", "", "Authorization: "+login.Header.Get("token")) // uses --grpc

	stranger := tlsDir(t, testcert.New(t), server)
	pair, err := tls.LoadX509KeyPair(filepath.Join(stranger, envoy.TLSCert), filepath.Join(stranger, envoy.TLSKey))
	must(t, err)
	for name, with := range map[string]credentials.TransportCredentials{
		"without TLS":                      insecure.NewCredentials(),
		"without a certificate":            credentials.NewTLS(&tls.Config{RootCAs: server.Pool()}),
		"with a certificate of another CA": credentials.NewTLS(&tls.Config{RootCAs: server.Pool(), Certificates: []tls.Certificate{pair}}),
	} {
		conn, err := grpc.NewClient(g.GRPC, grpc.WithTransportCredentials(with))
		must(t, err)
		if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: --grpc returned %v", name, err)
		}
		conn.Close()
	}
	for name, config := range map[string]*tls.Config{
		"without a certificate":            {RootCAs: server.Pool()},
		"with a certificate of another CA": {RootCAs: server.Pool(), Certificates: []tls.Certificate{pair}},
	} {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: envoytest.Deadline}
		if answer, err := client.Get("https://" + g.HTTP + "/token"); err == nil {
			answer.Body.Close()
			t.Errorf("%s: --http returned %s", name, answer.Status)
		}
	}

	// Certificates are renewed without a restart, here with a new CA.
	renewed := testcert.New(t)
	handshake := func() error {
		conn, err := tls.Dial("tcp", g.GRPC, &tls.Config{RootCAs: renewed.Pool(), NextProtos: []string{"h2"}})
		if err == nil {
			conn.Close()
		}
		return err
	}
	renewed.Issue(filepath.Join(dir, envoy.TLSCert), filepath.Join(dir, envoy.TLSKey))
	envoytest.Eventually(t, "the renewed certificate", func() bool { return handshake() == nil })
	must(t, os.Remove(filepath.Join(dir, envoy.TLSKey)))
	envoytest.Eventually(t, "the log to report that the files cannot be read", func() bool {
		if err := handshake(); err != nil {
			t.Fatalf("with files that cannot be read: %v", err)
		}
		return len(lines(g.Log(), `"level":"ERROR"`, "reading --grpc-tls failed")) == 1
	})

	if out, code := gatepost(t, nil, "serve", "--config", g.File, "--grpc-tls", t.TempDir()); code != 1 || len(lines(out, "reading --grpc-tls", "tls.crt")) != 1 {
		t.Errorf("with an empty folder: exit %d, %s", code, out)
	}
}
