package endpoint

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatepost/definitions"
	"gatepost/tokens"
)

// nullStore is a store that does nothing.
type nullStore struct{ tokens.Store }

func (nullStore) Create(context.Context, *tokens.Session, int) error { return nil }

// sink is a ResponseWriter that discards the body.
type sink struct {
	header http.Header
	status int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkLogin measures a login over loopback with a user service that answers at once and a
// store that does nothing. The cost of the gateway is the difference to BenchmarkUserService, which
// only sends the same request to the same user service.
func BenchmarkLogin(b *testing.B) {
	for name, field := range map[string]string{"by address": "", "by user": "username"} {
		b.Run(name, func(b *testing.B) {
			h, body := newBenchHandler(b, field)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					w := &sink{header: make(http.Header, 16)}
					h.ServeHTTP(w, loginRequest(body))
					if w.status != 200 {
						b.Errorf("answered %d", w.status)
						return
					}
				}
			})
		})
	}
}

func BenchmarkUserService(b *testing.B) {
	h, body := newBenchHandler(b, "")
	target := h.settings().Authenticator.URL
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			r := loginRequest(body)
			r.URL = target
			r.RequestURI = ""
			response, err := h.transport.RoundTrip(r)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
	})
}

func loginRequest(body string) *http.Request {
	r, _ := http.NewRequest("POST", "/token", strings.NewReader(body))
	r.Header = http.Header{
		"Content-Type": {"application/json"}, "X-Forwarded-For": {"192.0.2.1"}, "User-Agent": {"bench"},
		"X-Request-Id": {"7a1f7f3e-7c4a-4b7e-9d0b-0d2a0f2b1c11"},
	}
	return r
}

func newBenchHandler(b *testing.B, field string) (*Handler, string) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header()["Userid"] = []string{"ann"}
		_, _ = io.WriteString(w, `{"name":"Ann"}`)
	}))
	target, err := url.Parse(server.URL)
	if err != nil {
		b.Fatal(err)
	}
	set := defaultShield(b)
	set.User.Failures = 1 << 20 // one user logs in many times concurrently
	settings := &definitions.Tokens{
		Lifetime: time.Hour, SessionLifetime: time.Hour, Format: string(tokens.FormatUUID), Shield: set,
		Authenticator: &definitions.Authenticator{URL: target, Timeout: 5 * time.Second, UserHeader: "userid", ScopesHeader: "scopes", UserField: field},
	}
	h := newHandler(b, Config{
		Store: nullStore{}, Settings: func() *definitions.Tokens { return settings },
		Logger: slog.New(slog.NewJSONHandler(io.Discard, nil)),
	})
	b.Cleanup(func() { h.Close(); server.Close() })
	return h, `{"username":"ann","password":"secret"}`
}
