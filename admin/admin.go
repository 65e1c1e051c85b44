// Package admin decides what an operator can see and change on a running Gatepost: health,
// readiness, metrics, the state of each Envoy, and users' sessions.
//
// It listens on its own address, which clients of the gateway cannot reach. On loopback and on a Unix
// socket reads need no token; everywhere else, and for changes, access asks for one. A browser on the
// operator's machine can reach loopback too, so guard rejects every request from a page of another
// origin. Tokens are accepted as Bearer only, which no browser sends by itself.
package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/explain"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"
	"gatepost/tokens/shield"
	"gatepost/xds"
)

// checkTimeout limits one readiness check.
const checkTimeout = 2 * time.Second

// Check is a condition of readiness.
type Check struct {
	// Name is the name of the check in the response of /readyz.
	Name string
	// Ready returns nil if the check passes, or else the reason.
	Ready func(context.Context) error
	// Degraded returns a problem that does not make the gateway unready, or "". It can be nil.
	Degraded func() string
}

// Sessions is the part of a store that looks up, lists and ends sessions.
type Sessions interface {
	Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error)
	Sessions(ctx context.Context, user string) ([]*tokens.Session, error)
	RevokeSession(ctx context.Context, user, id string) error
	RevokeUser(ctx context.Context, user string) (int, error)
}

// Config configures a Server.
type Config struct {
	// Hosts are the names, without a port, that are accepted in Host in addition to IP addresses, localhost and, if the
	// address is not loopback, single-label names.
	Hosts []string
	// Local reports whether only processes of this machine reach the address: loopback, or a Unix socket.
	Local bool
	// TokenFile is the file with the tokens of operators; see ReadTokenFile. Empty: there is none.
	TokenFile string
	// Checks are the conditions of readiness.
	Checks []Check
	// Status returns the state of the configuration and of each Envoy.
	Status func() *gatewayv1.Status
	// Snapshot returns the active Envoy configuration, or nil if there is none yet. Required.
	Snapshot func() *xds.Snapshot
	// Services returns the services and the state of their upstreams. Required.
	Services func(context.Context) Services
	// Denials returns the latest denied requests, the newest first. Required.
	Denials func() []authz.Denial
	// Follow returns each denial from now on, until stop is called. Required.
	Follow func() (denied <-chan authz.Denial, stop func())
	// Definitions returns the definitions that are served, or nil if there are none yet. Required.
	Definitions func() *definitions.Definitions
	// Revisions are the earlier definitions. Nil: there are none.
	Revisions Revisions
	// Shield limits failed logins. Required.
	Shield *shield.Shield
	// Explain explains a request with the definitions that are served. If lookup is false, the explanation has an outcome
	// for each state of the token. Required.
	Explain func(ctx context.Context, r explain.Request, lookup bool) (*explain.Explanation, error)
	// Version is the version of this program.
	Version string
	// If Profiles is true, net/http/pprof is served under /debug/pprof/.
	Profiles bool
	// Sessions looks up, lists and ends sessions. Required.
	Sessions Sessions
	// Metrics is the source of /metrics. Required.
	Metrics prometheus.Gatherer
	// EnvoyMetrics returns the essential metrics of Envoy in the text format of Prometheus. Nil: Envoy's metrics are read
	// from Envoy.
	EnvoyMetrics func(context.Context) (io.ReadCloser, error)
	// Logger logs each change made through the API. Nil: nothing is logged.
	Logger *slog.Logger
}

// Server is the handler of the admin address. It is safe for concurrent use.
type Server struct {
	config   Config
	access   *access
	draining chan struct{} // closed by Drain
	drain    func()
	streams  streams
	handler  http.Handler
}

