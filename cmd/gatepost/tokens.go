package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/convention"
	"gatepost/gateway"
	"gatepost/tokens"
)

func tokensCommand(s *settings) *cobra.Command {
	command := &cobra.Command{
		Use:   "tokens",
		Short: "List and revoke sessions of the gateway on --admin, or with --redis those in that Redis",
		Args:  onlySubcommands,
		RunE:  showHelp,
	}
	command.AddCommand(listCommand(s), revokeCommand(s))
	return command
}

func listCommand(s *settings) *cobra.Command {
	var user, format string
	command := &cobra.Command{
		Use:   "list --user ID",
		Short: "List a user's sessions, the newest first",
		Long:  "List a user's sessions, the newest first. " + whatIsUserID,
		Args:  arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if user == "" {
				return usageError{errors.New("give the user whose sessions to list: --user ID")}
			}
			if err := checkFormat(format, "text", "json"); err != nil {
				return err
			}
			var sessions []admin.Session
			err := s.withSessions(c, func(ctx context.Context, on sessionAPI) (err error) {
				sessions, err = on.list(ctx, user)
				return err
			})
			if err != nil {
				return err
			}
			if len(sessions) == 0 {
				fmt.Fprintf(c.ErrOrStderr(), "gatepost: user %q has no session. %s\n", user, whatIsUserID)
			}
			if format == "json" {
				return writeJSON(c.OutOrStdout(), sessions)
			}
			return printSessions(c.OutOrStdout(), sessions)
		},
	}
	command.Flags().StringVar(&user, "user", "", "the user's `ID`")
	command.Flags().StringVar(&format, "format", "text", "text or json")
	return command
}

// whatIsUserID explains --user, because in an incident people know the login name and not the id.
const whatIsUserID = "The ID of a user is not the login name: it is the value of the header `userid` " +
	"(tokens.authenticator.user_header) in the user service's reply to a login."

func printSessions(w io.Writer, sessions []admin.Session) error {
	if len(sessions) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tISSUED\tEXPIRES\tADDRESS\tLAST SEEN\tFROM\tCLIENT")
	for _, one := range sessions {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", one.ID, formatTime(one.Issued), formatTime(one.Expires),
			orNone(one.Address), formatTime(one.LastSeen), orNone(one.LastAddress), orNone(convention.Printable(one.UserAgent)))
	}
	return table.Flush()
}

func revokeCommand(s *settings) *cobra.Command {
	var user, format string
	command := &cobra.Command{
		Use:   "revoke (ID | --user ID)",
		Short: "End one session by its public id, or all of a user, and wait until no gateway accepts them",
		Long: "End one session by its public id, which `gatepost tokens list` shows, or all sessions of a user. Returns when no\n" +
			"gateway accepts them any more. Exit 1 if there was nothing to revoke. With --redis the gateways log the author.\n" +
			whatIsUserID,
		Args: arguments(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 1) == (user != "") {
				return usageError{fmt.Errorf("give a session's ID, or --user ID for all of a user's")}
			}
			if err := checkFormat(format, "text", "json"); err != nil {
				return err
			}
			ended := 0
			err := s.withSessions(c, func(ctx context.Context, on sessionAPI) (err error) {
				if len(args) == 1 {
					ended, err = 1, on.revoke(ctx, args[0])
					return err
				}
				ended, err = on.revokeUser(ctx, user)
				return err
			})
			if err != nil {
				return err
			}
			if err := printRevoked(c.OutOrStdout(), format, ended); err != nil {
				return err
			}
			if ended == 0 {
				return fmt.Errorf("nothing was revoked: user %q has no session. %s", user, whatIsUserID)
			}
			return nil
		},
	}
	command.Flags().StringVar(&user, "user", "", "end all sessions of the user with this `ID`")
	command.Flags().StringVar(&format, "format", "text", "text or json")
	return command
}

func printRevoked(w io.Writer, format string, ended int) error {
	if format == "json" {
		return writeJSON(w, map[string]int{"revoked": ended})
	}
	_, err := fmt.Fprintf(w, "revoked %d\n", ended)
	return err
}

// formatTime formats a time for a list.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}

// errNoSession also helps somebody who gave the ID of a user.
var errNoSession = errors.New("revoking a session: there is no such session (`gatepost tokens list --user ID` shows the IDs of a user's sessions; " +
	"`gatepost tokens revoke --user ID` ends them all)")

// sessionAPI lists and ends sessions. Its revoke methods return when no gateway accepts the
// sessions any more.
type sessionAPI interface {
	list(ctx context.Context, user string) ([]admin.Session, error)
	revoke(ctx context.Context, id string) error
	revokeUser(ctx context.Context, user string) (int, error)
}

// withSessions calls do with the sessions in Redis, if --redis is set, or else with those of a
// running gateway. It limits both to requestTimeout.
func (s *settings) withSessions(c *cobra.Command, do func(context.Context, sessionAPI) error) error {
	ctx, cancel := context.WithTimeout(c.Context(), requestTimeout)
	defer cancel()
	if s.redis == "" {
		return do(ctx, sessionsOfGateway{s})
	}
	options, err := s.redisOptions()
	if err != nil {
		return err
	}
	store, err := gateway.OpenSessions(gateway.SessionsConfig{Redis: options, Author: author(), OnUnannounced: func(err error) {
		fmt.Fprintf(c.ErrOrStderr(), "gatepost: the gateways' logs will not show this revoke: %v\n", err)
	}})
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, sessionsInRedis{store}), store.Close())
}

// sessionsInRedis needs no gateway.
type sessionsInRedis struct{ store *gateway.Sessions }

func (r sessionsInRedis) list(ctx context.Context, user string) ([]admin.Session, error) {
	found, err := r.store.Sessions(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("listing sessions: %w", err)
	}
	return admin.NewSessions(found), nil
}

func (r sessionsInRedis) revoke(ctx context.Context, id string) error {
	switch err := r.store.RevokeSession(ctx, "", id); {
	case errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, tokens.ErrUnavailable):
		return errNoSession
	case err != nil:
		return fmt.Errorf("revoking a session: %w", err)
	}
	return nil
}

func (r sessionsInRedis) revokeUser(ctx context.Context, user string) (int, error) {
	n, err := r.store.RevokeUser(ctx, user)
	if err != nil {
		err = fmt.Errorf("revoking a user's sessions: %w", err)
	}
	return n, err
}

// sessionsOfGateway calls the admin API of a running gateway.
type sessionsOfGateway struct{ *settings }

func (g sessionsOfGateway) list(ctx context.Context, user string) (sessions []admin.Session, err error) {
	err = g.call(ctx, http.MethodGet, admin.PathUserSessions(user), &sessions)
	return sessions, err
}

func (g sessionsOfGateway) revoke(ctx context.Context, id string) error {
	err := g.call(ctx, http.MethodDelete, admin.PathSession(id), new(struct{ Revoked int }))
	if refused := (*refusal)(nil); errors.As(err, &refused) && refused.code == http.StatusNotFound {
		return errNoSession
	}
	return err
}

func (g sessionsOfGateway) revokeUser(ctx context.Context, user string) (int, error) {
	var response struct{ Revoked int }
	err := g.call(ctx, http.MethodDelete, admin.PathUserSessions(user), &response)
	return response.Revoked, err
}

func (g sessionsOfGateway) call(ctx context.Context, method, path string, response any) error {
	body, err := g.do(ctx, method, path, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, response); err != nil {
		return fmt.Errorf("reading the response of %s: %w", g.admin, err)
	}
	return nil
}
