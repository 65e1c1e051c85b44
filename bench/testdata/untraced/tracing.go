// Package tracing is, for the benchmark alone, Gatepost's package tracing without any code for spans. It shows what
// that code costs if traces are off.
package tracing

import (
	"context"
	"log/slog"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

type Tracer struct{}

type Config struct {
	Settings *Settings
	Version  string
	Logger   *slog.Logger
}

func New(context.Context, Config) (*Tracer, error) { return nil, nil }

func (*Tracer) Close() error { return nil }

func (*Tracer) FromMetadata(ctx context.Context, _ string) (context.Context, trace.Span) {
	return ctx, noop.Span{}
}

func (*Tracer) FromRequest(r *http.Request, _ string) (*http.Request, trace.Span) {
	return r, noop.Span{}
}

func Start(ctx context.Context, _ string, _ ...attribute.KeyValue) (context.Context, trace.Span) {
	return ctx, noop.Span{}
}

func Inject(context.Context, http.Header) {}
