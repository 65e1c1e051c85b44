package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"gatepost/definitions"
	"gatepost/envoy"
	"gatepost/gateway"
	"gatepost/xds"
)

func validateCommand(s *settings) *cobra.Command {
	var noEnvoy bool
	validation := definitions.Validation{}
	command := &cobra.Command{
		Use:   "validate PATH...",
		Short: "Report every mistake in definitions as file:line:column; exit 0 if there is none",
		Long: "Report every mistake in definitions as file:line:column; exit 0 if there is none. If there is an Envoy\n" +
			"(--envoy, or as `gatepost run` finds it) it checks the configuration too. With --public the output for a valid file is\n" +
			"what can be reached without a token, one line for each path: keep it in a repository and compare it in CI. With\n" +
			"--strict a warning, such as for a method that HTTP does not know, is a mistake too.",
		Args: arguments(1, math.MaxInt),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains([]string{"text", "json", "github"}, validation.Format) {
				return usageError{errors.New("reading --format: want text, json or github")}
			}
			if validation.Format == "github" && validation.Public {
				return usageError{errors.New("reading --format github: a list of public paths has no annotations; leave --public out")}
			}
			if validation.Gateways < 1 {
				return usageError{fmt.Errorf("reading --gateways %d: want at least 1", validation.Gateways)}
			}
			ask, err := s.envoysVerdict(c.Context(), noEnvoy)
			if err != nil {
				return err
			}
			validation.Envoy = ask
			good, err := validation.Run(c.OutOrStdout(), args...)
			if err != nil {
				return err
			}
			if !good {
				return errReported
			}
			return nil
		},
	}
	command.Flags().StringVar(&validation.Format, "format", "text", "text, json, or github for annotations of a workflow")
	command.Flags().BoolVar(&validation.Public, "public", false, "list every path and method that can be reached without a token")
	command.Flags().BoolVar(&validation.Strict, "strict", false, "exit 1 for warnings too")
	command.Flags().IntVar(&validation.Gateways, "gateways", 1, "the `NUMBER` of gateways that serve them; rate limits of less than one request for each are warned of")
	command.Flags().BoolVar(&noEnvoy, "no-envoy", false, "do not ask an Envoy")
	return command
}

// envoysVerdict returns a function that validates the Envoy configuration for definitions with an
// Envoy, if there is one. If --envoy names one, it must exist.
func (s *settings) envoysVerdict(ctx context.Context, noEnvoy bool) (func(*definitions.Definitions) definitions.Verdict, error) {
	path, skipped := "", "--no-envoy"
	if !noEnvoy {
		var err error
		switch path, err = envoy.Find(s.envoy); {
		case errors.Is(err, envoy.ErrNotFound):
			skipped = "no Envoy found"
		case err != nil:
			return nil, err
		}
	}
	return func(d *definitions.Definitions) definitions.Verdict {
		options := s.xdsOptions(d)
		options.Certificates = gateway.Certificates(d)
		snapshot, err := xds.Build(d.Gateway, options)
		if err != nil {
			return definitions.Verdict{Refused: err.Error()}
		}
		if path == "" {
			return definitions.Verdict{Skipped: skipped}
		}
		if missing := s.missingRoots(d.Gateway); missing != "" {
			return definitions.Verdict{Skipped: missing}
		}
		bootstrap, err := snapshot.Bootstrap(options)
		if err != nil {
			return definitions.Verdict{Refused: err.Error()}
		}
		refused, err := envoy.Validate(ctx, path, bootstrap)
		if err != nil {
			return definitions.Verdict{Skipped: err.Error()}
		}
		return definitions.Verdict{Asked: true, Refused: refused}
	}, nil
}

// missingRoots returns why Envoy cannot validate https upstreams on this machine: it would need
// their CA file.
func (s *settings) missingRoots(gw *definitions.Gateway) string {
	secured := slices.ContainsFunc(gw.Services, func(service *definitions.Service) bool {
		return service.UpstreamTLS.CAName() == "" && slices.ContainsFunc(service.Upstreams, definitions.Upstream.TLS)
	})
	if _, err := os.Stat(s.caFile); err != nil && secured {
		return fmt.Sprintf("the roots for https upstreams are not on this machine (--ca-file %s)", s.caFile)
	}
	return ""
}
