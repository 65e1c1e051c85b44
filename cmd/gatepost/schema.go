package main

import (
	"github.com/spf13/cobra"

	"gatepost/definitions"
)

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the definitions file, for editors",
		Long: "Print the JSON Schema of the definitions file, for editors. With it beside the file, the line\n" +
			"    # yaml-language-server: $schema=gatepost.schema.json\n" +
			"at the file's top gives completion and marks mistakes in editors that know the YAML language server.",
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(definitions.Schema)
			return err
		},
	}
}
