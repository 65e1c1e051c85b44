package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/definitions/revisions"
	"gatepost/gateway"
)

// The commands of this file read and change the definitions in Redis.

// verifiedTimeout is the default of --timeout.
const verifiedTimeout = 30 * time.Second

// openRevisions opens the definitions in the Redis of --redis. It does not connect yet.
func (s *settings) openRevisions() (store *revisions.Store, closeStore func() error, err error) {
	if s.redis == "" {
		return nil, nil, errNoRedis
	}
	options, err := s.redisOptions()
	if err != nil {
		return nil, nil, err
	}
	return gateway.OpenRevisions(options)
}

// change is a command that stores a revision.
type change struct {
	settings *settings
	base     int64
	message  string
	timeout  time.Duration
}

func (a *change) register(command *cobra.Command) {
	flags := command.Flags()
	flags.Int64Var(&a.base, "base", 0, "store nothing if another `REVISION` is the newest (none: the newest now)")
	flags.StringVar(&a.message, "message", "", "a `TEXT` for the history")
	flags.DurationVar(&a.timeout, "timeout", verifiedTimeout, "how long to wait until every gateway serves it")
}

func applyCommand(s *settings) *cobra.Command {
	a := &change{settings: s}
	command := &cobra.Command{
		Use:   "apply FILE",
		Short: "Store definitions in Redis, and wait until every gateway serves them",
		Long: "Store definitions in Redis as a new revision, and wait until every gateway and its Envoys serve it.\n" +
			"Exit 0 if all do, else report which do not, and why. Nothing is stored if the file has a mistake, if the newest\n" +
			"revision has the same content, or if somebody else applies at the same time.",
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := loadOrReport(c, args[0])
			if err != nil {
				return err
			}
			return a.run(c, d)
		},
	}
	a.register(command)
	return command
}

func rollbackCommand(s *settings) *cobra.Command {
	a := &change{settings: s}
	command := &cobra.Command{
		Use:   "rollback REVISION",
		Short: "Store the content of an earlier revision as a new one, and wait as apply does",
		Args:  arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			number, err := readRevision(args[0])
			if err != nil {
				return err
			}
			if a.message == "" {
				a.message = fmt.Sprintf("rollback to revision %d", number)
			}
			store, closeStore, err := s.openRevisions()
			if err != nil {
				return err
			}
			defer closeStore()
			r, err := store.About(c.Context(), number)
			if err != nil {
				return err
			}
			d, err := store.Load(c.Context(), r)
			if err != nil {
				return err
			}
			return a.run(c, d)
		},
	}
	a.register(command)
	return command
}

// readRevision parses a revision number.
func readRevision(text string) (int64, error) {
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil || number < 1 {
		return 0, usageError{fmt.Errorf("reading the revision %q: want a number, as `gatepost history` shows them", text)}
	}
	return number, nil
}

// run stores definitions as the newest revision and waits until it is verified.
func (a *change) run(c *cobra.Command, d *definitions.Definitions) error {
	store, closeStore, err := a.settings.openRevisions()
	if err != nil {
		return err
	}
	defer closeStore()
	newest, err := store.Newest(c.Context())
	if err != nil && !errors.Is(err, revisions.ErrNone) {
		return err
	}
	if c.Flags().Changed("base") && a.base != newest.Number {
		return a.conflict(&revisions.Conflict{Base: a.base, Newest: newest})
	}
	out := c.OutOrStdout()
	if newest.Number != 0 && newest.Sum == d.Hash() {
		fmt.Fprintf(out, "unchanged: already revision %d\n", newest.Number)
		return a.await(c, store, newest, d)
	}
	before, err := load(c.Context(), store, newest)
	if err != nil {
		return err
	}
	note := revisions.Note{Who: author(), Message: a.message, Change: revisions.Change(before, d.Gateway)}
	stored, err := store.Add(c.Context(), newest.Number, d.Text, note)
	var conflict *revisions.Conflict
	switch {
	case errors.As(err, &conflict):
		return a.conflict(conflict)
	case err != nil:
		return err
	}
	fmt.Fprintf(out, "revision %d is stored: %s\n", stored.Number, oneLine(stored.Change))
	return a.await(c, store, stored, d)
}

func (a *change) conflict(err *revisions.Conflict) error {
	if err.Newest.Number == 0 {
		return fmt.Errorf("%w (leave --base out to store the first revision)", err)
	}
	return fmt.Errorf("%w (see `gatepost diff FILE`, bring its change into yours, and apply with --base %d)", err, err.Newest.Number)
}

// load returns the definitions of a revision. It returns nil if there is no revision or it is not
// valid any more; then everything counts as new.
func load(ctx context.Context, store *revisions.Store, r revisions.Revision) (*definitions.Gateway, error) {
	if r.Number == 0 {
		return nil, nil // no revision
	}
	d, err := store.Load(ctx, r)
	var problems definitions.Problems
	switch {
	case errors.As(err, &problems), errors.Is(err, revisions.ErrDamaged):
		return nil, nil // the new revision repairs it
	case err != nil:
		return nil, err
	}
	return d.Gateway, nil
}

