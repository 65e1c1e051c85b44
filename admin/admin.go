// Package admin decides what an operator can see of a running Gatepost, and what he can end: health,
// readiness, metrics, what each Envoy has made of its configuration, and users' sessions.
//
// It is served on an address of its own that no client of the gateway reaches. It has no password, so that
// address is loopback unless the operator says otherwise. A browser on the operator's machine reaches loopback too:
// guard refuses every request of a page of another origin.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"gatepost/authz"
	"gatepost/convention"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"
	"gatepost/xds"
)

// checkTimeout bounds one readiness check.
const checkTimeout = 2 * time.Second

// Check is one thing that must hold before the gateway is ready.
type Check struct {
	// Name is what the check is called in the answer of /readyz.
	Name string
	// Ready returns nil where it holds, else what is missing.
	Ready func(context.Context) error
	// Degraded returns what is wrong although the gateway is ready; empty if nothing is. Nil: nothing ever is.
	Degraded func() string
}

// Sessions is the part of a store that looks up, lists and ends sessions.
type Sessions interface {
	Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error)
	Sessions(ctx context.Context, user string) ([]*tokens.Session, error)
	RevokeSession(ctx context.Context, user, id string) error
	RevokeUser(ctx context.Context, user string) (int, error)
}

// Config is what the admin address shows.
type Config struct {
	// Hosts are the names, without a port, that requests may have in Host beside IP addresses, localhost and
	// single-label names.
	Hosts []string
	// Checks must all hold for /readyz to answer 200.
	Checks []Check
	// Status returns what is served and by which Envoys.
	Status func() *gatewayv1.Status
	// Snapshot returns the Envoy configuration that is served; nil if there is none yet. Required.
	Snapshot func() *xds.Snapshot
	// Denials returns the last requests that did not pass, the newest first. Required.
	Denials func() []authz.Denial
	// Profiles also serves net/http/pprof under /debug/pprof/.
	Profiles bool
	// Sessions looks up, lists and ends sessions. Required.
	Sessions Sessions
	// Metrics is what /metrics shows. Required.
	Metrics prometheus.Gatherer
	// Logger takes one line for each change made here. Required.
	Logger *slog.Logger
}

// Server answers on the admin address. Its methods may be called at once from many goroutines.
type Server struct {
	config   Config
	draining atomic.Bool
	handler  http.Handler
}

// New returns a server for the configuration.
func New(config Config) *Server {
	s := &Server{config: config}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(config.Metrics, promhttp.HandlerOpts{}))
	api := http.NewServeMux()
	api.HandleFunc("GET /api/v1/status", s.status)
	api.HandleFunc("GET /api/v1/config", s.dumpConfig)
	api.HandleFunc("GET /api/v1/denials", s.denials)
	api.HandleFunc("GET /api/v1/users/{user}/sessions", s.sessions)
	api.HandleFunc("DELETE /api/v1/users/{user}/sessions", s.revokeUser)
	api.HandleFunc("DELETE /api/v1/sessions/{id}", s.revokeSession)
	api.HandleFunc("POST /api/v1/lookup", s.lookup)
	mux.Handle("/api/", notThroughEnvoy(api))
	if config.Profiles {
		mux.Handle("/debug/pprof/", notThroughEnvoy(profiles()))
	}
	s.handler = newGuard(config.Hosts, mux)
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Drain makes /readyz answer 503 from now on: Gatepost is about to end.
func (s *Server) Drain() { s.draining.Store(true) }

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	convention.WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// ready answers 200 where every check holds, else 503, and says of each how it stands.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	code, report := http.StatusOK, map[string]string{}
	if s.draining.Load() {
		code, report["draining"] = http.StatusServiceUnavailable, "the gateway is ending"
	}
	for _, check := range s.config.Checks {
		err := check.Ready(ctx)
		report[check.Name] = check.describe(err)
		if err != nil {
			code = http.StatusServiceUnavailable
		}
	}
	convention.WriteJSON(w, code, report)
}

// describe returns what /readyz reports of a check that returned err.
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
	writeProto(w, s.config.Status())
}

func (s *Server) denials(w http.ResponseWriter, _ *http.Request) {
	convention.WriteJSON(w, http.StatusOK, s.config.Denials())
}

// Session is a session as the admin API shows it; never a token or its hash.
type Session struct {
	ID      string    `json:"id"`
	User    string    `json:"user"`
	Scopes  []string  `json:"scopes,omitempty"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	Ends    time.Time `json:"ends"`
	// LastSeen and LastAddress are when and from where it was last used, as sampled once a minute.
	LastSeen    time.Time `json:"last_seen,omitzero"`
	LastAddress string    `json:"last_address,omitempty"`
	// Address and UserAgent are where the user logged in from.
	Address   string `json:"client_address,omitempty"`
	UserAgent string `json:"user_agent,omitempty"`
}

// Show returns sessions as the admin API shows them.
func Show(sessions []*tokens.Session) []Session {
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
	convention.WriteJSON(w, http.StatusOK, Show(found))
}

func (s *Server) revokeUser(w http.ResponseWriter, r *http.Request) {
	ended, err := s.config.Sessions.RevokeUser(r.Context(), r.PathValue("user"))
	if err != nil {
		s.fail(w, err)
		return
	}
	s.config.Logger.Info("sessions revoked", "user", r.PathValue("user"), "sessions", ended, "client", r.RemoteAddr)
	convention.WriteJSON(w, http.StatusOK, map[string]int{"revoked": ended})
}

func (s *Server) revokeSession(w http.ResponseWriter, r *http.Request) {
	if err := s.config.Sessions.RevokeSession(r.Context(), "", r.PathValue("id")); err != nil {
		s.fail(w, err)
		return
	}
	s.config.Logger.Info("session revoked", "session", r.PathValue("id"), "client", r.RemoteAddr)
	convention.WriteJSON(w, http.StatusOK, map[string]int{"revoked": 1})
}

// fail is the one place where an error becomes an answer.
func (s *Server) fail(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		convention.WriteJSON(w, http.StatusNotFound, map[string]string{"error": "no such session"})
	case errors.Is(err, tokens.ErrUnavailable):
		w.Header().Set("Retry-After", "1")
		convention.WriteJSON(w, http.StatusServiceUnavailable, map[string]string{"error": "the token store is out of reach; try again"})
	default:
		s.config.Logger.Error("answering on the admin address", "error", err)
		convention.WriteJSON(w, http.StatusInternalServerError, map[string]string{"error": "internal error; see Gatepost's log"})
	}
}

func writeProto(w http.ResponseWriter, m proto.Message) {
	body, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		convention.WriteJSON(w, http.StatusInternalServerError, map[string]string{"error": "internal error; see Gatepost's log"})
		return
	}
	convention.WriteJSON(w, http.StatusOK, json.RawMessage(body))
}
