package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/tokens"
	"gatepost/tokens/cache"
	"gatepost/tokens/redisstore"
)

func tokensCommand(s *settings) *cobra.Command {
	command := &cobra.Command{
		Use:   "tokens",
		Short: "List and revoke sessions: of the gateway on --admin, or with --redis those in that Redis",
		Args:  usage(cobra.NoArgs),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	command.AddCommand(listCommand(s), revokeCommand(s))
	return command
}

func listCommand(s *settings) *cobra.Command {
	var user string
	command := &cobra.Command{
		Use:   "list --user ID",
		Short: "List a user's sessions, the newest first",
		Args:  usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if user == "" {
				return usageError{errors.New("give the user whose sessions to list: --user ID")}
			}
			var sessions []admin.Session
			err := s.withSessions(c.Context(), func(ctx context.Context, on sessionsSomewhere) (err error) {
				sessions, err = on.list(ctx, user)
				return err
			})
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "ID\tISSUED\tEXPIRES\tADDRESS\tLAST SEEN\tFROM\tCLIENT")
			for _, one := range sessions {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", one.ID, moment(one.Issued), moment(one.Expires),
					orNone(one.Address), moment(one.LastSeen), orNone(one.LastAddress), orNone(printable(one.UserAgent)))
			}
			return table.Flush()
		},
	}
	command.Flags().StringVar(&user, "user", "", "the user's `ID`")
	return command
}

func revokeCommand(s *settings) *cobra.Command {
	var user string
	command := &cobra.Command{
		Use:   "revoke (ID | --user ID)",
		Short: "End one session by its public id, or all of a user's; returns when no gateway accepts them any more",
		Args:  usage(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 1) == (user != "") {
				return usageError{fmt.Errorf("give a session's ID, or --user ID for all of a user's")}
			}
			ended := 0
			err := s.withSessions(c.Context(), func(ctx context.Context, on sessionsSomewhere) (err error) {
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
			_, err = fmt.Fprintf(c.OutOrStdout(), "revoked %d\n", ended)
			return err
		},
	}
	command.Flags().StringVar(&user, "user", "", "end all sessions of the user with this `ID`")
	return command
}

// moment is a time as it is listed.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}

// printable is what a client said of itself, without what would mean something to a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// sessionsSomewhere is where the commands list and end sessions. What ends some returns when no gateway accepts them
// any more.
type sessionsSomewhere interface {
	list(ctx context.Context, user string) ([]admin.Session, error)
	revoke(ctx context.Context, id string) error
	revokeUser(ctx context.Context, user string) (int, error)
}

// withSessions calls do with the sessions in the Redis that is named, else with those of a running gateway. Neither may
// take longer than askTimeout.
func (s *settings) withSessions(ctx context.Context, do func(context.Context, sessionsSomewhere) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if s.redis == "" {
		return do(ctx, sessionsOfGateway{s})
	}
	options, err := redisstore.ParseURL(s.redis)
	if err != nil {
		return usageError{fmt.Errorf("reading --redis: %w", err)}
	}
	store, err := cache.New(redisstore.Open(options), cache.Outside{}, cache.Config{})
	if err != nil {
		return fmt.Errorf("opening the token store: %w", err)
	}
	return errors.Join(do(ctx, sessionsInRedis{store}), store.Close())
}

// sessionsInRedis needs no gateway: those that run hear of what ends from Redis.
type sessionsInRedis struct{ store tokens.Store }

func (r sessionsInRedis) list(ctx context.Context, user string) ([]admin.Session, error) {
	found, err := r.store.Sessions(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("listing sessions: %w", err)
	}
	return admin.Show(found), nil
}

func (r sessionsInRedis) revoke(ctx context.Context, id string) error {
	switch err := r.store.RevokeSession(ctx, "", id); {
	case errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, tokens.ErrUnavailable):
		return errors.New("revoking a session: there is no such session")
	case err != nil:
		return fmt.Errorf("revoking a session: %w", err)
	}
	return nil
}

func (r sessionsInRedis) revokeUser(ctx context.Context, user string) (int, error) {
	n, err := r.store.RevokeUser(ctx, user)
	if err != nil {
		return n, fmt.Errorf("revoking a user's sessions: %w", err)
	}
	return n, nil
}

// sessionsOfGateway asks a running gateway on its admin address.
type sessionsOfGateway struct{ *settings }

func (g sessionsOfGateway) list(ctx context.Context, user string) (sessions []admin.Session, err error) {
	err = g.call(ctx, http.MethodGet, userPath(user), &sessions)
	return sessions, err
}

func (g sessionsOfGateway) revoke(ctx context.Context, id string) error {
	return g.call(ctx, http.MethodDelete, "/api/v1/sessions/"+url.PathEscape(id), new(struct{ Revoked int }))
}

func (g sessionsOfGateway) revokeUser(ctx context.Context, user string) (int, error) {
	var answer struct{ Revoked int }
	err := g.call(ctx, http.MethodDelete, userPath(user), &answer)
	return answer.Revoked, err
}

func userPath(user string) string { return "/api/v1/users/" + url.PathEscape(user) + "/sessions" }

func (g sessionsOfGateway) call(ctx context.Context, method, path string, answer any) error {
	body, err := g.ask(ctx, method, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("reading the answer of %s: %w", g.admin, err)
	}
	return nil
}
