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
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errReported):
		return exitFailed
	case errors.As(err, &usage):
		printError(stderr, "gatepost: %v\nSee 'gatepost --help'.\n", err)
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
		Args:          usage(cobra.NoArgs),
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

// usage turns errors in the arguments into usage errors.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}
