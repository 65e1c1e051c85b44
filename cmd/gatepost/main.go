// Command gatepost is an Envoy sidecar: it configures Envoy, authorizes each request, and issues
// tokens. This folder parses flags and environment variables and prints the output of commands.
// Package gateway assembles and runs the parts.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"gatepost/logqueue"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// version is set when a release is built.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := gatepost(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// gatepost runs one command and returns its exit code. It stops when ctx is done.
func gatepost(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errReported):
		return exitFailed
	case errors.As(err, &usage):
		printError(stderr, "gatepost: %v\nSee '%s --help'.\n", err, command.CommandPath())
		return exitUsage
	default:
		printError(stderr, "gatepost: %v\n", err)
		return exitFailed
	}
}

// printError prints the error of a command. If nobody reads standard error, the process still
// exits.
func printError(stderr io.Writer, format string, args ...any) {
	queue := logqueue.New(stderr)
	fmt.Fprintf(queue, format, args...)
	_ = queue.Close()
}

// errReported ends a command that has already printed its error.
var errReported = errors.New("already reported")

// usageError is an invalid command line, as opposed to a command that failed.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// showHelp runs a command that only has subcommands.
func showHelp(c *cobra.Command, _ []string) error { return c.Help() }

func newRoot() *cobra.Command {
	s := &settings{}
	root := &cobra.Command{
		Use:           "gatepost",
		Short:         "An Envoy gateway for HTTP services: routes, CORS, tokens, one binary beside Envoy",
		SilenceUsage:  true, // do not print two screens of flags after every error
		SilenceErrors: true,
		Args:          onlySubcommands,
		RunE:          showHelp,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			s.adminNamed = c.Flags().Changed("admin")
			if err := s.fromEnvironment(c.Flags(), os.LookupEnv); err != nil {
				return err
			}
			return s.readListen()
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	s.register(root.PersistentFlags())
	root.AddCommand(
		runCommand(s), serveCommand(s), validateCommand(s), importCommand(), certsCommand(), explainCommand(s), configCommand(s), schemaCommand(), bootstrapCommand(s),
		applyCommand(s), diffCommand(s), showCommand(s), historyCommand(s), rollbackCommand(s),
		statusCommand(s), topCommand(s), tokensCommand(s), healthCommand(s), versionCommand(),
	)
	return root
}

// arguments checks that a command gets from least to most arguments. Its errors have the usage line.
func arguments(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usageError{fmt.Errorf("an argument is missing: write `%s`", c.UseLine())}
		case len(args) > most:
			return usageError{fmt.Errorf("unexpected argument %q: write `%s`", args[most], c.UseLine())}
		}
		return nil
	}
}

// onlySubcommands is for commands that only have subcommands. Its error names one with a similar name.
func onlySubcommands(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath())
	c.SuggestionsMinimumDistance = 2 // at most so many letters differ
	if similar := c.SuggestionsFor(args[0]); len(similar) > 0 {
		text += fmt.Sprintf(" (did you mean %s?)", similar[0])
	}
	return usageError{errors.New(text)}
}
