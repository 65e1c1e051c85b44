package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"gatepost/envoy"
	"gatepost/gateway"
	"gatepost/logqueue"
	"gatepost/systemd"
	"gatepost/tracing"
)

func serveCommand(s *settings) *cobra.Command {
	var envoyAdmin string
	command := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the sidecar alone, for an Envoy that something else starts",
		Args:  arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			return s.run(c, func(config *gateway.Config) error {
				config.EnvoyAdmin = envoyAdmin
				return nil
			})
		},
	}
	command.Flags().StringVar(&envoyAdmin, "envoy-admin", "", "the `ADDR` of Envoy's admin interface, for the state of upstreams (unix:/path too; none: not known)")
	return command
}

func runCommand(s *settings) *cobra.Command {
	var concurrency int
	command := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run the sidecar and an Envoy as its child: a whole gateway",
		Args:  arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			return s.run(c, func(config *gateway.Config) (err error) {
				if config.Envoy, err = envoy.Find(s.envoy); err != nil {
					return err
				}
				config.Concurrency = concurrency
				if !c.Flags().Changed("grpc") {
					config.GRPC = "" // a socket in a private folder
				}
				if !c.Flags().Changed("http") {
					config.HTTP = ""
				}
				return nil
			})
		},
	}
	command.Flags().IntVar(&concurrency, "concurrency", 0, "the `NUMBER` of Envoy's worker threads (0: one per CPU)")
	return command
}

// run runs a gateway with these settings, modified by adapt, until the command's context is done.
func (s *settings) run(c *cobra.Command, adapt func(*gateway.Config) error) error {
	limitHeap()
	logger, logs, err := s.startLog(c.ErrOrStderr())
	if err != nil {
		return err
	}
	defer logs.Close()
	config, err := s.gatewayConfig()
	if err != nil {
		return err
	}
	if config.Tracing, err = tracing.FromEnvironment(os.Getenv, tracing.Traces); err != nil {
		return usageError{err}
	}
	config.Logs, config.LogsError = tracing.FromEnvironment(os.Getenv, tracing.Logs)
	access := logqueue.New(c.OutOrStdout()) // a reader that is slow delays no request
	defer access.Close()
	config.Logger, config.AccessLog, config.Systemd = logger, access, systemd.New(systemd.Config{Logger: logger})
	config.DroppedLogLines = func() uint64 { return logs.Dropped() + access.Dropped() }
	if isTerminal(c.ErrOrStderr()) { // logs are collected, and have no secrets
		config.ShowPage = func(url string) { fmt.Fprintf(c.ErrOrStderr(), "The page for operators: %s\n", url) }
	}
	if err := adapt(&config); err != nil {
		return err
	}
	g, err := gateway.New(c.Context(), config)
	if err != nil {
		return err
	}
	defer reloadOnHangup(c.Context(), g, logger)()
	return g.Run(c.Context())
}

// reloadOnHangup makes the gateway reload its definitions on SIGHUP, until stop is called.
func reloadOnHangup(ctx context.Context, g *gateway.Gateway, logger *slog.Logger) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	hangup := make(chan os.Signal, 1) // :: one per pending SIGHUP
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hangup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				logger.Info("SIGHUP: reading the definitions again")
				g.Reload(ctx)
			}
		}
	}()
	return stop
}
