package tracing

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Settings are where spans or log records go, and which share of the requests has spans.
type Settings struct {
	// Host and Port are the address of the collector, which takes OTLP over gRPC. TLS is whether it is reached by TLS.
	Host string
	Port uint16
	TLS  bool
	// CAFile is the file of the roots that verify the collector. Empty: the system's.
	CAFile string
	// Service is the name of Gatepost in spans and log records.
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

const (
	// DefaultPort is that of OTLP over gRPC.
	DefaultPort = 4317
	// DefaultService is the default of Settings.Service.
	DefaultService = "gatepost"
)

// Signal is what is sent to a collector: the part of the variables' names that is only about it.
type Signal string

// The signals of a gateway.
const (
	Traces Signal = "TRACES"
	Logs   Signal = "LOGS" // the access log
)

// FromEnvironment reads the standard variables (OpenTelemetry specification, "Environment Variable Specification" and
// "OpenTelemetry Protocol Exporter"). It returns nil if no endpoint is set, or if the signal is turned off. Envoy must
// be able to do the same, so what it cannot do is an error.
func FromEnvironment(getenv func(string) string, signal Signal) (*Settings, error) {
	ofSignal := func(name string) (value, from string) {
		specific := "OTEL_EXPORTER_OTLP_" + string(signal) + "_" + name
		if value = getenv(specific); value != "" {
			return value, specific
		}
		return getenv("OTEL_EXPORTER_OTLP_" + name), "OTEL_EXPORTER_OTLP_" + name
	}
	endpoint, from := ofSignal("ENDPOINT")
	exporter := "OTEL_" + string(signal) + "_EXPORTER"
	if endpoint == "" || strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") || getenv(exporter) == "none" {
		return nil, nil
	}
	if value := getenv(exporter); value != "" && value != "otlp" {
		return nil, fmt.Errorf("%s=%s: write otlp or none", exporter, value)
	}
	if protocol, from := ofSignal("PROTOCOL"); protocol != "" && protocol != "grpc" {
		return nil, fmt.Errorf("%s=%s: write grpc, which the port %d of a collector takes", from, protocol, DefaultPort)
	}
	for _, name := range []string{"HEADERS", "CLIENT_KEY", "CLIENT_CERTIFICATE"} {
		if value, from := ofSignal(name); value != "" {
			return nil, fmt.Errorf("%s: a secret would be in the configuration of Envoy; use a collector that adds it", from)
		}
	}
	s := &Settings{Service: cmp.Or(getenv("OTEL_SERVICE_NAME"), DefaultService)}
	if err := s.setEndpoint(endpoint); err != nil {
		return nil, fmt.Errorf("%s=%s: %w", from, endpoint, err)
	}
	s.CAFile, _ = ofSignal("CERTIFICATE")
	if signal == Logs {
		return s, nil
	}
	var err error
	s.Sample, err = sample(getenv("OTEL_TRACES_SAMPLER"), getenv("OTEL_TRACES_SAMPLER_ARG"))
	return s, err
}

func (s *Settings) setEndpoint(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("write http://HOST:%d, or https:// for TLS", DefaultPort)
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), strconv.Itoa(DefaultPort)), 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%q is no port", u.Port())
	}
	s.Host, s.Port, s.TLS = u.Hostname(), uint16(port), u.Scheme == "https"
	return nil
}

// sample returns the share of requests that a sampler chooses. That a sampler is based on the parent has no effect:
// tracing.trust_incoming of the definitions decides whose parent counts.
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
