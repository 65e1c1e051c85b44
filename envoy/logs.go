package envoy

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
)

// logFormat is how the child writes a log line: level, logger, message, escaped to one line.
const logFormat = "[%l][%n] %v"

// maxLogLine bounds what is kept of one line; the rest of it is lost.
const maxLogLine = 16 << 10

// logLevels maps Envoy's levels. Its info tells of each step of a start and of each update: for Gatepost that is debug.
var logLevels = map[string]slog.Level{
	"trace":    slog.LevelDebug,
	"debug":    slog.LevelDebug,
	"info":     slog.LevelDebug,
	"warning":  slog.LevelWarn,
	"error":    slog.LevelError,
	"critical": slog.LevelError,
}

// envoyLevel returns the level at which the child is to log, so that it writes no line that is thrown away.
func envoyLevel(log *slog.Logger) string {
	if log.Enabled(context.Background(), slog.LevelDebug) {
		return "info"
	}
	return "warning"
}

// logWriter forwards what a child writes to a logger, line by line.
type logWriter struct {
	log *slog.Logger

	mu   sync.Mutex
	rest []byte // the line that has not ended yet
}

func newLogWriter(log *slog.Logger) *logWriter { return &logWriter{log: log} }

// Write never fails: a child must not die of its log.
func (w *logWriter) Write(p []byte) (int, error) {
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

// Close forwards a last line that had no end.
func (w *logWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush()
	return nil
}

func (w *logWriter) flush() {
	level, logger, message := parseLine(string(w.rest))
	w.rest = w.rest[:0]
	if message != "" {
		w.log.Log(context.Background(), level, message, "from", "envoy", "logger", logger)
	}
}

// parseLine takes a line of logFormat apart. One in another form comes from before the child's logger or from
// below it (a crash, the dynamic linker), and is a warning.
func parseLine(line string) (level slog.Level, logger, message string) {
	line = strings.TrimSpace(line)
	if name, rest, ok := strings.Cut(strings.TrimPrefix(line, "["), "]["); ok {
		if level, known := logLevels[name]; known {
			logger, message, _ = strings.Cut(rest, "] ")
			return level, logger, strings.TrimSpace(message)
		}
	}
	return slog.LevelWarn, "", line
}
