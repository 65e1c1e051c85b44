package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/explain"
	"gatepost/gateway"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"
)

func explainCommand(s *settings) *cobra.Command {
	var method, format string
	var headers []string
	var certificate bool
	command := &cobra.Command{
		Use:   "explain URL --config FILE",
		Short: "Explain which response a request gets, and why",
		Long: "Explain which service and rule a request matches, which response it gets, why, and what to change. URL is a path\n" +
			"(/orders/5) under the host localhost, or a whole URL; a ws or wss URL is the handshake of a WebSocket.\n" +
			"The gateway on --admin is asked for the session of the token, by the token's hash, and for what it serves. Without\n" +
			"--admin on the command line, that is done only if a gateway answers there and serves these definitions. With --redis,\n" +
			"Redis is asked for the session. If neither is asked, the explanation lists every case.",
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkFormat(format, "text", "json"); err != nil {
				return err
			}
			request, err := readRequest(method, args[0], headers)
			if err != nil {
				return usageError{err}
			}
			request.Certificate = certificate
			answer, err := s.explain(c.Context(), request)
			if err != nil {
				return err
			}
			if format == "json" {
				return writeJSON(c.OutOrStdout(), answer)
			}
			return answer.Print(c.OutOrStdout())
		},
	}
	command.Flags().StringVarP(&method, "method", "X", "GET", "the request's `METHOD`")
	command.Flags().StringArrayVarP(&headers, "header", "H", nil, "a `HEADER` of the request, as 'Name: value'; may be given several times")
	command.Flags().BoolVar(&certificate, "client-certificate", false, "the client presents a verified certificate")
	command.Flags().StringVar(&format, "format", "text", "text or json")
	return command
}

// explain explains a request with the definitions of the settings.
func (s *settings) explain(ctx context.Context, request explain.Request) (*explain.Explanation, error) {
	if err := s.requireConfig(); err != nil {
		return nil, err
	}
	d, err := s.currentDefinitions(ctx)
	if err != nil {
		return nil, fmt.Errorf("the definitions cannot be used:\n%w", err)
	}
	var sessions authz.Sessions
	if s.redis != "" {
		options, err := s.redisOptions()
		if err != nil {
			return nil, err
		}
		store, err := gateway.OpenSessions(gateway.SessionsConfig{Redis: options})
		if err != nil {
			return nil, err
		}
		defer store.Close()
		sessions = tokens.LookupFunc(store.Lookup)
	}
	whose := &tokensOfGateway{settings: s}
	running, err := s.runningGateway(ctx, whose)
	if err != nil {
		return nil, err
	}
	explainer, err := gateway.NewExplainer(explain.Config{Definitions: d, Options: s.xdsOptions(d), Sessions: sessions, Gateway: running})
	if err != nil {
		return nil, err
	}
	answer, err := explainer.Explain(ctx, request)
	if err = errors.Join(err, whose.failed); err != nil {
		return nil, fmt.Errorf("explaining %s %s: %w", request.Method, request.Target, err)
	}
	return answer, nil
}

// findTimeout limits the search for a gateway if --admin is not on the command line.
const findTimeout = time.Second

// runningGateway returns the state of the gateway on --admin. If --admin is not on the command line
// and there is no gateway with definitions at the default address, it returns nil without an error.
func (s *settings) runningGateway(ctx context.Context, whose *tokensOfGateway) (*explain.Gateway, error) {
	if !s.adminNamed {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, findTimeout)
		defer cancel()
	}
	var status *gatewayv1.Status
	body, err := s.get(ctx, admin.PathStatus)
	if err == nil {
		status, err = s.readStatus(body)
	}
	if err == nil && (status.GetVersion() == "" || status.GetSource() == "") { // an API of another program can have a version
		err = fmt.Errorf("calling the gateway on %s: it serves no definitions yet", s.admin)
	}
	if err != nil {
		if s.adminNamed {
			return nil, err
		}
		return nil, nil
	}
	return &explain.Gateway{Address: s.admin, Status: status, Sessions: whose, Named: s.adminNamed}, nil
}

// tokensOfGateway looks up tokens in a running gateway.
type tokensOfGateway struct {
	*settings
	failed error // why the gateway could not be called; this is an error, not the result of a lookup
}

// Principal looks a token up by its hash, which it sends in a body. The token is not sent.
func (g *tokensOfGateway) Principal(ctx context.Context, h tokens.Hash) (tokens.Principal, error) {
	request, err := json.Marshal(admin.LookupRequest{TokenHash: h.Hex()})
	if err != nil {
		return tokens.Principal{}, err
	}
	var found admin.LookupResponse
	body, err := g.post(ctx, admin.PathLookup, request)
	if err == nil {
		err = json.Unmarshal(body, &found)
	}
	var refused *refusal
	switch {
	case errors.As(err, &refused) && refused.code == http.StatusServiceUnavailable:
		return tokens.Principal{}, tokens.ErrUnavailable
	case err != nil:
		g.failed = fmt.Errorf("looking up the token: %w", err)
		return tokens.Principal{}, g.failed
	case found.Session == nil:
		return tokens.Principal{}, tokens.ErrUnknown
	}
	s := tokens.Session{Hash: h, ID: found.Session.ID, User: found.Session.User, Scopes: found.Session.Scopes, Expires: found.Session.Expires, Ends: found.Session.Ends}
	return s.Principal(), nil
}

// currentDefinitions returns the definitions in the file of --config, or the newest revision in
// Redis.
func (s *settings) currentDefinitions(ctx context.Context) (*definitions.Definitions, error) {
	if s.config != configRedis {
		return definitions.Load(s.config)
	}
	store, closeStore, err := s.openRevisions()
	if err != nil {
		return nil, err
	}
	defer closeStore()
	newest, err := store.Newest(ctx)
	if err != nil {
		return nil, err
	}
	return store.Load(ctx, newest)
}

var errHeader = errors.New("reading --header: want 'Name: value'")

// readRequest builds a request from the command line.
func readRequest(method, target string, headers []string) (explain.Request, error) {
	var fields []explain.Field
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return explain.Request{}, errHeader
		}
		fields = append(fields, explain.Field{Name: name, Value: strings.TrimSpace(value)})
	}
	return explain.NewRequest(method, target, fields)
}

func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
