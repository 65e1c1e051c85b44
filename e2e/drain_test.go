package e2e

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"gatepost/envoy/envoytest"
)

// watchHealth watches the gRPC health of a gatepost with --grpc on address. next waits for the next
// status.
func watchHealth(t *testing.T, address string) (next func() string) {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return func() string {
		status, err := stream.Recv()
		if err != nil {
			return err.Error()
		}
		return status.GetStatus().String()
	}
}

func TestGRPCHealthIsNotServingDuringTheDrain(t *testing.T) {
	t.Parallel()
	t.Run("run", func(t *testing.T) {
		address := envoytest.Addr(t)
		shop := startShop(t, setup{Args: []string{"--grpc", address}})
		next := watchHealth(t, address)
		if got := next(); got != "SERVING" {
			t.Errorf("health is %s before the drain", got)
		}
		done := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") }
		release, answered := underWay(t, shop.gateway, shop.items, done, "GET", "/items/slow", "")
		shop.Signal(syscall.SIGTERM)
		if got := next(); got != "NOT_SERVING" {
			t.Errorf("health is %s during the drain", got)
		}
		release()
		want(t, "the request under way", <-answered, http.StatusOK, "done")
		shop.ExitCode()
	})
	t.Run("serve", func(t *testing.T) {
		g, _ := serveShop(t, setup{})
		next := watchHealth(t, g.GRPC)
		if got := next(); got != "SERVING" {
			t.Errorf("health is %s before the drain", got)
		}
		g.Signal(syscall.SIGTERM)
		if got := next(); got != "NOT_SERVING" {
			t.Errorf("health is %s during the drain", got)
		}
		g.ExitCode()
	})
}
