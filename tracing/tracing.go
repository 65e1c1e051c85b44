// Package tracing decides whether requests are traced, and makes Gatepost's spans.
//
// Envoy begins each trace and decides whether it is sampled. Gatepost adds spans below Envoy's, and only to sampled
// requests. No span has a token, a query or a user.
package tracing

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"gatepost/regularfile"
)

// scope is the name of Gatepost's instrumentation.
const scope = "gatepost"

// flushTimeout is how long the last spans may take at shutdown.
const flushTimeout = 2 * time.Second

// Tracer makes the first span of a call from Envoy. A nil Tracer makes none. It is safe for concurrent use.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// Config is what a [Tracer] needs.
type Config struct {
	// Settings name the collector. Nil: requests are not traced.
	Settings *Settings
	// Version is the version of this program, which each span has.
	Version string
	// Logger gets a warning, at most once a minute, if spans cannot be sent. Nil: nothing is logged.
	Logger *slog.Logger
}

// New returns a Tracer that sends spans to the collector of the settings, or nil without settings. A collector that
// cannot be reached delays nothing.
func New(ctx context.Context, config Config) (*Tracer, error) {
	s, logger := config.Settings, cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	if s == nil {
		return nil, nil
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpointURL(s.Endpoint())}
	if s.TLS {
		config, err := s.tlsConfig()
		if err != nil {
			return nil, err
		}
		options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(config)))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("making the exporter of spans: %w", err)
	}
	about, err := resource.New(ctx, resource.WithFromEnv(), resource.WithHost(), resource.WithAttributes(
		attribute.String("service.name", s.Service), attribute.String("service.version", config.Version)))
	if err != nil {
		return nil, fmt.Errorf("describing the source of spans: %w", err)
	}
	once := rate.Sometimes{Interval: time.Minute}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		once.Do(func() { logger.Warn("spans could not be sent", "error", err) })
	}))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	return &Tracer{provider: provider, tracer: provider.Tracer(scope)}, nil
}

func (s *Settings) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile == "" {
		return config, nil
	}
	roots, err := regularfile.Read(s.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the roots that verify the collector of spans: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("reading the roots that verify the collector of spans: %s has no certificate", s.CAFile)
	}
	return config, nil
}

// Close sends the last spans, for at most two seconds.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	return t.provider.Shutdown(ctx)
}

// The headers of a trace (W3C Trace Context).
const (
	headerParent = "traceparent"
	headerState  = "tracestate"
)

var traceContext = propagation.TraceContext{}

// FromMetadata begins a span of a gRPC call below that of Envoy. If Envoy does not trace the call, the context is the
// same, and the span does nothing. The caller must end the span.
func (t *Tracer) FromMetadata(ctx context.Context, name string) (context.Context, trace.Span) {
	if t == nil {
		return ctx, noop.Span{}
	}
	carrier := propagation.MapCarrier{}
	for _, header := range []string{headerParent, headerState} {
		if values := metadata.ValueFromIncomingContext(ctx, header); len(values) == 1 {
			carrier.Set(header, values[0])
		}
	}
	return t.below(traceContext.Extract(ctx, carrier), ctx, name)
}

// FromRequest is FromMetadata for an HTTP request. It returns the request with the span's context.
func (t *Tracer) FromRequest(r *http.Request, name string) (*http.Request, trace.Span) {
	if t == nil {
		return r, noop.Span{}
	}
	ctx, span := t.below(traceContext.Extract(r.Context(), propagation.HeaderCarrier(r.Header)), r.Context(), name)
	if !span.IsRecording() {
		return r, span
	}
	return r.WithContext(ctx), span
}

func (t *Tracer) below(parent, ctx context.Context, name string) (context.Context, trace.Span) {
	if !trace.SpanContextFromContext(parent).IsSampled() {
		return ctx, noop.Span{}
	}
	return t.tracer.Start(parent, name, trace.WithSpanKind(trace.SpanKindServer))
}

// Start begins a span of a call to another system, below the span of ctx. If that does nothing, so does this one. The
// caller must end it.
func Start(ctx context.Context, name string, attributes ...attribute.KeyValue) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, noop.Span{}
	}
	return parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
}

// Inject makes the receiver of a request continue the trace of ctx, if there is one.
func Inject(ctx context.Context, header http.Header) {
	if trace.SpanFromContext(ctx).IsRecording() {
		traceContext.Inject(ctx, propagation.HeaderCarrier(header))
	}
}
