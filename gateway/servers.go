package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"gatepost/authz"
	"gatepost/panics"
	"gatepost/xds"
)

// How long requests under way may take once a server is to end: a check is bounded by its look-up,
// a login by its user service.
const (
	drainChecks = 2 * time.Second
	drainLogins = 10 * time.Second
)

// listen listens on an address of the flags: host:port or unix:/path. A socket that a killed Gatepost has left is
// replaced. Only this user may connect to a socket, or its group too if the folder gives its own group to what is made
// in it (set-group-ID): that is how a folder is shared with another user's Envoy.
func listen(address string) (net.Listener, error) {
	path, isSocket := strings.CutPrefix(address, "unix:")
	if !isSocket {
		return net.Listen("tcp", address)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close() // Envoy would lose the other Gatepost, and that one would remove the new socket when it ends
		return nil, syscall.EADDRINUSE
	} else if errors.Is(err, syscall.ECONNREFUSED) && isSocketFile(path) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing the socket of a killed process: %w", err)
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(0o600)
	if folder, err := os.Stat(filepath.Dir(path)); err == nil && folder.Mode()&os.ModeSetgid != 0 {
		mode = 0o660
	}
	if err := os.Chmod(path, mode); err != nil {
		listener.Close()
		return nil, fmt.Errorf("closing the socket to others: %w", err)
	}
	return listener, nil
}

func isSocketFile(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

// freeWithin is how long the Envoy of a killed Gatepost may take to exit.
const freeWithin = 3 * time.Second

// awaitFree returns an error where another process shares the address on which Envoy is to take
// requests. Envoy itself would not notice: it opens its ports for sharing (SO_REUSEPORT), so two
// gateways of one user would both get a part of the requests, and each refuse the tokens that the
// other has issued. A port that is taken and not shared Envoy rejects, and that is logged as every
// rejection is.
func awaitFree(ctx context.Context, address string) error {
	for deadline := time.Now().Add(freeWithin); isShared(ctx, address); {
		if time.Now().After(deadline) {
			return fmt.Errorf("listening on %s of the definitions: another process does already; stop it, or choose another address", address)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// isShared reports whether another process of this user listens on the address and allows sharing
// it.
func isShared(ctx context.Context, address string) bool {
	alone, err := net.Listen("tcp", address)
	if err == nil {
		alone.Close()
		return false
	}
	beside := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
		controlErr := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(controlErr, err)
	}}
	listener, err := beside.Listen(ctx, "tcp", address)
	if err != nil {
		return false
	}
	listener.Close()
	return true
}

// newGRPCServer returns the server for Envoy: ext_authz, ADS, gRPC health and, if limits is not nil, rate limits.
func newGRPCServer(checker *authz.Server, control *xds.Server, limits *clusterLimits, healthServer *health.Server, more ...grpc.ServerOption) *grpc.Server {
	options := slices.Concat(authz.ServerOptions(), xds.ServerOptions(), more)
	server := grpc.NewServer(append(options, grpc.UnaryInterceptor(checker.Interceptor()))...)
	checker.Register(server)
	control.Register(server)
	if limits != nil {
		limits.Register(server)
	}
	healthv1.RegisterHealthServer(server, healthServer)
	return server
}

// What a client reads after a panic: a JSON string, as all answers of the token handler are, and an
// object as the admin API's errors are.
const (
	tokenPanicked = `"The gateway failed, try again later."`
	adminPanicked = `{"error": "internal error; see Gatepost's log"}`
)

// newHTTPServer bounds what a client of h can hold open (Envoy bounds clients of the gateway
// before). A panic of h is logged, counted and answered with 500 and body.
func newHTTPServer(h http.Handler, logger *slog.Logger, panicked prometheus.Counter, body string) *http.Server {
	return &http.Server{
		Handler:           panics.Handler(h, logger, panicked.Inc, body),
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute, // longer than Envoy keeps an idle connection to us
		MaxHeaderBytes:    64 << 10,
	}
}

// serveGRPC serves until ctx ends. ADS streams never end by themselves, so those are cut once the
// checks under way have had their time.
func serveGRPC(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	defer context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(drainChecks, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
	})()
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("serving Envoy: %w", err)
	}
	return nil
}

// serveHTTP serves until ctx ends and what is under way is answered.
func serveHTTP(ctx context.Context, server *http.Server, listener net.Listener) error {
	drained := make(chan error, 1) // :: what Shutdown returned
	defer context.AfterFunc(ctx, func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainLogins)
		defer cancel()
		drained <- server.Shutdown(bounded)
	})()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving HTTP: %w", err)
	}
	if err := <-drained; err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("ending the HTTP server: %w", err)
	}
	return nil
}
