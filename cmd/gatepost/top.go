package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gatepost/admin"
	"gatepost/authz"
)

// topEvery is how often the overview is refreshed. topDenials is how many denials it has, and topLines are its lines
// beside those of services, Envoys, denials and checks, with the line of the cursor.
const (
	topEvery   = 2 * time.Second
	topDenials = 8
	topLines   = 11
)

func topCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "top",
		Short: "Show services, rates, denials and Envoys of the gateway on --admin, refreshed every 2 s",
		Long: "Show services, rates, denials and Envoys of the gateway on --admin, refreshed every 2 s until Ctrl-C.\n" +
			"If there are more services than fit on the terminal, those with the most requests are shown.\n" +
			"If standard output is no terminal, it is shown once, with the counts since the start.",
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if isTerminal(c.OutOrStdout()) {
				return s.liveTop(c.Context(), c.OutOrStdout())
			}
			now, err := s.top(c.Context())
			if err != nil {
				return err
			}
			var out bytes.Buffer
			now.print(&out, nil, heightOf(c.OutOrStdout()))
			_, err = out.WriteTo(c.OutOrStdout())
			return err
		},
	}
}

// liveTop refreshes the terminal until ctx ends. A gateway that answered once may be away for a while.
func (s *settings) liveTop(ctx context.Context, terminal io.Writer) error {
	fmt.Fprint(terminal, noWrap)
	defer fmt.Fprint(terminal, wrap)
	var before *topState
	for {
		now, err := s.top(ctx)
		screen := bytes.NewBufferString("\x1b[H\x1b[2J") // to the top, and clear
		switch {
		case err == nil:
			now.print(screen, before, heightOf(terminal))
			before = now
		case before == nil:
			return err
		default:
			fmt.Fprintln(screen, err)
		}
		if _, err := screen.WriteTo(terminal); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(topEvery):
		}
	}
}

// noWrap makes a terminal cut long lines off, and wrap break them again (DECAWM).
const (
	noWrap = "\x1b[?7l"
	wrap   = "\x1b[?7h"
)

// heightOf returns the lines of a terminal, or 0 if out is none.
func heightOf(out io.Writer) int {
	file, isFile := out.(*os.File)
	if !isFile {
		return 0
	}
	_, height, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return height
}

// topState is what is shown.
type topState struct {
	overview admin.Overview
	services admin.Services
	denials  []authz.Denial
	envoys   []byte // the lines about the Envoys
}

// top asks the gateway.
func (s *settings) top(ctx context.Context) (*topState, error) {
	t := new(topState)
	for path, into := range map[string]any{admin.PathOverview: &t.overview, admin.PathServices: &t.services, admin.PathDenials: &t.denials} {
		body, err := s.get(ctx, path)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(body, into); err != nil {
			return nil, fmt.Errorf("reading the response of %s: %w", s.admin, err)
		}
	}
	body, err := s.get(ctx, admin.PathStatus)
	if err != nil {
		return nil, err
	}
	status, err := s.readStatus(body)
	if err != nil {
		return nil, err
	}
	var envoys bytes.Buffer
	for _, e := range status.GetEnvoys() {
		fmt.Fprintf(&envoys, "%s\t%s\t%s\t%s\n", oneLine(e.GetNode()), orNone(e.GetAcked()), verifiedOr(e), lastNack(e))
	}
	t.envoys = envoys.Bytes()
	return t, nil
}

// print prints rates since before, or counts since the start if before is nil. If height is not 0, services that do not
// fit into it are left out.
func (t *topState) print(w io.Writer, before *topState, height int) {
	ready, o := "ready", t.overview
	if !o.Ready {
		ready = "not ready"
	}
	fmt.Fprintf(w, "gatepost %s, %s, version %s, %s\n", o.GatepostVersion, ready, orNone(o.Version), o.Now.Format(time.RFC3339))
	notOK := 0
	for _, name := range slices.Sorted(maps.Keys(o.Checks)) {
		if o.Checks[name] != "ok" {
			notOK++
			fmt.Fprintf(w, "%s: %s\n", name, oneLine(o.Checks[name]))
		}
	}
	var then topState
	count := func(now, _ float64) string { return fmt.Sprintf("%.0f", now) }
	if before != nil {
		then = *before
		seconds := max(o.Now.Sub(then.overview.Now).Seconds(), 0.001)
		count = func(now, then float64) string { return fmt.Sprintf("%.1f/s", max(0, now-then)/seconds) }
	}
	rates := make([]string, 0, 4)
	for _, d := range []string{"allow", "deny", "error"} {
		rates = append(rates, d+" "+count(o.Decisions[d], then.overview.Decisions[d]))
	}
	fmt.Fprintf(w, "%s\nlogins", strings.Join(rates, ", "))
	for _, outcome := range slices.Sorted(maps.Keys(o.Logins)) {
		if now, before := o.Logins[outcome], then.overview.Logins[outcome]; now > before {
			fmt.Fprintf(w, " %s %s", outcome, count(now, before))
		}
	}
	fmt.Fprint(w, "\n\n")

	rows := t.rows(then)
	denials := t.denials[:min(len(t.denials), topDenials)]
	more := 0
	if fits := height - topLines - notOK - bytes.Count(t.envoys, []byte("\n")) - len(denials); height > 0 && fits < len(rows) {
		slices.SortStableFunc(rows, func(a, b topRow) int { return cmp.Compare(b.requests-b.thenRequests, a.requests-a.thenRequests) })
		fits = max(fits, 1)
		more, rows = len(rows)-fits, rows[:fits]
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SERVICE\tPATH\tSTATE\tUPSTREAMS\tREQUESTS\tERRORS")
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Path, r.State, healthsOf(r.Service).short(), count(r.requests, r.thenRequests), count(r.errors, r.thenErrors))
	}
	if more > 0 {
		fmt.Fprintf(table, "and %d more\n", more)
	}
	fmt.Fprintln(table, "\nENVOY\tACKED\tVERIFIED\tLAST NACK")
	_, _ = table.Write(t.envoys)
	fmt.Fprintln(table, "\nDENIED\tSERVICE\tREASON\tREQUEST\tCLIENT")
	for _, d := range denials {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s %s\t%s\n", d.Time.Format(time.TimeOnly), orNone(d.Service), d.Reason, oneLine(d.Method), oneLine(d.Path), d.Client)
	}
	_ = table.Flush()
}

// topRow is a service with its counts now and then.
type topRow struct {
	admin.Service
	requests, errors, thenRequests, thenErrors float64
}

func (t *topState) rows(then topState) []topRow {
	were := map[string]admin.Service{}
	for _, s := range then.services.Services {
		were[s.Name] = s
	}
	rows := make([]topRow, 0, len(t.services.Services))
	for _, s := range t.services.Services {
		r := topRow{Service: s}
		r.requests, r.errors = upstreamCounts(s)
		r.thenRequests, r.thenErrors = upstreamCounts(were[s.Name])
		rows = append(rows, r)
	}
	return rows
}

func upstreamCounts(s admin.Service) (requests, errors float64) {
	for _, u := range s.Upstreams {
		requests, errors = requests+float64(u.Requests), errors+float64(u.Errors)
	}
	return requests, errors
}
