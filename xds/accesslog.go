package xds

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/authz"
	"gatepost/definitions"
)

// The access log is part of the listener, and its format is the same for every definition: what differs between
// requests comes from the route (its name and the name of the service), and from the decision (dynamic metadata of
// ext_authz or of the module). So a change of a service never changes the listener, which would drain connections.
// For the same reason no line has the version of the definitions: a route keeps its resource when other services
// change, and the resource does not know later versions.

// logPath is the filter that keeps the path of a request for the access log, before a route rewrites it. It is also
// the name of the filter state in which it keeps it.
const logPath = "gatepost.path"

// logMetadata is the namespace of a route's metadata for the access log, and logService the name of the service in it.
const (
	logMetadata = "gatepost"
	logService  = "service"
)

// headerRequestID is the header with the id of a request, which clients receive too if there is an access log.
const headerRequestID = "x-request-id"

// The longest texts of a client that a line has. So a line is far shorter than what package envoy accepts.
const (
	longestPath = 1024
	longestText = 256
)

// logs reports whether Envoy logs requests.
func (b *builder) logs() bool { return b.gw.AccessLog.On() }

// accessLog is the access log of the listener; nil if it is off.
func (b *builder) accessLog() []*accesslogv3.AccessLog {
	if !b.logs() {
		return nil
	}
	out := &streamv3.StdoutAccessLog{AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: ecsFormat()}}
	if b.gw.AccessLog.Format == definitions.AccessLogText {
		out.AccessLogFormat = &streamv3.StdoutAccessLog_LogFormat{LogFormat: textFormat()}
	}
	return []*accesslogv3.AccessLog{{
		Name:       "stdout",
		Filter:     logFilter(b.gw.AccessLog),
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.pack(out)},
	}}
}

// The values of a line, as format strings of Envoy ("Substitution formatter"). A path has no query: it may contain a
// token. Authorization, cookies, subprotocols and Referer are in no line.
var (
	formatTime     = "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%"
	formatDuration = "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ns)%"
	formatMethod   = "%REQ(:METHOD):32%"
	formatClient   = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
	formatService  = one(ofRoute(logService))
	formatUser     = one(ofDecision(authz.MetadataUser))
	formatSession  = one(ofDecision(authz.MetadataSession))
	// A route that Gatepost is not asked about has the decision itself.
	formatDecision = first(ofDecision(authz.MetadataDecision), ofRoute(authz.MetadataDecision))
	formatReason   = first(ofDecision(authz.MetadataReason), ofRoute(authz.MetadataReason))
	// A request that Envoy refuses before its filters run has no filter state, and no route has rewritten its path.
	formatPath = first(operator{Command: "FILTER_STATE", Param: logPath + ":PLAIN"}, operator{Command: "PATH", Param: "NQ:PATH", MaxLength: longestPath})
)

// ofHeader is a request header, cut off after longestText bytes.
func ofHeader(name string) string { return fmt.Sprintf("%%REQ(%s):%d%%", name, longestText) }

// operator is a command operator of a format string, as COALESCE reads it.
type operator struct {
	Command   string `json:"command"`
	Param     string `json:"param"`
	MaxLength int    `json:"max_length,omitempty"`
}

func ofRoute(key string) operator {
	return operator{Command: "METADATA", Param: "ROUTE:" + logMetadata + ":" + key}
}

func ofDecision(key string) operator {
	return operator{Command: "DYNAMIC_METADATA", Param: authz.MetadataNamespace + ":" + key}
}

func one(o operator) string { return "%" + o.Command + "(" + o.Param + ")%" }

// first is the first of the values that there is.
func first(all ...operator) string {
	list, _ := json.Marshal(map[string]any{"operators": all}) // texts always have a JSON form
	return "%COALESCE(" + string(list) + ")%"
}