// New returns a server for the configuration. The error is that of the token file.
func New(config Config) (*Server, error) {
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	guessing, err := shield.New(shield.Config{Logger: config.Logger, Entries: 1024})
	if err != nil {
		return nil, err
	}
	file, err := openTokenFile(config.TokenFile, config.Logger)
	if err != nil {
		return nil, err
	}
	s := &Server{config: config, draining: make(chan struct{}), access: &access{
		local: config.Local, file: file, link: link{now: time.Now}, logger: config.Logger, shield: guessing,
	}}
	s.drain = sync.OnceFunc(func() { close(s.draining) })
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", s.access.require(reads, newMetrics(config).ServeHTTP))
	api := http.NewServeMux()
	for pattern, call := range s.calls() {
		api.Handle(pattern, s.access.require(call.needs, call.handler))
	}
	mux.Handle("/api/", api)
	for pattern, name := range pageFiles {
		mux.Handle("GET "+pattern, pageFile(name))
	}
	if config.Profiles { // a profile shows the command line, which may have the password of Redis
		mux.Handle("/debug/pprof/", s.access.require(ends, profiles().ServeHTTP))
	}
	s.handler = newGuard(config.Hosts, config.Local, notThroughEnvoy(mux))
	return s, nil
}

// call is a call of the API.
type call struct {
	needs   permission
	handler http.HandlerFunc
}

// calls returns the calls of the API by their patterns.
func (s *Server) calls() map[string]call {
	return map[string]call{
		"GET " + PathStatus:                        {reads, s.status},
		"GET /api/v1/certificates":                 {reads, s.certificates},
		"GET /api/v1/config":                       {reads, s.dumpConfig},
		"GET " + PathDenials:                       {reads, s.denials},
		"GET " + pathUsers + "{user}" + ofUser:     {reads, s.sessions},
		"DELETE " + pathUsers + "{user}" + ofUser:  {ends, s.revokeUser},
		"DELETE " + pathSessions + "{id}":          {ends, s.revokeSession},
		"POST /api/v1/exchange":                    {none, s.exchange},
		"POST " + PathLookup:                       {reads, s.lookup},
		"GET " + PathOverview:                      {reads, s.overview},
		"GET " + PathServices:                      {reads, s.services},
		"GET /api/v1/definitions":                  {reads, s.definitions},
		"GET " + PathDenials + "/live":             {reads, s.follow},
		"POST /api/v1/explain":                     {reads, s.explain},
		"GET /api/v1/revisions":                    {reads, s.revisions},
		"GET /api/v1/revisions/{number}":           {reads, s.revision},
		"GET /api/v1/revisions/{number}/diff":      {reads, s.diff},
		"POST /api/v1/revisions/{number}/rollback": {operates, s.rollback},
		"GET /api/v1/shield":                       {reads, s.shield},
		"POST /api/v1/shield/forgive":              {operates, s.forgive},
		"GET /api/v1/support":                      {reads, s.support},
		"GET /api/v1/openapi.yaml":                 {reads, s.openAPI},
	}
}

// bodyTimeout limits how long a body may take to arrive, because net/http waits even for one that nothing reads.
const bodyTimeout = 10 * time.Second

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // recorders of tests have none
	}
	s.handler.ServeHTTP(w, r)
}

// wholeBody returns a body of at most limit bytes, and ends its time limit, which would end the call too. The limit
// stays for a body that has not ended: net/http waits for the rest of it after the response.
func wholeBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	return body, err
}

// Drain makes /readyz respond with 503, because Gatepost is about to exit, and ends live streams.
func (s *Server) Drain() { s.drain() }

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	convention.WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// ready responds with 200 if every check passes and 503 otherwise. The body has the state of each
// check.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	report, err := s.check(r.Context())
	code := http.StatusOK
	if err != nil {
		code = http.StatusServiceUnavailable
	}
	convention.WriteJSON(w, code, report)
}

// Ready returns nil if /readyz would respond with 200, else the reason.
func (s *Server) Ready(ctx context.Context) error {
	_, err := s.check(ctx)
	return err
}

// check returns the state of each check, and the first reason that the gateway is not ready.
func (s *Server) check(ctx context.Context) (report map[string]string, notReady error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	report = map[string]string{}
	select {
	case <-s.draining:
		report["draining"] = "the gateway is ending"
		notReady = errors.New(report["draining"])
	default:
	}
	for _, check := range s.config.Checks {
		err := check.Ready(ctx)
		report[check.Name] = check.describe(err)
		if err != nil && notReady == nil {
			notReady = fmt.Errorf("%s: %w", check.Name, err)
		}
	}
	return report, notReady
}

