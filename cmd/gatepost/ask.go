package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// The commands of this file ask a running gateway on its admin address.

// errFormat refuses an unknown --format.
var errFormat = errors.New("reading --format: want text or json")

// askTimeout bounds one question; a revoke may wait until no gateway can accept the token any more.
const askTimeout = 10 * time.Second

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "gatepost %s\n", version)
			return err
		},
	}
}

func healthCommand(s *settings) *cobra.Command {
	var live bool
	command := &cobra.Command{
		Use:   "health",
		Short: "Exit 0 if the gateway on --admin is ready, for health checks of containers",
		Args:  usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			path := "/readyz"
			if live {
				path = "/healthz"
			}
			body, err := s.ask(c.Context(), http.MethodGet, path)
			_, _ = c.OutOrStdout().Write(body)
			return err
		},
	}
	command.Flags().BoolVar(&live, "live", false, "ask only whether the process answers")
	return command
}

func statusCommand(s *settings) *cobra.Command {
	var format string
	command := &cobra.Command{
		Use:   "status",
		Short: "Show the version that is served, and the state of each Envoy",
		Args:  usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return usageError{errFormat}
			}
			body, err := s.ask(c.Context(), http.MethodGet, statusPath)
			if err != nil {
				return err
			}
			if format == "json" {
				_, err = c.OutOrStdout().Write(body)
				return err
			}
			status, err := s.readStatus(body)
			if err != nil {
				return err
			}
			return printStatus(c.OutOrStdout(), status)
		},
	}
	command.Flags().StringVar(&format, "format", "text", "text or json")
	return command
}

const statusPath = "/api/v1/status"

// readStatus reads what the admin address has answered.
func (s *settings) readStatus(body []byte) (*gatewayv1.Status, error) {
	status := new(gatewayv1.Status)
	if err := protojson.Unmarshal(body, status); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", s.admin, err)
	}
	return status, nil
}

func printStatus(w io.Writer, status *gatewayv1.Status) error {
	fmt.Fprintf(w, "serving   %s\nsource    %s\n", orNone(status.GetVersion()), orNone(status.GetSource()))
	if status.GetPublished() != nil {
		fmt.Fprintf(w, "since     %s\n", status.GetPublished().AsTime().Format(time.RFC3339))
	}
	fmt.Fprintf(w, "tokens    %s\n", checkedBy(status.GetModule()))
	if status.GetRejected() != "" {
		fmt.Fprintf(w, "rejected  %s\n", status.GetRejected())
	}
	if len(status.GetWithheld()) > 0 {
		fmt.Fprintf(w, "withheld  %s (503)\n", strings.Join(status.GetWithheld(), ", "))
	}
	for _, s := range status.GetFormer() {
		fmt.Fprintf(w, "former    %s\n", s.GetName())
	}
	if len(status.GetEnvoys()) == 0 {
		_, err := fmt.Fprintln(w, "no Envoy is connected")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ENVOY\tADDRESS\tACKED\tPROVEN\tLAST NACK")
	for _, e := range status.GetEnvoys() {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", e.GetNode(), e.GetAddress(), orNone(e.GetAcked()), provenOr(e), orNone(e.GetNack()))
	}
	return table.Flush()
}

// checkedBy says who checks tokens. An older gateway does not say.
func checkedBy(m *gatewayv1.ModuleStatus) string {
	switch {
	case m.GetLibrary() != "":
		return "checked inside Envoy"
	case m.GetReason() != "":
		return "checked by Gatepost for each request: " + m.GetReason()
	}
	return "checked by Gatepost for each request"
}

// provenOr is whether an Envoy was seen to serve what it acknowledged, or why that cannot be said.
func provenOr(e *gatewayv1.EnvoyStatus) string {
	switch {
	case e.GetProven():
		return "yes"
	case e.GetDoubt() != "":
		return "no: " + e.GetDoubt()
	}
	return "not yet"
}

func orNone(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// adminClient asks the address that it was given and no other: no proxy is asked, and no redirect is followed.
var adminClient = &http.Client{
	Transport:     &http.Transport{},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// refusal is an answer of the admin address that is no 200.
type refusal struct {
	code int
	says string
}

func (r *refusal) Error() string { return r.says }

// ask sends one request to the gateway's admin address and returns the body of a 200. Any other answer is an
// error, a refusal, returned beside the body.
func (s *settings) ask(ctx context.Context, method, path string) ([]byte, error) {
	return s.tell(ctx, method, path, nil)
}

// tell is ask with a body in JSON; nil: none.
func (s *settings) tell(ctx context.Context, method, path string, content []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+s.admin+path, bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", s.admin, err)
	}
	if content != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := adminClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking the gateway on %s (is it running, and is --admin right?): %w", s.admin, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", s.admin, err)
	}
	if answer.StatusCode != http.StatusOK {
		return body, &refusal{answer.StatusCode, fmt.Sprintf("asking %s: %s: %s", s.admin, answer.Status, strings.TrimSpace(string(body)))}
	}
	return body, nil
}
