// Command shop is the demo behind Gatepost: a user service, an orders service and an items service,
// as a team might already have them. They contain no code for tokens, CORS or Gatepost. The gateway
// sends logins to the user service, and passes the user's id to the orders service.
//
//	shop -users :8080                  one service, as in docker-compose.yml
//	shop                               all three on loopback, as in `make run`
//	shop -check http://127.0.0.1:8080  a container's health check
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "shop:", err)
		}
		os.Exit(1)
	}
}

// run starts each service that has an address, or all three if none has, and serves until ctx is
// done.
func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("shop", flag.ContinueOnError)
	users := flags.String("users", "", "address of the user service")
	orders := flags.String("orders", "", "address of the orders service")
	items := flags.String("items", "", "address of the items service")
	check := flags.String("check", "", "ask the service at this URL whether it is healthy, and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *check != "" {
		return checkHealth(ctx, *check)
	}
	if *users == "" && *orders == "" && *items == "" {
		*users, *orders, *items = "127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"
	}

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	services := []struct {
		name, address string
		handler       http.Handler
	}{
		{"users", *users, userService()},
		{"orders", *orders, orderService()},
		{"items", *items, itemService()},
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	for _, s := range services {
		if s.address == "" {
			continue
		}
		running.Go(func() {
			if err := serve(ctx, s.address, withHealth(withLog(log.With("service", s.name), s.handler))); err != nil {
				cancel(fmt.Errorf("serving %s: %w", s.name, err)) // one failure stops all services
			}
		})
		log.Info("serving", "service", s.name, "address", s.address)
	}
	running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serve listens on address until ctx is done, and then finishes active requests.
func serve(ctx context.Context, address string, h http.Handler) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}

// withHealth adds /healthz to a service.
func withHealth(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			answer(w, http.StatusOK, "ok")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// withLog logs each request as the service receives it: the path without its prefix, and the user
// set by the gateway.
func withLog(log *slog.Logger, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Info("request", "method", r.Method, "path", r.URL.Path, "user", r.Header.Get("X-User-Id"))
		h.ServeHTTP(w, r)
	})
}

func checkHealth(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/healthz", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s returned %s", url, res.Status)
	}
	return nil
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // fails only if the client is gone
}
