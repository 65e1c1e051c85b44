package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"gatepost/definitions/nodegateway"
)

func importCommand() *cobra.Command {
	var output string
	var force bool
	command := &cobra.Command{
		Use:   "import FILE",
		Short: "Translate the settings of the old Node.js gateway, as JSON, into definitions",
		Long: "Translate the settings of the old Node.js gateway, as JSON, into definitions. Each change of meaning is a comment in\n" +
			"the result. A setting that cannot be translated is an error with its place, and nothing is written. Check the result\n" +
			"with `gatepost validate`.",
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			settings, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the settings: %w", err)
			}
			imported, err := nodegateway.Import(args[0], settings)
			if err != nil {
				return fmt.Errorf("importing the settings:\n%w", err)
			}
			if output == "" {
				_, err = c.OutOrStdout().Write(imported.Text)
				return err
			}
			if err := writeNew(output, imported.Text, force); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: services %d, notes %d; read its comments\n", output, imported.Services, imported.Notes)
			return err
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "", "write to a `FILE` instead of standard output")
	command.Flags().BoolVar(&force, "force", false, "overwrite the file of --output")
	return command
}

// writeNew writes a file. If it exists, and force is false, that is an error.
func writeNew(path string, text []byte, force bool) (err error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if !force {
		flags |= os.O_EXCL
	}
	file, err := os.OpenFile(path, flags, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("writing the definitions: %s exists; give --force to overwrite it", path)
	}
	if err != nil {
		return fmt.Errorf("writing the definitions: %w", err)
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("writing the definitions: %w", err)
	}
	return nil
}
