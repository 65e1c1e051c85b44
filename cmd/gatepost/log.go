package main

import (
	"context"
	"log/slog"

	"gatepost/convention"
)

// explainedErrors adds to each error the page that explains it, unless the record names one. Errors of Envoy's own log
// have none.
type explainedErrors struct{ slog.Handler }

func (h explainedErrors) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError && !has(r, "see") && !has(r, "from") {
		r.AddAttrs(slog.String("see", convention.SectionLogEvents.String()))
	}
	return h.Handler.Handle(ctx, r)
}

func has(r slog.Record, key string) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == key
		return !found
	})
	return found
}

func (h explainedErrors) WithAttrs(attrs []slog.Attr) slog.Handler {
	return explainedErrors{h.Handler.WithAttrs(attrs)}
}

func (h explainedErrors) WithGroup(name string) slog.Handler {
	return explainedErrors{h.Handler.WithGroup(name)}
}
