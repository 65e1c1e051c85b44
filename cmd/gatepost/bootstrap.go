package main

import (
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"gatepost/envoy"
	"gatepost/xds"
)

func bootstrapCommand(s *settings) *cobra.Command {
	var format, node, host, envoyAdmin string
	command := &cobra.Command{
		Use:   "bootstrap",
		Short: "Print the bootstrap of an Envoy for `gatepost serve`",
		Long: "Print the bootstrap of an Envoy for `gatepost serve`. --grpc and --http are the addresses at which\n" +
			"that Envoy reaches Gatepost, such as unix:/run/gatepost/grpc.sock and unix:/run/gatepost/http.sock in a compose file.\n" +
			"--grpc-tls is a folder as that Envoy sees it, with a certificate of its own.",
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkFormat(format, "yaml", "json"); err != nil {
				return err
			}
			if _, _, err := net.SplitHostPort(host); err == nil || strings.ContainsAny(host, "/@?# ") {
				return usageError{fmt.Errorf("reading --envoy-host %q: want a host name or an IP address, without a port", host)}
			}
			options := envoy.BootstrapOptions{GRPC: s.grpc, HTTP: s.http, TLS: s.grpcTLS, Admin: envoyAdmin, NodeID: node}
			if host != "" {
				options.Metadata = map[string]string{xds.HostMetadata: host}
			}
			built, err := envoy.Bootstrap(options)
			if err != nil {
				return err
			}
			render := envoy.YAML
			if format == "json" {
				render = envoy.JSON
			}
			text, err := render(built)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
	command.Flags().StringVar(&format, "format", "yaml", "yaml or json")
	command.Flags().StringVar(&node, "node-id", envoy.DefaultNodeID, "the `NAME` of this Envoy in logs and `gatepost status`")
	command.Flags().StringVar(&host, "envoy-host", "", "the `HOST` at which Gatepost reaches this Envoy's listener to verify changes (none: the address of its connection)")
	command.Flags().StringVar(&envoyAdmin, "envoy-admin", "", "the `ADDR` of this Envoy's own admin interface, on loopback, or unix:/path for its user and group (none: no admin interface)")
	return command
}
