package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"gatepost/admin"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// The commands of this file call the admin API of a running gateway.

// checkFormat returns a usage error if --format is none of the valid values.
func checkFormat(format string, valid ...string) error {
	if slices.Contains(valid, format) {
		return nil
	}
	return usageError{fmt.Errorf("reading --format: want %s", strings.Join(valid, " or "))}
}

// requestTimeout limits one request. A revoke may wait until no gateway accepts the token any more.
const requestTimeout = 10 * time.Second

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  arguments(0, 0),
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
		Args:  arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			path := "/readyz"
			if live {
				path = "/healthz"
			}
			body, err := s.get(c.Context(), path)
			if len(body) > 0 {
				fmt.Fprintf(c.OutOrStdout(), "%s\n", body)
			}
			if refused := (*refusal)(nil); errors.As(err, &refused) && refused.code == http.StatusServiceUnavailable {
				return fmt.Errorf("the gateway on %s is not ready", s.admin) // the body has the reasons
			}
			return err
		},
	}
	command.Flags().BoolVar(&live, "live", false, "ask only whether the process answers")
	return command
}

func statusCommand(s *settings) *cobra.Command {
	var format string
	var all bool
	command := &cobra.Command{
		Use:   "status",
		Short: "Show the version that is served, its listeners and certificates, and the state of each Envoy and of upstreams",
		Args:  arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkFormat(format, "text", "json"); err != nil {
				return err
			}
			body, err := s.get(c.Context(), admin.PathStatus)
			if err != nil {
				return err
			}
			if format == "json" {
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", body)
				return err
			}
			status, err := s.readStatus(body)
			if err != nil {
				return err
			}
			if err := printStatus(c.OutOrStdout(), status); err != nil {
				return err
			}
			return s.printUpstreams(c, all)
		},
	}
	command.Flags().StringVar(&format, "format", "text", "text or json")
	command.Flags().BoolVar(&all, "upstreams", false, "list all upstreams, not only those with a canary, a reached limit or a failure")
	return command
}

// readStatus parses the response of the status API.
func (s *settings) readStatus(body []byte) (*gatewayv1.Status, error) {
	status := new(gatewayv1.Status)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, status); err != nil { // of a newer gateway
		return nil, fmt.Errorf("reading the response of %s: %w", s.admin, err)
	}
	return status, nil
}

func printStatus(w io.Writer, status *gatewayv1.Status) error {
	older := status.GetActive() == "" && len(status.GetListeners()) == 0 // it reports neither
	switch version := orNone(status.GetVersion()); {
	case status.GetActive() == status.GetVersion():
		fmt.Fprintf(w, "serving   %s\n", version)
	case older:
		fmt.Fprintf(w, "published %s\n", version)
	default:
		fmt.Fprintf(w, "published %s\nactive    %s\n", version, orNone(status.GetActive()))
	}
	fmt.Fprintf(w, "source    %s\n", orNone(status.GetSource()))
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
	if err := errors.Join(printListeners(w, status.GetListeners()), printCertificates(w, status.GetCertificates())); err != nil {
		return err
	}
	return printEnvoys(w, status.GetEnvoys())
}