// ecsFormat is a line in JSON. Its names are those of the Elastic Common Schema, which OpenTelemetry shares in part.
// A value that is not known is omitted.
func ecsFormat() *corev3.SubstitutionFormatString {
	type object = map[string]any
	line, err := structpb.NewStruct(object{
		"@timestamp": formatTime,
		"ecs":        object{"version": "8.11.0"},
		"event":      object{"dataset": "gatepost.access", "duration": formatDuration},
		"http": object{
			"version":  "%PROTOCOL%",
			"request":  object{"method": formatMethod, "id": ofHeader(headerRequestID), "bytes": "%BYTES_RECEIVED%"},
			"response": object{"status_code": "%RESPONSE_CODE%", "bytes": "%BYTES_SENT%"},
		},
		"url":        object{"path": formatPath},
		"server":     object{"address": ofHeader(":AUTHORITY")},
		"client":     object{"address": formatClient},
		"user":       object{"id": formatUser},
		"session":    object{"id": formatSession},
		"user_agent": object{"original": ofHeader("USER-AGENT")},
		"trace":      object{"id": "%TRACE_ID%"},
		"service":    object{"name": formatService, "address": "%UPSTREAM_HOST%"},
		"gatepost":   object{"decision": formatDecision, "reason": formatReason, "route": "%ROUTE_NAME%"},
		"envoy":      object{"response_flags": "%RESPONSE_FLAGS%", "response_code_details": "%RESPONSE_CODE_DETAILS%"},
	})
	if err != nil {
		panic(err) // the values above are texts
	}
	return &corev3.SubstitutionFormatString{
		Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: line},
		OmitEmptyValues: true,
	}
}

// textFormat is a line of text. What a user service and a client choose comes last, so that it cannot imitate what is
// before it.
func textFormat() *corev3.SubstitutionFormatString {
	line := strings.Join([]string{
		formatTime, formatClient, "%RESPONSE_CODE%",
		"duration_ns=" + formatDuration, "bytes=%BYTES_SENT%", "service=" + formatService, "decision=" + formatDecision, "reason=" + formatReason,
		"upstream=%UPSTREAM_HOST%", "flags=%RESPONSE_FLAGS%", "details=%RESPONSE_CODE_DETAILS%", "request_id=" + ofHeader(headerRequestID),
		"trace_id=%TRACE_ID%", "session=" + formatSession, "user=" + formatUser, formatMethod, formatPath,
	}, " ")
	return &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: line + "\n"},
		}},
	}
}

// logFilter selects the requests that are logged; nil: all.
func logFilter(a definitions.AccessLog) *accesslogv3.AccessLogFilter {
	var filters []*accesslogv3.AccessLogFilter
	if a.ErrorsOnly {
		filters = append(filters, &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{
			OrFilter: &accesslogv3.OrFilter{Filters: []*accesslogv3.AccessLogFilter{statusFrom(400), anyFlag()}},
		}})
	}
	if a.Sample < 1 {
		const million = 1_000_000
		filters = append(filters, &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_RuntimeFilter{
			RuntimeFilter: &accesslogv3.RuntimeFilter{
				RuntimeKey: "gatepost.access_log.sample", // required, never set
				PercentSampled: &typev3.FractionalPercent{
					Numerator: uint32(math.Round(a.Sample * million)), Denominator: typev3.FractionalPercent_MILLION,
				},
			},
		}})
	}
	if len(filters) == 0 {
		return nil
	}
	return allOf(filters)
}

// anyFlag matches requests that did not end normally, by any response flag.
func anyFlag() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{},
	}}
}

// keepPath is the filter that keeps the path for the access log. (Envoy keeps the original path only in a header that
// an upstream receives.)
func (b *builder) keepPath() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: logPath, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(&setstatev3.Config{
		OnRequestHeaders: []*filterstatev3.FilterStateValue{{
			Key:        &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: logPath},
			FactoryKey: "envoy.string",
			Value: &filterstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: fmt.Sprintf("%%PATH(NQ:PATH):%d%%", longestPath)},
				}},
			}},
		}},
	})}}
}

// logged adds to a route what the access log and spans say about it: the service and, if Gatepost is not asked about
// the request, the decision.
func (b *builder) logged(r *routev3.Route, service string, public bool) *routev3.Route {
	if !b.describes() {
		return r
	}
	fields := map[string]*structpb.Value{logService: structpb.NewStringValue(service)}
	if public {
		fields[authz.MetadataDecision] = structpb.NewStringValue(string(authz.Allowed))
		fields[authz.MetadataReason] = structpb.NewStringValue(authz.ReasonPublic.String())
	}
	if r.Metadata == nil {
		r.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
	}
	r.Metadata.FilterMetadata[logMetadata] = &structpb.Struct{Fields: fields}
	return r
}
