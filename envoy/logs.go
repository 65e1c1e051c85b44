package envoy

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// logFormat makes the child log the level, logger and message, escaped to one line.
const logFormat = "[%l][%n] %v"

// maxLogLine is the length to which log lines are cut.
const maxLogLine = 16 << 10

// logLevels maps Envoy's levels. Envoy's info reports each step of a start and each update, which
// is debug for Gatepost.
var logLevels = map[string]slog.Level{
	"trace":    slog.LevelDebug,
	"debug":    slog.LevelDebug,
	"info":     slog.LevelDebug,
	"warning":  slog.LevelWarn,
	"error":    slog.LevelError,
	"critical": slog.LevelError,
}

// byDesign are parts of lines that nobody could act on, so they are logged at the level debug:
//   - A warning about configuration that Gatepost makes on purpose: the buckets of rate limits are in the routes
//     (package xds). It would come with each change of a service with rate limits.
//   - An error for each body above max_request_bytes, with or without a length. Clients could fill the log with
//     them, and the access log has these requests.
var byDesign = []string{"is set but only used by route configuration", "content length exceeds maximum (", "request size exceeds maximum ("}

// envoyLevel returns the log level for the child, so that it does not write lines that would be
// dropped.
func envoyLevel(log *slog.Logger) string {
	if log.Enabled(context.Background(), slog.LevelDebug) {
		return "info"
	}
	return "warning"
}

// lineWriter passes the output of a child to a function, line by line.
type lineWriter struct {
	line func(line []byte) // without its end; it must not keep the bytes

	mu   sync.Mutex
	rest []byte // the incomplete last line
}

// crashLogger is Envoy's logger of crashes. Lines without a logger after its own show the request at hand: its headers,
// and the bytes that its connection has received.
const crashLogger = "backtrace"

// newLogWriter returns a writer that forwards lines to a logger. Of a crash it leaves out what has clients' tokens.
func newLogWriter(log *slog.Logger) *lineWriter {
	crashed := false
	return &lineWriter{line: func(line []byte) {
		level, logger, message := parseLine(string(line))
		crashed = crashed || logger == crashLogger
		if message != "" && !(crashed && logger == "") {
			log.Log(context.Background(), level, message, "from", "envoy", "logger", logger)
		}
	}}
}

// newAccessLogWriter returns a writer that forwards whole lines to out, each by one Write: a queue that is full then
// drops lines, never parts of lines.
func newAccessLogWriter(out io.Writer) *lineWriter {
	return &lineWriter{line: func(line []byte) { _, _ = out.Write(append(line, '\n')) }}
}

// Write never returns an error, so that logging cannot stop the child.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte{'\n'})
		w.rest = append(w.rest, line[:min(len(line), maxLogLine-len(w.rest))]...)
		if whole {
			w.flush()
		}
		rest = after
	}
	return len(p), nil
}

// Close forwards an incomplete last line.
func (w *lineWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush()
	return nil
}

func (w *lineWriter) flush() {
	w.line(w.rest)
	w.rest = w.rest[:0]
}

// parseLine parses a line of logFormat. A line in another form is logged as a warning: it was
// written before the logger was set up, by a crash, or by the dynamic linker.
func parseLine(line string) (level slog.Level, logger, message string) {
	line = strings.TrimSpace(line)
	if name, rest, ok := strings.Cut(strings.TrimPrefix(line, "["), "]["); ok {
		if level, known := logLevels[name]; known {
			logger, message, _ = strings.Cut(rest, "] ")
			if slices.ContainsFunc(byDesign, func(part string) bool { return strings.Contains(message, part) }) {
				level = slog.LevelDebug
			}
			return level, logger, strings.TrimSpace(message)
		}
	}
	return slog.LevelWarn, "", line
}