func printEnvoys(w io.Writer, envoys []*gatewayv1.EnvoyStatus) error {
	if len(envoys) == 0 {
		_, err := fmt.Fprintln(w, "no Envoy is connected")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ENVOY\tADDRESS\tACKED\tVERIFIED\tLAST NACK")
	for _, e := range envoys {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", oneLine(e.GetNode()), peerAddress(e), orNone(e.GetAcked()), verifiedOr(e), lastNack(e))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, e := range envoys {
		for _, secret := range e.GetRejectedSecrets() {
			if _, err := fmt.Fprintf(w, "%s has rejected the certificate or CA %s\n", e.GetNode(), secret); err != nil {
				return err
			}
		}
	}
	return nil
}

func printListeners(w io.Writer, all []*gatewayv1.ListenerStatus) error {
	if len(all) == 0 { // of an older gateway, or nothing is served yet
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "LISTENER\tADDRESS\tSETTINGS")
	for _, l := range all {
		var settings []string
		add := func(set bool, text string) {
			if set {
				settings = append(settings, text)
			}
		}
		add(l.GetProblem() != "", "not served: "+l.GetProblem())
		add(l.GetRedirect(), "redirects to https")
		add(l.GetMinVersion() != "", "TLS "+l.GetMinVersion()+" and later")
		add(l.GetClientCertificates() != "", "client certificates "+l.GetClientCertificates())
		add(l.GetProxyProtocol(), "PROXY protocol")
		fmt.Fprintf(table, "%s\t%s\t%s\n", l.GetProtocol(), l.GetAddress(), orNone(strings.Join(settings, ", ")))
	}
	return table.Flush()
}

func printCertificates(w io.Writer, all []*gatewayv1.CertificateStatus) error {
	if len(all) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CERTIFICATE\tNAMES\tDAYS LEFT\tPROBLEM")
	for _, c := range all {
		left := "-"
		if c.GetNotAfter() != nil {
			left = strconv.Itoa(int(c.GetDaysLeft()))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", c.GetName(), orNone(strings.Join(slices.Concat(c.GetNames(), c.GetAddresses()), " ")), left, orNone(c.GetProblem()))
	}
	return table.Flush()
}

// checkedBy returns which process checks tokens. Older gateways do not report it.
func checkedBy(m *gatewayv1.ModuleStatus) string {
	switch {
	case m.GetLibrary() != "":
		return "checked inside Envoy"
	case m.GetReason() != "":
		return "checked by Gatepost for each request: " + m.GetReason()
	}
	return "checked by Gatepost for each request"
}

// verifiedOr returns whether an Envoy is verified to serve what it acknowledged, or why not.
func verifiedOr(e *gatewayv1.EnvoyStatus) string {
	switch {
	case e.GetProven():
		return "yes"
	case e.GetDoubt() != "":
		return "no: " + e.GetDoubt()
	}
	return "not yet"
}

// peerAddress returns the address from which an Envoy is connected. Go calls that of a client of a Unix socket @.
func peerAddress(e *gatewayv1.EnvoyStatus) string {
	if e.GetAddress() == "@" {
		return "Unix socket"
	}
	return e.GetAddress()
}

// lastNack returns the last rejection by an Envoy. Older gateways report it without its version and time.
func lastNack(e *gatewayv1.EnvoyStatus) string {
	n := e.GetLastNack()
	if n == nil {
		return orNone(oneLine(e.GetNack()))
	}
	about := n.GetType()
	if n.GetVersion() != "" {
		about += " of version " + n.GetVersion()
	}
	about += ", " + n.GetAt().AsTime().Format(time.RFC3339)
	if e.GetNack() == "" {
		about += ", overcome"
	}
	return fmt.Sprintf("%s (%s)", oneLine(n.GetReason()), about)
}

func orNone(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// adminClient returns a client that uses no proxy and follows no redirects, so that only the address of --admin is
// called and gets the token.
func (s *settings) adminClient() *http.Client {
	network, address := "tcp", s.admin
	if path, isSocket := strings.CutPrefix(s.admin, "unix:"); isSocket {
		network, address = "unix", path
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, address)
			},
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// newRequest returns a request to the admin API, with the strongest token of --admin-token-file. content is JSON; it
// can be nil.
func (s *settings) newRequest(ctx context.Context, method, path string, content []byte) (*http.Request, error) {
	host := s.admin
	if strings.HasPrefix(host, "unix:") {
		host = "localhost"
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("requesting %s: %w", s.admin, err)
	}
	if content != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if s.adminTokenFile != "" {
		all, err := admin.ReadTokenFile(s.adminTokenFile)
		if err != nil {
			return nil, err
		}
		request.Header.Set("Authorization", "Bearer "+admin.Strongest(all).Token.Reveal())
	}
	return request, nil
}

// refusal is a response with a status other than 200.
type refusal struct {
	code    int
	message string
}

func (r *refusal) Error() string { return r.message }

// get returns the body of a GET request to the admin API.
func (s *settings) get(ctx context.Context, path string) ([]byte, error) {
	return s.do(ctx, http.MethodGet, path, nil)
}

// post returns the response body of a POST request with a JSON body.
func (s *settings) post(ctx context.Context, path string, content []byte) ([]byte, error) {
	return s.do(ctx, http.MethodPost, path, content)
}

// do sends one request to the admin API and returns the response body. If the status is not 200,
// the error is a refusal, and the body is returned too. content is JSON; it can be nil.
func (s *settings) do(ctx context.Context, method, path string, content []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request, err := s.newRequest(ctx, method, path, content)
	if err != nil {
		return nil, err
	}
	defer waiting(newProgress(os.Stderr), "waiting for the gateway on "+s.admin)()
	response, err := s.adminClient().Do(request)
	if err != nil {
		return nil, fmt.Errorf("calling the gateway on %s (is it running, and is --admin right?): %w", s.admin, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the response of %s: %w", s.admin, err)
	}
	if response.StatusCode != http.StatusOK {
		return body, &refusal{response.StatusCode, fmt.Sprintf("requesting %s: %s: %s", s.admin, response.Status, errorOf(body))}
	}
	return body, nil
}

// errorOf returns the error in a response of the admin API, or all of another response, in one line.
func errorOf(body []byte) string {
	var of struct{ Error string }
	if err := json.Unmarshal(body, &of); err != nil || of.Error == "" {
		of.Error = strings.TrimSpace(string(body))
	}
	return oneLine(of.Error)
}
