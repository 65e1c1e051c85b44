// Package endpoint decides what comes of a request under the token path: who gets a token, and what the principal
// of one may do with it (revoke, refresh, introspect, list and end sessions). It is the HTTP handler that Envoy reaches
// for these paths, under their canonical names whatever the definitions call them.
//
// It is meant for a private address that only Envoy reaches: it takes the client's address from headers that
// Envoy writes, and leaves origins and CORS to Envoy. The server around it sets the time-outs for reading a request.
package endpoint

import (
	"context"
	"log/slog"
	"net/http"
	"path"
	"time"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/tokens"
	"gatepost/tokens/shield"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a Handler is made of.
type Config struct {
	// Store keeps the sessions. Required.
	Store tokens.Store
	// Settings returns the settings of the definitions that are being served. It is called for each request
	// and may return others each time; what it returned is not changed. Nil, or a nil answer: there is no login. Required.
	Settings func() *definitions.Tokens
	// Shield says which logins may be put to the user service; nil: one that counts in memory alone.
	Shield *shield.Shield
	// Logger gets one line per login; nil: [slog.Default].
	Logger *slog.Logger
	// Metrics is where the counters are registered; nil: nowhere.
	Metrics prometheus.Registerer
	// Now is the clock; nil: [time.Now].
	Now func() time.Time
	// StoreTimeout bounds each call of the store; 0: 5s. A revoke may have to wait out a lease of 1s in it.
	StoreTimeout time.Duration
}

// Handler answers the requests under the token path. It is safe for use by many goroutines.
type Handler struct {
	config    Config
	mux       http.ServeMux
	transport *http.Transport
	metrics   *metrics
}

// New returns the handler. It panics where its metrics are registered already.
func New(c Config) *Handler {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.StoreTimeout <= 0 {
		c.StoreTimeout = 5 * time.Second
	}
	if c.Shield == nil {
		c.Shield = shield.New(shield.Config{Logger: c.Logger, Now: c.Now})
	}
	h := &Handler{config: c, transport: newTransport(), metrics: newMetrics(c.Metrics)}
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
	return h
}

// Close closes the idle connections to the user service.
func (h *Handler) Close() { h.transport.CloseIdleConnections() }

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p := r.URL.Path; p == "" || path.Clean(p) != p { // ServeMux would redirect, to a path that clients do not know
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

// handle registers a path. ServeMux's own patterns with a method would answer HEAD as GET, and 405 in text.
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

// storeContext bounds a call of the store. A client that hangs up does not undo half of what it asked for.
func (h *Handler) storeContext(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.Context()), h.config.StoreTimeout)
}
