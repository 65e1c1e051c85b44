package xds

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/definitions"
)

const (
	// failuresInARow is after how many failed requests an upstream rests, and ejection how long, longer each time.
	failuresInARow = 5
	ejection       = 10 * time.Second
	// returnInterval is how often Envoy looks whether a rest is over.
	returnInterval = time.Second
)

// avoidUnhealthy keeps requests from upstreams that fail: those that fail their health checks, and those that fail
// requests.
func (s *service) avoidUnhealthy(c *clusterv3.Cluster) {
	if s.def.HealthCheck == nil && !s.def.OutlierDetection {
		return
	}
	// By default Envoy calls all upstreams alike if half of them are unhealthy ("panic"). A health check of one upstream
	// would have no effect at all.
	if c.CommonLbConfig == nil {
		c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{}
	}
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: 0}
	if s.def.HealthCheck != nil {
		c.HealthChecks = []*corev3.HealthCheck{healthCheck(s.def.HealthCheck, s.protocol())}
		// By default Envoy collects changes of health for a second.
		c.CommonLbConfig.UpdateMergeWindow = durationpb.New(0)
		// Else an upstream that DNS has removed would get requests for as long as it passes its checks, even if its address
		// belongs to another container now.
		c.IgnoreHealthOnHostRemoval = true
	}
	if s.def.OutlierDetection {
		c.OutlierDetection = outlierDetection()
		if s.def.HealthCheck != nil {
			// By default a health check that succeeds ends the rest. Then an upstream that passes its checks and fails requests
			// would get some after each check.
			c.OutlierDetection.SuccessfulActiveHealthCheckUnejectHost = wrapperspb.Bool(false)
		}
	}
}

func healthCheck(h *definitions.HealthCheck, protocol string) *corev3.HealthCheck {
	out := &corev3.HealthCheck{
		Timeout: durationpb.New(h.Timeout),
		// By default a service without requests is checked once a minute.
		Interval: durationpb.New(h.Interval), NoTrafficInterval: durationpb.New(h.Interval),
		UnhealthyThreshold: wrapperspb.UInt32(uint32(h.UnhealthyAfter)),
		HealthyThreshold:   wrapperspb.UInt32(uint32(h.HealthyAfter)),
	}
	if h.GRPC {
		out.HealthChecker = &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{}}
		if protocol == byALPN { // a check has no ALPN of its own, and gRPC servers need it
			out.TlsOptions = &corev3.HealthCheck_TlsOptions{AlpnProtocols: []string{onlyHTTP2}}
		}
		return out
	}
	check := &corev3.HealthCheck_HttpHealthCheck{
		Path: h.Path,
		// One answer with another status would be enough to make an upstream unhealthy.
		RetriableStatuses: []*typev3.Int64Range{{Start: 100, End: 600}},
	}
	for _, status := range h.Expect {
		check.ExpectedStatuses = append(check.ExpectedStatuses, &typev3.Int64Range{Start: int64(status), End: int64(status) + 1})
	}
	if protocol == onlyHTTP2 {
		check.CodecClientType = typev3.CodecClientType_HTTP2
	}
	out.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: check}
	return out
}

// outlierDetection ejects an upstream that fails to connect, breaks connections, or responds 502, 503 or 504, several
// times in a row. Other 5xx are those of the application, which its other upstreams would send too.
//
// The errors that are Envoy's own (split_external_local_origin_errors) are not counted apart: then each connection that
// can be made would excuse the requests that fail on it.
func outlierDetection() *clusterv3.OutlierDetection {
	return &clusterv3.OutlierDetection{
		ConsecutiveGatewayFailure:          wrapperspb.UInt32(failuresInARow),
		EnforcingConsecutiveGatewayFailure: wrapperspb.UInt32(100),
		EnforcingConsecutive_5Xx:           wrapperspb.UInt32(0),
		EnforcingSuccessRate:               wrapperspb.UInt32(0),
		Interval:                           durationpb.New(returnInterval),
		BaseEjectionTime:                   durationpb.New(ejection),
		MaxEjectionPercent:                 wrapperspb.UInt32(50), // with Envoy's 10, none of less than ten is ejected
	}
}
