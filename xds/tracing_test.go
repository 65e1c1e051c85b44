package xds

import (
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/testrun"
	"gatepost/tracing"
)

// TestEnvoyAcceptsACollector: by address and by name, with and without TLS, and the listener traces.
func TestEnvoyAcceptsACollector(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	for _, settings := range []*tracing.Settings{
		{Host: "127.0.0.1", Port: 4317, Service: "gatepost", Sample: 0.1},
		{Host: "collector.example", Port: 4317, TLS: true, CAFile: DefaultCAFile, Service: "gatepost", Sample: 1},
	} {
		options := testOptions
		options.Tracing, options.Logs = settings, settings
		snapshot := buildWith(t, "tracing: {trust_incoming: true}\naccess_log: {format: ecs, to: otlp}\nservices: []", options)
		if snapshot.clusters.get(spansCluster) == nil || snapshot.clusters.get(logsCluster) == nil {
			t.Error("there is no cluster of a collector")
		}
		if said := envoytest.ValidateResources(t, messages(snapshot)...); said != "" {
			t.Errorf("%+v: %s", settings, said)
		}
	}
}
