package tracing

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Settings are where spans go, and which share of the requests has some.
type Settings struct {
	// Host and Port are the address of the collector, which takes OTLP over gRPC. TLS is whether it is reached by TLS.
	Host string
	Port uint16
	TLS  bool
	// CAFile is the file of the roots that verify the collector. Empty: the system's.
	CAFile string
	// Service is the name of Gatepost in spans.
	Service string
	// Sample is the share of requests that are traced, if a client is not believed: from 0 to 1.
	Sample float64
}

// Endpoint returns the address of the collector as a URL without a path.
func (s *Settings) Endpoint() string {
	scheme := "http"
	if s.TLS {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port)))
}

// defaultPort is that of OTLP over gRPC.
const defaultPort = 4317

// FromEnvironment reads the standard variables (OpenTelemetry specification, "Environment Variable Specification" and
// "OpenTelemetry Protocol Exporter"). It returns nil if no endpoint is set, or if tracing is turned off. Envoy must
// be able to do the same, so what it cannot do is an error.
func FromEnvironment(getenv func(string) string) (*Settings, error) {
	ofTraces := func(name string) (value, from string) {
		specific := "OTEL_EXPORTER_OTLP_TRACES_" + name
		if value = getenv(specific); value != "" {
			return value, specific
		}
		return getenv("OTEL_EXPORTER_OTLP_" + name), "OTEL_EXPORTER_OTLP_" + name
	}
	endpoint, from := ofTraces("ENDPOINT")
	if endpoint == "" || strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") || getenv("OTEL_TRACES_EXPORTER") == "none" {
		return nil, nil
	}
	if exporter := getenv("OTEL_TRACES_EXPORTER"); exporter != "" && exporter != "otlp" {
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER=%s: write otlp or none", exporter)
	}
	if protocol, from := ofTraces("PROTOCOL"); protocol != "" && protocol != "grpc" {
		return nil, fmt.Errorf("%s=%s: write grpc, which the port %d of a collector takes", from, protocol, defaultPort)
	}
	for _, name := range []string{"HEADERS", "CLIENT_KEY", "CLIENT_CERTIFICATE"} {
		if value, from := ofTraces(name); value != "" {
			return nil, fmt.Errorf("%s: a secret would be in the configuration of Envoy; send spans to a collector that adds it", from)
		}
	}
	s := &Settings{Service: cmp.Or(getenv("OTEL_SERVICE_NAME"), "gatepost")}
	if err := s.setEndpoint(endpoint); err != nil {
		return nil, fmt.Errorf("%s=%s: %w", from, endpoint, err)
	}
	s.CAFile, _ = ofTraces("CERTIFICATE")
	var err error
	s.Sample, err = sample(getenv("OTEL_TRACES_SAMPLER"), getenv("OTEL_TRACES_SAMPLER_ARG"))
	return s, err
}

func (s *Settings) setEndpoint(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("write http://HOST:%d, or https:// for TLS", defaultPort)
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), strconv.Itoa(defaultPort)), 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%q is no port", u.Port())
	}
	s.Host, s.Port, s.TLS = u.Hostname(), uint16(port), u.Scheme == "https"
	return nil
}

// sample returns the share of requests that a sampler chooses. That a sampler is based on the parent has no effect:
// tracing.trust_incoming of the definitions says whose parent counts.
func sample(sampler, arg string) (float64, error) {
	switch strings.TrimPrefix(sampler, "parentbased_") {
	case "", "always_on":
		return 1, nil
	case "always_off":
		return 0, nil
	case "traceidratio":
		share, err := strconv.ParseFloat(cmp.Or(arg, "1"), 64)
		if err != nil || !(share >= 0 && share <= 1) {
			return 0, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG=%s: write a number from 0 to 1", arg)
		}
		return share, nil
	}
	return 0, fmt.Errorf("OTEL_TRACES_SAMPLER=%s: write always_on, always_off or traceidratio", sampler)
}
