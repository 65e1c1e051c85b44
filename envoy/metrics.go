package envoy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Metric is a metric of Envoy.
type Metric struct {
	// Name is its name in Prometheus.
	Name string
	// Stat matches the names of the statistics in Envoy that it is made from.
	Stat string
	// Type and Labels are those in Prometheus, Meaning is for the reference.
	Type    string
	Labels  []string
	Meaning string
}

// The names of labels that Envoy makes of the names of its statistics.
const (
	labelCluster = "envoy_cluster_name"
	labelClass   = "envoy_response_code_class"
	labelManager = "envoy_http_conn_manager_prefix"
	labelAddress = "envoy_listener_address"
)

// EssentialMetrics are the metrics of Envoy that an operator of a gateway needs: a few of the hundred for each cluster.
var EssentialMetrics = []Metric{
	{"envoy_server_live", `server\.live`, "gauge", nil, "1 if Envoy is not draining."},
	{"envoy_server_uptime", `server\.uptime`, "gauge", nil, "Seconds since Envoy started."},
	{"envoy_server_memory_allocated", `server\.memory_allocated`, "gauge", nil, "Bytes of memory in use."},
	{"envoy_http_downstream_cx_active", `http\.gatepost\.downstream_cx_active`, "gauge", []string{labelManager}, "Connections of clients."},
	{"envoy_http_downstream_rq_active", `http\.gatepost\.downstream_rq_active`, "gauge", []string{labelManager}, "Requests under way."},
	{"envoy_http_downstream_rq_xx", `http\.gatepost\.downstream_rq_[1-5]xx`, "counter", []string{labelManager, labelClass}, "Responses to clients, by class of status."},
	{"envoy_http_downstream_rq_time", `http\.gatepost\.downstream_rq_time`, "histogram", []string{labelManager}, "Milliseconds from the first byte of a request to the last of its response."},
	{"envoy_listener_downstream_cx_overflow", `listener\.[0-9[].*\.downstream_cx_overflow`, "counter", []string{labelAddress}, "Connections closed because of the limit of the listener."},
	{"envoy_listener_downstream_global_cx_overflow", `listener\.[0-9[].*\.downstream_global_cx_overflow`, "counter", []string{labelAddress}, "Connections closed because of the limit of Envoy."},
	{"envoy_cluster_membership_total", `cluster\..*\.membership_total`, "gauge", []string{labelCluster}, "Endpoints of an upstream."},
	{"envoy_cluster_membership_healthy", `cluster\..*\.membership_healthy`, "gauge", []string{labelCluster}, "Endpoints of an upstream that Envoy sends requests to."},
	{"envoy_cluster_upstream_cx_active", `cluster\..*\.upstream_cx_active`, "gauge", []string{labelCluster}, "Connections to an upstream."},
	{"envoy_cluster_upstream_cx_connect_fail", `cluster\..*\.upstream_cx_connect_fail`, "counter", []string{labelCluster}, "Connections to an upstream that failed."},
	{"envoy_cluster_upstream_rq_active", `cluster\..*\.upstream_rq_active`, "gauge", []string{labelCluster}, "Requests under way at an upstream."},
	{"envoy_cluster_upstream_rq_xx", `cluster\..*\.upstream_rq_[1-5]xx`, "counter", []string{labelCluster, labelClass}, "Responses of an upstream, by class of status."},
	{"envoy_cluster_upstream_rq_time", `cluster\..*\.upstream_rq_time`, "histogram", []string{labelCluster}, "Milliseconds that an upstream took."},
	{"envoy_cluster_upstream_rq_timeout", `cluster\..*\.upstream_rq_timeout`, "counter", []string{labelCluster}, "Requests that an upstream did not answer in time."},
	{"envoy_cluster_upstream_rq_pending_overflow", `cluster\..*\.upstream_rq_pending_overflow`, "counter", []string{labelCluster}, "Requests answered 503 because of a limit of the upstream."},
}

// EssentialReader returns the [EssentialMetrics] of the Envoy with an admin address (host:port or unix:/path), in the
// text format of Prometheus. They are a stream, because there can be megabytes of them. The caller must close it.
func EssentialReader(ctx context.Context, admin string) (io.ReadCloser, error) {
	addr, err := parseAddress(admin)
	if err != nil {
		return nil, fmt.Errorf("the address of Envoy's admin interface: %w", err)
	}
	var stats []string
	for _, one := range EssentialMetrics {
		stats = append(stats, one.Stat)
	}
	client := adminClient(addr)
	res, err := ask(ctx, client, http.MethodGet, "/stats/prometheus?filter="+url.QueryEscape("^("+strings.Join(stats, "|")+")$"))
	if err != nil {
		return nil, err
	}
	return adminStream{res.Body, client}, nil
}

// adminStream is a body whose connection ends with it.
type adminStream struct {
	io.ReadCloser
	client *http.Client
}

func (s adminStream) Close() error {
	defer s.client.CloseIdleConnections()
	return s.ReadCloser.Close()
}
