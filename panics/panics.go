// Package panics decides how a panic is reported: its type and its stack, but none of the data that
// was processed.
package panics

import (
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"

	"gatepost/convention"
)

// Text describes a recovered value. It quotes runtime errors; for other values it returns only the
// type, because their text may contain a secret.
func Text(p any) string {
	if err, ok := p.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("a value of type %T", p)
}

// maxFrames limits the length of a stack.
const maxFrames = 64

// Stack returns the call stack of the panic, one call per line, the innermost first. It must be
// called by the deferred function that recovers. Unlike [runtime/debug.Stack], it omits the
// arguments of calls, which can be parts of secrets.
func Stack() string {
	callers := make([]uintptr, maxFrames)
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers)])
	var lines []string
	for more := true; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		if frame.Function == "runtime.gopanic" {
			lines = nil // drop the frames of the recovery
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %s:%d", frame.Function, filepath.Base(frame.File), frame.Line))
	}
	for len(lines) > 1 && strings.HasPrefix(lines[0], "runtime.") { // the runtime's own frames
		lines = lines[1:]
	}
	return strings.Join(lines, "\n")
}

// Handler wraps next. A panic of next is logged once, counted, and answered with 500 and body,
// which is JSON. If the response has already started, the connection is closed instead, so that the
// client does not take a partial response for a complete one.
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
			id := r.Header.Get(convention.HeaderRequestID)
			logger.LogAttrs(r.Context(), slog.LevelError, "panic while a request was answered",
				slog.String("panic", Text(p)), slog.String("stack", Stack()),
				slog.String("method", r.Method), slog.String("route", r.Pattern), slog.String("request_id", id[:min(len(id), 128)]))
			if answer.begun {
				panic(http.ErrAbortHandler)
			}
			clear(w.Header()) // it may contain a token
			convention.WriteJSONText(w, http.StatusInternalServerError, []byte(body))
		}()
		next.ServeHTTP(answer, r)
	})
}

// answer tracks whether the response has started.
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