// await waits until every gateway has verified a revision, and prints the state of each. It warns of rate limits that
// so many gateways cannot keep.
func (a *change) await(c *cobra.Command, store *revisions.Store, r revisions.Revision, d *definitions.Definitions) error {
	bounded, cancel := context.WithTimeout(c.Context(), a.timeout)
	defer cancel()
	out, waiting := c.OutOrStdout(), newProgress(c.ErrOrStderr())
	standings, err := store.Await(bounded, r, func(all []revisions.Standing) { waiting.show(waitingFor(all)) })
	waiting.end()
	switch {
	case err != nil:
		return fmt.Errorf("waiting until revision %d is verified: %w", r.Number, err)
	case len(standings) == 0:
		_, err = fmt.Fprintln(out, "no gateway is running on this Redis with --config redis: nothing serves it yet")
		return err
	}
	warn(c, d.LimitWarnings(len(standings)))
	unverified := 0
	for _, one := range standings {
		if one.Verified {
			fmt.Fprintf(out, "%s: verified\n", oneLine(one.Gateway.Name))
			continue
		}
		unverified++
		fmt.Fprintf(out, "%s: NOT verified: %s\n", oneLine(one.Gateway.Name), oneLine(one.Why))
	}
	if unverified > 0 {
		return fmt.Errorf("revision %d is stored, but %d of %d gateways have not verified it", r.Number, unverified, len(standings))
	}
	return nil
}

// waitingFor names the gateways that have not verified a revision.
func waitingFor(all []revisions.Standing) string {
	var names []string
	for _, one := range all {
		if !one.Verified {
			names = append(names, oneLine(one.Gateway.Name))
		}
	}
	if len(names) == 0 {
		return "waiting for gateways to report"
	}
	return fmt.Sprintf("waiting for %d of %d gateways: %s", len(names), len(all), strings.Join(names, ", "))
}

func diffCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "diff FILE",
		Short: "Show differences from the newest revision (exit 0 if none, 1 otherwise)",
		Args:  arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := loadOrReport(c, args[0])
			if err != nil {
				return err
			}
			store, closeStore, err := s.openRevisions()
			if err != nil {
				return err
			}
			defer closeStore()
			name := "no revision"
			var before *definitions.Gateway
			newest, err := store.Newest(c.Context())
			switch {
			case err == nil:
				name = fmt.Sprintf("revision %d", newest.Number)
				old, err := store.Load(c.Context(), newest)
				if err != nil {
					return err
				}
				before = old.Gateway
			case !errors.Is(err, revisions.ErrNone):
				return err
			}
			text, err := revisions.Diff(name, before, args[0], d.Gateway)
			if err != nil {
				return err
			}
			if text == "" {
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s: no differences from %s\n", args[0], name)
				return err
			}
			if _, err = io.WriteString(c.OutOrStdout(), text); err != nil {
				return err
			}
			return errReported
		},
	}
}

func showCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "show [REVISION]",
		Short: "Print the file of a revision in Redis as it was applied (none: the newest)",
		Args:  arguments(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			var number int64 // 0: the newest
			if len(args) == 1 {
				var err error
				if number, err = readRevision(args[0]); err != nil {
					return err
				}
			}
			store, closeStore, err := s.openRevisions()
			if err != nil {
				return err
			}
			defer closeStore()
			find := store.Newest
			if number != 0 {
				find = func(ctx context.Context) (revisions.Revision, error) { return store.About(ctx, number) }
			}
			r, err := find(c.Context())
			if err != nil {
				return err
			}
			text, err := store.Text(c.Context(), r)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
}

func historyCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "history",
		Short: "List the revisions in Redis, the newest first: when, who, what changed and why",
		Args:  arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			store, closeStore, err := s.openRevisions()
			if err != nil {
				return err
			}
			defer closeStore()
			all, err := store.History(c.Context())
			if err != nil && all == nil {
				return err
			}
			if len(all) == 0 {
				_, err := fmt.Fprintln(c.OutOrStdout(), "there is no revision in Redis yet")
				return err
			}
			table := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "REVISION\tWHEN\tWHO\tCHANGE\tMESSAGE")
			for _, r := range all {
				fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\n", r.Number, r.Stored.Format(time.RFC3339),
					oneLine(r.Who), oneLine(r.Change), orNone(oneLine(r.Message)))
			}
			return errors.Join(table.Flush(), err)
		},
	}
}

// loadOrReport loads a definitions file. It prints problems and warnings like `gatepost validate`,
// warnings to standard error.
func loadOrReport(c *cobra.Command, path string) (*definitions.Definitions, error) {
	d, err := definitions.Load(path)
	var problems definitions.Problems
	if errors.As(err, &problems) {
		for _, p := range problems {
			fmt.Fprintln(c.OutOrStdout(), p)
		}
		fmt.Fprintln(c.OutOrStdout(), problems.See())
		return nil, errReported
	}
	if err != nil {
		return nil, err
	}
	warn(c, d.Warnings())
	return d, nil
}

func warn(c *cobra.Command, warnings definitions.Problems) {
	for _, w := range warnings {
		w.What = "warning: " + w.What
		fmt.Fprintln(c.ErrOrStderr(), w)
	}
}

// author returns the author of a change as user@host.
func author() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}

// oneLine makes external text safe for one line on a terminal.
func oneLine(text string) string {
	return convention.Printable(strings.Join(strings.Fields(text), " "))
}
