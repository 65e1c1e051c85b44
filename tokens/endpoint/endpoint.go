// Package endpoint decides the response to requests under the token path: who gets a token, and
// what its owner may do with it (revoke, refresh, introspect, list and end sessions). It is the
// HTTP handler that Envoy calls for these paths, always under their canonical names.
//
// It must listen on a private address that only Envoy reaches, because it reads the client's
// address from headers that Envoy writes. Envoy checks origins and CORS. The server around the
// handler sets the timeouts for reading a request.
package endpoint

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"path"
	"time"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/logqueue"
	"gatepost/tokens"
	"gatepost/tokens/shield"
	"gatepost/tracing"

	"github.com/prometheus/client_golang/prometheus"
)

// Config configures a Handler.
type Config struct {
	// Store keeps the sessions. Required.
	Store tokens.Store
	// Settings returns the settings of the served definitions. It is called for each request and
	// may return another value each time; returned values must not change. If Settings or its
	// result is nil, logins are refused.
	Settings func() *definitions.Tokens
	// Shield decides which logins reach the user service; nil: one that counts in memory only.
	Shield *shield.Shield
	// Logger logs one line per login that the user service was asked about, and a bounded number of others. Nil: nothing
	// is logged.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer
	// Tracer makes the spans of logins and calls; nil: there are none.
	Tracer *tracing.Tracer
	// Now is the clock. Nil: [time.Now].
	Now func() time.Time
	// StoreTimeout bounds each call of the store; 0: 5s. A revoke may wait for a lease of 1s.
	StoreTimeout time.Duration
}

// Handler serves the requests under the token path. It is safe for concurrent use.
type Handler struct {
	config    Config
	mux       http.ServeMux
	transport *http.Transport
	metrics   *metrics
	// Each has a limit of its own, or a flood of the one would hide the other, such as a token that is reused.
	loginLines, callLines logqueue.Limit
}

// New returns the handler. It fails if a metric of one of its names is already registered.
func New(c Config) (*Handler, error) {
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.StoreTimeout <= 0 {
		c.StoreTimeout = 5 * time.Second
	}
	var err error
	if c.Shield == nil {
		if c.Shield, err = shield.New(shield.Config{Logger: c.Logger, Now: c.Now}); err != nil {
			return nil, err
		}
	}
	metrics, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	h := &Handler{config: c, transport: newTransport(), metrics: metrics}
	h.handle(convention.PathLogin, methods{{http.MethodPost, h.login}})
	h.handle(convention.PathRevoke, methods{{http.MethodPost, h.call("revoke", h.revoke)}})
	h.handle(convention.PathRefresh, methods{{http.MethodPost, h.call("refresh", h.refresh)}})
	h.handle(convention.PathIntrospect, methods{{http.MethodPost, h.call("introspect", h.introspect)}})
	h.handle(convention.PathSessions, methods{
		{http.MethodGet, h.call("sessions", h.sessions)},
		{http.MethodDelete, h.call("end_sessions", h.endSessions)},
	})
	h.handle(convention.PathSessions+"/{id}", methods{{http.MethodDelete, h.call("end_session", h.endSession)}})
	h.handle("/", nil)
	return h, nil
}

// Close closes the idle connections to the user service.
func (h *Handler) Close() { h.transport.CloseIdleConnections() }

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// ServeMux would redirect to a path unknown to clients
	if p := r.URL.Path; p == "" || path.Clean(p) != p {
		notFound(w)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// methods are the methods of one path, in the order in which Allow lists them.
type methods []struct {
	name    string
	handler http.HandlerFunc
}

// handle registers a path. ServeMux patterns with a method would treat HEAD as GET and answer 405
// as plain text.
func (h *Handler) handle(pattern string, ms methods) {
	h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if len(ms) == 0 {
			notFound(w)
			return
		}
		for _, m := range ms {
			if m.name == r.Method {
				m.handler(w, r)
				return
			}
		}
		methodNotAllowed(w, ms)
	})
}

func (h *Handler) settings() *definitions.Tokens {
	if h.config.Settings == nil {
		return nil
	}
	return h.config.Settings()
}

// storeContext bounds a call of the store. It ignores a disconnect of the client, so a call is not
// left half done.
func (h *Handler) storeContext(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.Context()), h.config.StoreTimeout)
}
