package tracing

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSettingsComeFromTheStandardVariables(t *testing.T) {
	t.Parallel()
	type env = map[string]string
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for name, row := range map[string]struct {
		env  env
		want *Settings
		err  string
	}{
		"none":        {nil, nil, ""},
		"turned off":  {env{endpoint: "http://c:4317", "OTEL_SDK_DISABLED": "true"}, nil, ""},
		"no exporter": {env{endpoint: "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, nil, ""},
		"an endpoint": {env{endpoint: "http://c"}, &Settings{Host: "c", Port: 4317, Service: "gatepost", Sample: 1}, ""},
		"all": {env{
			endpoint: "http://other:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://[::1]:4318/", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
			"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_SERVICE_NAME": "edge", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25",
		}, &Settings{Host: "::1", Port: 4318, TLS: true, CAFile: "/ca.pem", Service: "edge", Sample: 0.25}, ""},
		"no scheme":      {env{endpoint: "c:4317"}, nil, "OTEL_EXPORTER_OTLP_ENDPOINT=c:4317: write http://HOST:4317, or https:// for TLS"},
		"http":           {env{endpoint: "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, nil, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf: write grpc, which the port 4317 of a collector takes"},
		"a secret":       {env{endpoint: "http://c", "OTEL_EXPORTER_OTLP_HEADERS": "k=secret"}, nil, "OTEL_EXPORTER_OTLP_HEADERS: a secret would be in the configuration of Envoy; use a collector that adds it"},
		"a sampler":      {env{endpoint: "http://c", "OTEL_TRACES_SAMPLER": "jaeger_remote"}, nil, "OTEL_TRACES_SAMPLER=jaeger_remote: write always_on, always_off or traceidratio"},
		"a share":        {env{endpoint: "http://c", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "25"}, nil, "OTEL_TRACES_SAMPLER_ARG=25: write a number from 0 to 1"},
		"other exporter": {env{endpoint: "http://c", "OTEL_TRACES_EXPORTER": "zipkin"}, nil, "OTEL_TRACES_EXPORTER=zipkin: write otlp or none"},
	} {
		got, err := FromEnvironment(func(name string) string { return row.env[name] }, Traces)
		if row.err != "" {
			if err == nil || err.Error() != row.err {
				t.Errorf("%s: %v, want %s", name, err, row.err)
			}
			continue
		}
		if diff := cmp.Diff(row.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}

// TestSettingsOfLogs: their variables are their own, and what is only about traces has no effect.
func TestSettingsOfLogs(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_TRACES_EXPORTER": "none",
		"OTEL_TRACES_SAMPLER": "jaeger_remote", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://logs:1", "OTEL_SERVICE_NAME": "edge",
	}
	got, err := FromEnvironment(func(name string) string { return env[name] }, Logs)
	if diff := cmp.Diff(&Settings{Host: "logs", Port: 1, TLS: true, Service: "edge"}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	env["OTEL_LOGS_EXPORTER"] = "none"
	if got, err := FromEnvironment(func(name string) string { return env[name] }, Logs); got != nil || err != nil {
		t.Errorf("turned off: %v, %v", got, err)
	}
}
