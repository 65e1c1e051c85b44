package gateway

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"gatepost/admin"
	"gatepost/tokens"
	"gatepost/tokens/endpoint"
)

// A socket is shared with another user's Envoy only in a folder that passes on its group
// (set-group-ID).
func TestTheGroupMayConnectToASocketInASharedFolder(t *testing.T) {
	for name, c := range map[string]struct{ folder, socket os.FileMode }{
		"a private folder": {0o700, 0o600},
		"an open folder":   {0o777, 0o600},
		"a shared folder":  {os.ModeSetgid | 0o750, 0o660},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, c.folder); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "grpc.sock")
			listener, err := listen("unix:" + path)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != c.socket {
				t.Errorf("the socket has mode %v, want %v", got, c.socket)
			}
		})
	}
}

// A socket is replaced if nobody listens on it: a killed Gatepost leaves it. Otherwise it stays, as other files do.
func TestOnlyASocketWithoutAListenerIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grpc.sock")
	first, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	if _, err := listen("unix:" + path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the socket of another process: %v", err)
	}
	first.Close()
	second, err := listen("unix:" + path)
	if err != nil {
		t.Fatalf("the socket of a killed process: %v", err)
	}
	second.Close()
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen("unix:" + path); err == nil {
		t.Error("another file was replaced")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "kept" {
		t.Errorf("the other file has %q, %v", text, err)
	}
}

// No methods: each call of this store is a nil pointer dereference.
type noStore struct{ tokens.Store }

func TestAPanicInAHandlerIsLoggedCountedAndAnswered500(t *testing.T) {
	const token = "8fa5e23a-b272-40b0-8a36-974384357fa6"
	for name, c := range map[string]struct {
		handler            func(*slog.Logger) http.Handler
		method, path, body string
	}{
		"token": {func(l *slog.Logger) http.Handler {
			h, _ := endpoint.New(endpoint.Config{Store: noStore{}, Logger: l})
			return h
		}, http.MethodPost, "/token/revoke", tokenPanicked},
		"admin": {func(l *slog.Logger) http.Handler {
			h, _ := admin.New(admin.Config{Local: true, Sessions: noStore{}, Metrics: prometheus.NewRegistry(), Logger: l})
			return h
		}, http.MethodGet, "/api/v1/users/ann/sessions", adminPanicked},
	} {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			logger := slog.New(slog.NewTextHandler(&log, nil))
			panicked := newProcessMetrics(prometheus.NewRegistry(), nil).panics.WithLabelValues(name)
			server := httptest.NewUnstartedServer(nil)
			server.Config = newHTTPServer(c.handler(logger), logger, panicked, c.body)
			server.Start()
			for range 2 { // it goes on serving
				r, _ := http.NewRequest(c.method, server.URL+c.path, nil)
				if name == "token" {
					r.Header.Set("Authorization", "Bearer "+token)
				}
				response, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if response.StatusCode != http.StatusInternalServerError || string(body) != c.body {
					t.Errorf("answered %d %s", response.StatusCode, body)
				}
			}
			server.Close()
			if n := testutil.ToFloat64(panicked); n != 2 {
				t.Errorf("%v counted", n)
			}
			if strings.Count(log.String(), "\n") != 2 || strings.Count(log.String(), "nil pointer dereference") != 2 ||
				!strings.Contains(log.String(), "servers_test.go") && !strings.Contains(log.String(), "noStore") || strings.Contains(log.String(), token) {
				t.Errorf("the log is %s", &log)
			}
		})
	}
}

func TestWhatTheHTTPServerReportsIsLogged(t *testing.T) {
	var log strings.Builder
	server := httptest.NewUnstartedServer(nil)
	server.Config = newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.WriteHeader(http.StatusOK)
	}), slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewCounter(prometheus.CounterOpts{}), "")
	server.Start()
	response, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	server.Close()
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "superfluous") {
		t.Errorf("the log is %q", &log)
	}
}

func TestDroppedLogLinesAreAMetric(t *testing.T) {
	registry := prometheus.NewRegistry()
	newProcessMetrics(registry, func() uint64 { return 3 })
	const want = `
# HELP gatepost_log_lines_dropped_total Log lines that were not written, because standard error was not read fast enough or failed.
# TYPE gatepost_log_lines_dropped_total counter
gatepost_log_lines_dropped_total 3
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "gatepost_log_lines_dropped_total"); err != nil {
		t.Error(err)
	}
}

// Beginners start a second gateway on the default address.
func TestATakenAddressIsAnErrorWithItsFlagAndARemedy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	g := &Gateway{config: Config{GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Admin: taken.Addr().String()}}
	_, err = g.listenAll()
	want := "listening for operators (--admin) on " + taken.Addr().String() + ": another process does already; stop it, or choose another address"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
