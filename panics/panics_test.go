package panics

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const secret = "8fa5e23a-b272-40b0-8a36-974384357fa6"

func crash(key []byte, password string) { key[len(password)+100] = 1 }

// handler panics in several ways.
func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/token/{id}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Token", secret)
		crash([]byte(secret), secret)
	})
	mux.HandleFunc("/value", func(http.ResponseWriter, *http.Request) { panic("token " + secret) })
	mux.HandleFunc("/begun", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		crash(nil, "")
	})
	mux.HandleFunc("/abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	return mux
}

func TestPanicIsLoggedOnceCountedAndAnsweredWith500(t *testing.T) {
	for _, c := range []struct {
		path     string
		answered bool
		logged   string
	}{
		{"/token/" + secret + "?token=" + secret, true, "index out of range [136] with length 36"},
		{"/value", true, "a value of type string"},
		{"/begun", false, "index out of range [100] with length 0"},
		{"/abort", false, ""},
	} {
		var log strings.Builder
		counted := 0
		server := httptest.NewServer(Handler(handler(), slog.New(slog.NewTextHandler(&log, nil)), func() { counted++ }, `"failed"`))
		r, _ := http.NewRequest("POST", server.URL+c.path, strings.NewReader(secret)) // a POST: the client sends it once
		r.Header.Set("Authorization", secret)
		response, err := http.DefaultClient.Do(r)
		if c.answered != (err == nil) {
			t.Fatalf("%s: %v", c.path, err)
		}
		if err == nil {
			body, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode != 500 || string(body) != `"failed"` || response.Header.Get("Token") != "" ||
				response.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: got %d %s %v", c.path, response.StatusCode, body, response.Header)
			}
		}
		server.Close()
		want := 1
		if c.logged == "" {
			want = 0
		}
		if counted != want || strings.Count(log.String(), "level=ERROR") != want {
			t.Errorf("%s: %d counted, the log is %s", c.path, counted, &log)
		}
		if !strings.Contains(log.String(), c.logged) || strings.Contains(log.String(), secret) {
			t.Errorf("%s: the log is %s", c.path, &log)
		}
		if strings.HasPrefix(c.logged, "index") && !strings.Contains(log.String(), `stack="gatepost/panics.crash panics_test.go:`) {
			t.Errorf("%s: the stack does not start at the panic: %s", c.path, &log)
		}
	}
}
