package main

import (
	"github.com/spf13/cobra"

	"gatepost/definitions"
)

func validateCommand() *cobra.Command {
	var format string
	command := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Exit 0 where the definitions may be served, else say every mistake as file:line:column",
		Args:  usage(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if format != "text" && format != "json" {
				return usageError{errFormat}
			}
			good, err := definitions.Validate(c.OutOrStdout(), format, args...)
			if err != nil {
				return err
			}
			if !good {
				return errSaid
			}
			return nil
		},
	}
	command.Flags().StringVar(&format, "format", "text", "text or json")
	return command
}