// describe returns the state of a check for /readyz, given the error of Ready.
func (c Check) describe(err error) string {
	if err != nil {
		return err.Error()
	}
	if c.Degraded != nil {
		if wrong := c.Degraded(); wrong != "" {
			return wrong
		}
	}
	return "ok"
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	s.writeProto(w, s.config.Status())
}

// certificates returns the certificates of the status alone.
func (s *Server) certificates(w http.ResponseWriter, _ *http.Request) {
	all := []json.RawMessage{}
	for _, one := range s.config.Status().GetCertificates() {
		body, err := protoJSON.Marshal(one)
		if err != nil {
			s.fail(w, err)
			return
		}
		all = append(all, body)
	}
	convention.WriteJSON(w, http.StatusOK, all)
}

func (s *Server) denials(w http.ResponseWriter, _ *http.Request) {
	convention.WriteJSON(w, http.StatusOK, s.config.Denials())
}

// Session is a session in the admin API. It never contains a token or its hash.
type Session struct {
	ID      string    `json:"id"`
	User    string    `json:"user"`
	Scopes  []string  `json:"scopes,omitempty"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	Ends    time.Time `json:"ends"`
	// LastSeen and LastAddress are the time and the client address of the last use, sampled once a
	// minute.
	LastSeen    time.Time `json:"last_seen,omitzero"`
	LastAddress string    `json:"last_address,omitempty"`
	// Address and UserAgent are those of the login.
	Address   string `json:"client_address,omitempty"`
	UserAgent string `json:"user_agent,omitempty"`
}

// NewSessions converts sessions for the admin API.
func NewSessions(sessions []*tokens.Session) []Session {
	shown := make([]Session, 0, len(sessions))
	for _, one := range sessions {
		shown = append(shown, Session{
			ID: one.ID, User: one.User, Scopes: one.Scopes, Issued: one.Issued, Expires: one.Expires, Ends: one.Ends,
			LastSeen: one.LastSeen, LastAddress: one.LastAddress, Address: one.ClientAddress, UserAgent: one.UserAgent,
		})
	}
	return shown
}

func (s *Server) sessions(w http.ResponseWriter, r *http.Request) {
	found, err := s.config.Sessions.Sessions(r.Context(), r.PathValue("user"))
	if err != nil {
		s.fail(w, err)
		return
	}
	convention.WriteJSON(w, http.StatusOK, NewSessions(found))
}

func (s *Server) revokeUser(w http.ResponseWriter, r *http.Request) {
	ended, err := s.config.Sessions.RevokeUser(r.Context(), r.PathValue("user"))
	if err != nil {
		s.fail(w, err)
		return
	}
	s.config.Logger.Info("sessions revoked", "user", r.PathValue("user"), "sessions", ended, "by", by(r), "client", r.RemoteAddr,
		convention.EventSessionEnded.Attr())
	convention.WriteJSON(w, http.StatusOK, map[string]int{"revoked": ended})
}

func (s *Server) revokeSession(w http.ResponseWriter, r *http.Request) {
	if err := s.config.Sessions.RevokeSession(r.Context(), "", r.PathValue("id")); err != nil {
		s.fail(w, err)
		return
	}
	s.config.Logger.Info("session revoked", "session", r.PathValue("id"), "by", by(r), "client", r.RemoteAddr,
		convention.EventSessionEnded.Attr())
	convention.WriteJSON(w, http.StatusOK, map[string]int{"revoked": 1})
}

// fail maps an error to a response. All errors pass through it.
func (s *Server) fail(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		writeError(w, http.StatusNotFound, "no such session")
	case errors.Is(err, tokens.ErrUnavailable):
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusServiceUnavailable, "the token store is out of reach; try again")
	default:
		s.config.Logger.Error("answering on the admin address", "error", err)
		writeError(w, http.StatusInternalServerError, "internal error; see Gatepost's log")
	}
}

// protoJSON is the form of messages in the API: names as in the schema, and each field.
var protoJSON = protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}

func (s *Server) writeProto(w http.ResponseWriter, m proto.Message) {
	body, err := protoJSON.Marshal(m)
	if err != nil {
		s.fail(w, err)
		return
	}
	convention.WriteJSON(w, http.StatusOK, json.RawMessage(body))
}
