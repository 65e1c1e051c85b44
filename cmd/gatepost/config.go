package main

import (
	"encoding/json"
	"io"

	"github.com/spf13/cobra"

	"gatepost/definitions"
	"gatepost/xds"
	"gatepost/yamlof"
)

func configCommand(s *settings) *cobra.Command {
	command := &cobra.Command{Use: "config", Short: "Show the Envoy configuration", Args: onlySubcommands, RunE: showHelp}
	command.AddCommand(configDumpCommand(s))
	return command
}

func configDumpCommand(s *settings) *cobra.Command {
	var format, service string
	command := &cobra.Command{
		Use:   "dump FILE",
		Short: "Print the Envoy configuration that is made from definitions",
		Long: "Print the listener, the routes and the clusters that are made from a definitions file, as Envoy receives them. What a\n" +
			"running gateway serves is at /api/v1/config of --admin, in the same form. Its version differs from this one if it uses\n" +
			"the module in Envoy, certificates, or flags that change the configuration: the version covers them too.",
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkFormat(format, "yaml", "json"); err != nil {
				return err
			}
			d, err := definitions.Load(args[0])
			if err != nil {
				return err
			}
			snapshot, err := xds.Build(d.Gateway, s.xdsOptions(d))
			if err != nil {
				return err
			}
			dump, err := snapshot.Dump(service)
			if err != nil {
				return err
			}
			return printDump(c.OutOrStdout(), dump, format)
		},
	}
	command.Flags().StringVar(&format, "format", "yaml", "yaml or json")
	command.Flags().StringVar(&service, "service", "", "only the routes and clusters of the service `NAME`")
	return command
}

func printDump(out io.Writer, dump *xds.Dump, format string) error {
	text, err := json.MarshalIndent(dump, "", "  ")
	if err != nil {
		return err
	}
	if format == "json" {
		_, err = out.Write(append(text, '\n'))
		return err
	}
	if text, err = yamlof.JSON(text); err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}
