package gateway

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gatepost/convention"
	"gatepost/envoy/envoytest"
	"gatepost/testlog"
	"gatepost/tokens/cache/table"
	"gatepost/xds"
)

// The module repeats a decision for MinLifetime or longer. Each check after that must count as a use of the token.
func TestEachCheckOfAWarmTokenIsAUse(t *testing.T) {
	t.Parallel()
	if every := (&envoyModule{table: new(table.Table)}).sampleEvery(); every <= 0 || every >= table.MinLifetime {
		t.Errorf("with the module: every %v, and Envoy asks after %v at the earliest", every, table.MinLifetime)
	}
	if every := (&envoyModule{}).sampleEvery(); every != 0 {
		t.Errorf("without the module: every %v, want the default", every)
	}
}

// No other Envoy can be had here, so a script reports the version of one.
func TestTheModuleIsNotTriedWithAnUntestedEnvoy(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "envoy")
	script := "#!/bin/sh\necho 'envoy  version: 0000000000000000000000000000000000000000/1.99.0/Clean/RELEASE/BoringSSL'\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	err := tryModule(t.Context(), path, xds.Module{})
	if err == nil || !strings.Contains(err.Error(), "1.99.0") {
		t.Errorf("got %v, want the reason with the version", err)
	}
}

// An Envoy that Gatepost does not start reports its version when it connects.
func TestAnUntestedEnvoyOfItsOwnGetsNoModule(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "gatepost") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file, socket := filepath.Join(dir, "gatepost.yaml"), "unix:"+filepath.Join(dir, "grpc.sock")
	if err := os.WriteFile(file, []byte("services: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log testlog.Buffer
	g, err := New(t.Context(), Config{
		Definitions: file, Data: filepath.Join(dir, "data"), Admin: "127.0.0.1:0", GRPC: socket, HTTP: "127.0.0.1:0",
		Module: ModuleOn, Logger: slog.New(slog.NewJSONHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	defer func() {
		stop()
		<-ended
	}()
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	version := &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 99}}}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType, Node: &corev3.Node{Id: "other", UserAgentVersionType: version}}); err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "the reason in the log", func() bool {
		return slices.ContainsFunc(strings.Split(log.String(), "\n"), func(line string) bool {
			return strings.Contains(line, convention.MessageWithoutModule) && strings.Contains(line, "1.99.0")
		})
	})
}
