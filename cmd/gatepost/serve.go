package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"gatepost/envoy"
)

func serveCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the sidecar alone, for an Envoy that is started by something else",
		Args:  usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			logger, logs, err := s.startLog(c.ErrOrStderr())
			if err != nil {
				return err
			}
			defer logs.Close()
			side, err := newSidecar(c.Context(), s, logger, logs)
			if err != nil {
				return err
			}
			return side.Run(c.Context(), nil)
		},
	}
}

func runCommand(s *settings) *cobra.Command {
	var concurrency int
	command := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run the sidecar and an Envoy: a working gateway by one command",
		Args:  usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return runWithEnvoy(c, s, concurrency)
		},
	}
	command.Flags().IntVar(&concurrency, "concurrency", 0, "the `NUMBER` of Envoy's worker threads (0: one per CPU)")
	return command
}

// runWithEnvoy runs the sidecar and, as its child, an Envoy that talks to it over Unix sockets in a private folder.
func runWithEnvoy(c *cobra.Command, s *settings, concurrency int) error {
	logger, logs, err := s.startLog(c.ErrOrStderr())
	if err != nil {
		return err
	}
	defer logs.Close()
	if err := s.requireConfig(); err != nil {
		return err // before an Envoy is asked for: this mistake is the caller's
	}
	path, err := envoy.Find(s.envoy)
	if err != nil {
		return err
	}
	dir, err := envoy.PrivateDir()
	if err != nil {
		return err
	}
	defer dir.Remove()
	s.useSockets(c.Flags(), dir)
	s.envoyPath = path
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapOptions{GRPC: s.grpc, HTTP: s.http, TLS: s.grpcTLS, NodeID: nodeID()})
	if err != nil {
		return err
	}
	side, err := newSidecar(c.Context(), s, logger, logs)
	if err != nil {
		return err
	}
	if first, _, _, _ := side.applier.Serving(); first != nil {
		if err := awaitFree(c.Context(), s.xdsOptions().ListenAddress(first.Gateway)); err != nil {
			side.close()
			return err
		}
	}
	runner := &envoy.Runner{
		Path: path, Bootstrap: bootstrap, Dir: dir, Concurrency: concurrency, Log: logger,
		OnStart: side.metrics.envoyStarted, OnExit: side.metrics.envoyDied,
	}
	return side.Run(c.Context(), runner.Run)
}

// nodeID tells this Envoy from those of other machines in `gatepost status`.
func nodeID() string {
	host, err := os.Hostname()
	if err != nil {
		return envoy.DefaultNodeID
	}
	return envoy.DefaultNodeID + "@" + host
}

// Run serves until ctx ends, and beside it runs Envoy where one is given. Envoy ends first, with all it has under
// way answered, and the sidecar after it: a request that Envoy still has is still decided.
func (s *sidecar) Run(ctx context.Context, runEnvoy func(context.Context) error) error {
	defer s.close()
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	group, failed := errgroup.WithContext(serving)
	if err := s.serve(serving, group); err != nil {
		return err
	}
	s.reloadOnHangup(failed, group)
	group.Go(func() error {
		defer stopServing()
		if runEnvoy == nil {
			return s.awaitEnd(ctx, failed)
		}
		envoyEnds, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(failed, cancel)()
		defer context.AfterFunc(ctx, s.drain)()
		return runEnvoy(envoyEnds)
	})
	err := group.Wait()
	s.logger.Info("ended")
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// awaitEnd waits until the sidecar is to end, and makes it unready at once.
func (s *sidecar) awaitEnd(ctx, failed context.Context) error {
	select {
	case <-ctx.Done():
	case <-failed.Done():
	}
	s.drain()
	return nil
}

// reloadOnHangup reads the definitions again on SIGHUP, and has Envoy try once more what it has rejected.
func (s *sidecar) reloadOnHangup(ctx context.Context, group *errgroup.Group) {
	hangup := make(chan os.Signal, 1) // :: one per SIGHUP not yet seen to
	signal.Notify(hangup, syscall.SIGHUP)
	group.Go(func() error {
		defer signal.Stop(hangup)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hangup:
				s.logger.Info("SIGHUP: reading the definitions again")
				s.applier.Again(ctx)
				s.watcher.Reload()
			}
		}
	})
}

// requireConfig says what is missing where no definitions are named.
func (s *settings) requireConfig() error {
	if s.config == "" {
		return usageError{fmt.Errorf("no definitions: give --config FILE or set GATEPOST_CONFIG")}
	}
	return nil
}
