// Package panics decides what is reported of a panic: what kind it was and where it happened, and nothing of the data that
// was worked on.
package panics

import (
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
)

// Text describes a recovered value. A runtime error is quoted; of other values only the type is given, because their text
// may hold a secret.
func Text(p any) string {
	if err, ok := p.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("a value of type %T", p)
}

// maxFrames bounds a stack.
const maxFrames = 64

// Stack returns the calls that led to the panic, the innermost first, one on a line. It is to be called by the deferred
// function that recovers. Unlike [runtime/debug.Stack] it has no arguments of calls, which can be parts of secrets.
func Stack() string {
	callers := make([]uintptr, maxFrames)
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers)])
	var lines []string
	for more := true; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		if frame.Function == "runtime.gopanic" {
			lines = nil // those before are of the recovery
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %s:%d", frame.Function, filepath.Base(frame.File), frame.Line))
	}
	for len(lines) > 1 && strings.HasPrefix(lines[0], "runtime.") { // the runtime's own way to the panic
		lines = lines[1:]
	}
	return strings.Join(lines, "\n")
}

// Handler returns next with its panics logged once, counted, and answered with 500 and body, which is JSON. If the answer
// has begun, the connection is closed instead, so that no client takes half an answer for a whole one.
func Handler(next http.Handler, logger *slog.Logger, count func(), body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &answer{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler { // asks the server to close the connection
				panic(p)
			}
			count()
			id := r.Header.Get("X-Request-Id")
			logger.LogAttrs(r.Context(), slog.LevelError, "panic while a request was answered",
				slog.String("panic", Text(p)), slog.String("stack", Stack()),
				slog.String("method", r.Method), slog.String("route", r.Pattern), slog.String("request_id", id[:min(len(id), 128)]))
			if answer.begun {
				panic(http.ErrAbortHandler)
			}
			header := w.Header()
			clear(header) // a token may be in it
			header.Set("Content-Type", "application/json")
			header.Set("Cache-Control", "no-store")
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte(body)) // the client may be gone
		}()
		next.ServeHTTP(answer, r)
	})
}

// answer knows whether it has begun.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) WriteHeader(status int) {
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(data []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(data)
}

// Unwrap lets [http.ResponseController] reach the server's own writer.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
