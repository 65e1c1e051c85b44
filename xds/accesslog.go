package xds

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	otelv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/definitions"
)

// The access log is part of the listener, and its format is the same for every definition: what differs between
// requests comes from the route (its name and the name of the service), and from the decision. That is dynamic
// metadata of ext_authz, and of the module for a hit. So a change of a service never changes the listener, which
// would drain connections. For the same reason a line has no version of all definitions, but that of the service and
// the settings: a route keeps its resource when other services change, and the resource does not know later
// versions.

// keptPath is the filter state with the path of a request, before a route rewrites it. The filter that keeps it has the
// same name. On routes with the module, the module keeps it (module.c).
const keptPath = "gatepost.path"

// logMetadata is the namespace of a route's metadata for the access log. In it are the name of the service and the
// version of its definitions.
const (
	logMetadata = "gatepost"
	logService  = "service"
	logVersion  = "version"
)

// The longest texts of a client that a line has. So a line is far shorter than what package envoy accepts.
const (
	longestPath = 1024
	longestText = 256
)

// logs reports whether Envoy logs requests.
func (b *builder) logs() bool { return b.gw.AccessLog.On() }

// exportsLog reports whether Envoy sends the access log to a collector.
func (b *builder) exportsLog() bool {
	return b.logs() && b.gw.AccessLog.To == definitions.AccessLogOTLP
}

// accessLog is the access log of the listener; nil if it is off. It has several parts, each for some of the requests,
// because what a line costs depends on what must be looked up for it.
func (b *builder) accessLog() []*accesslogv3.AccessLog {
	if !b.logs() {
		return nil
	}
	if err := b.opts.LogsError; b.exportsLog() && err != nil {
		b.fail(fmt.Errorf("access_log.to is otlp: %w", err))
		return nil
	}
	if b.exportsLog() && b.opts.Logs == nil {
		b.fail(errors.New("access_log.to is otlp, and no collector is set: set OTEL_EXPORTER_OTLP_ENDPOINT for Gatepost"))
		return nil
	}
	text := b.gw.AccessLog.Format == definitions.AccessLogText
	switch {
	case b.exportsLog():
		name := serviceName(b.opts.Logs)
		return []*accesslogv3.AccessLog{
			b.logOf(otlpLog(text, hitLine(plainText), name), hit.is, statusUpTo(399)),
			b.logOf(otlpLog(text, passedLine(plainText), name), hit.isNot, statusUpTo(399)),
			b.logOf(otlpLog(text, refusedLine(plainText), name), statusFrom(400)),
		}
	case text:
		return []*accesslogv3.AccessLog{
			b.logOf(stdoutLog(textFormat(hitLine(anyText))), hit.is, statusUpTo(399)),
			b.logOf(stdoutLog(textFormat(passedLine(anyText))), hit.isNot, statusUpTo(399)),
			b.logOf(stdoutLog(textFormat(refusedLine(anyText))), statusFrom(400)),
		}
	}
	return []*accesslogv3.AccessLog{
		b.logOf(stdoutLog(b.quickFormat(hitLine(anyText))), hit.is, statusUpTo(399)),
		b.logOf(stdoutLog(b.quickFormat(routeLine)), decidedByRoute.is, statusUpTo(399)),
		b.logOf(stdoutLog(ecsFormat(ecsFields(passedLine(anyText)), true)), hit.isNot, decidedByRoute.isNot, statusUpTo(399)),
		b.logOf(stdoutLog(ecsFormat(ecsFields(refusedLine(anyText)), true)), statusFrom(400)),
	}
}

// logOf is a part of the access log: the requests that all filters match.
func (b *builder) logOf(out proto.Message, filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name:       b.gw.AccessLog.To,
		Filter:     allOf(append(filters, logFilters(b.gw.AccessLog)...)),
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.pack(out)},
	}
}

func stdoutLog(format *corev3.SubstitutionFormatString) *streamv3.StdoutAccessLog {
	return &streamv3.StdoutAccessLog{AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: format}}
}

// condition is a filter and its opposite. Envoy has no filter that negates another.
type condition struct{ is, isNot *accesslogv3.AccessLogFilter }

func not(c condition) condition { return condition{c.isNot, c.is} }

// both is the condition that all of some hold.
func both(all ...condition) condition {
	var is, isNot []*accesslogv3.AccessLogFilter
	for _, c := range all {
		is, isNot = append(is, c.is), append(isNot, c.isNot)
	}
	return condition{allOf(is), anyOf(isNot)}
}

// described is the condition that the dynamic metadata of a decision has a key.
func described(key string) condition {
	filter := func(value *matcherv3.ValueMatcher, ifMissing bool) *accesslogv3.AccessLogFilter {
		return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_MetadataFilter{
			MetadataFilter: &accesslogv3.MetadataFilter{
				Matcher: &matcherv3.MetadataMatcher{
					Filter: authz.MetadataNamespace,
					Path:   []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}}},
					Value:  value,
				},
				MatchIfKeyNotFound: wrapperspb.Bool(ifMissing),
			},
		}}
	}
	present := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
	null := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_NullMatch_{NullMatch: &matcherv3.ValueMatcher_NullMatch{}}}
	return condition{filter(present, false), filter(null, true)} // no value is null
}

// header is the condition that a request header matches.
func header(m *routev3.HeaderMatcher) condition {
	filter := func(m *routev3.HeaderMatcher) *accesslogv3.AccessLogFilter {
		return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{
			HeaderFilter: &accesslogv3.HeaderFilter{Header: m},
		}}
	}
	inverse := proto.CloneOf(m)
	inverse.InvertMatch = !m.GetInvertMatch()
	return condition{filter(m), filter(inverse)}
}

var (
	// hit: the module has let the request pass, and the session is known.
	hit = described(authz.MetadataHitSession)
	// decidedByRoute: the metadata of the route has the service, its version, the decision and the reason. Without them
	// are preflights of unknown paths and the gateway's own paths, which begin with a dot. A service below such a path
	// is not distinguished from those.
	decidedByRoute = both(not(hit), not(described(authz.MetadataHit)), not(described(authz.MetadataReason)), condition{statusFrom(200), statusUpTo(199)},
		not(header(&routev3.HeaderMatcher{Name: "access-control-request-method", HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}})),
		not(header(&routev3.HeaderMatcher{Name: ":path", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
			StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "/."}},
		}})))
)

// otlpLog sends a record of each request to a collector. In the format ecs, a field is an attribute. They are custom
// tags, because Envoy omits those that are empty, and would write "-" as the value of another attribute.
func otlpLog(text bool, l line, service string) *otelv3.OpenTelemetryAccessLogConfig {
	config := &otelv3.OpenTelemetryAccessLogConfig{
		GrpcService:          collectorService(logsCluster),
		DisableBuiltinLabels: true,
		ResourceAttributes:   &commonv1.KeyValueList{Values: []*commonv1.KeyValue{{Key: "service.name", Value: otlpText(service)}}},
	}
	if text {
		config.Body = otlpText(textLine(l))
		return config
	}
	for _, f := range ecsFields(l) {
		if f.name != fieldTime { // a record has it
			config.CustomTags = append(config.CustomTags, tag(f.name, f.value))
		}
	}
	return config
}

func otlpText(text string) *commonv1.AnyValue {
	return &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: text}}
}

// The values of a line, as format strings of Envoy ("Substitution formatter"). A path has no query: it may contain a
// token. Authorization, cookies, subprotocols and Referer are in no line.
var (
	formatTime     = "%START_TIME%" // 2006-01-02T15:04:05.000Z
	formatDuration = "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ns)%"
	formatClient   = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
	formatService  = one(ofRoute(logService))
	formatVersion  = one(ofRoute(logVersion))
	formatSession  = first(ofDecision(authz.MetadataSession), ofDecision(authz.MetadataHitSession))
	formatUser     = first(ofDecision(authz.MetadataUser), ofDecision(authz.MetadataHit))
	formatMethod   = "%REQ(:METHOD):32%"
	formatPath     = pathOr(operator{Command: "PATH", Param: "NQ:PATH", MaxLength: longestPath})
	formatRoute    = "%ROUTE_NAME%"
	formatTrace    = "%TRACE_ID%"
)

// pathOr is the path of a request. If Envoy refuses the request before its filters run, there is no filter state, and
// no route has rewritten the path, which is then that of an operator.
func pathOr(early operator) string {
	return first(kept(keptPath), early)
}

// kept is a value in the filter state.
func kept(name string) operator {
	return operator{Command: "FILTER_STATE", Param: name + ":PLAIN"}
}

// ofHeader is a request header, cut off after longestText bytes.
func ofHeader(name string) string { return fmt.Sprintf("%%REQ(%s):%d%%", name, longestText) }

// texts are the values of a line that clients choose, as format strings.
type texts struct {
	header func(name string) string
	path   string
}

var (
	// anyText are the values as they are. In JSON, Envoy replaces what is not UTF-8.
	anyText = texts{ofHeader, formatPath}
	// plainText are the values that are ASCII; others are left out. A collector refuses a whole message, with the records
	// of other clients, if it has a value that is not UTF-8. Cutting off a value could make it one.
	plainText = texts{plainHeader, pathOr(plain("request.url_path", longestPath))}
)

// plainHeader is ofHeader for a header that is ASCII.
func plainHeader(name string) string {
	return first(plain("request.headers['"+strings.ToLower(name)+"']", longestText))
}

// plain is the value of an expression if it is ASCII, cut off after a number of bytes. Otherwise there is no value.
func plain(value string, longest int) operator {
	return operator{Command: "CEL", Param: fmt.Sprintf("{true:%[1]s}[%[1]s.matches('^[ -~]*$')]", value), MaxLength: longest}
}

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

// envoysEnds are the ends of requests that are no decision of Gatepost and of no route, by Envoy's name for them
// (response_code_details).
var envoysEnds = []struct {
	details  string
	decision authz.Outcome
	reason   string
}{
	{"local_rate_limited", authz.Denied, "rate_limited"},
	{"request_rate_limited", authz.Denied, "rate_limited"},
	{"request_payload_too_large", authz.Denied, "body_too_large"},
	{"upgrade_failed", authz.Denied, convention.ReasonUpgradeRefused},
	{"rbac_access_denied_matched_policy[none]", authz.Denied, convention.ReasonUpgradeRefused}, // of allowUpgrades
	{"path_normalization_failed", authz.Denied, convention.ReasonMalformed},
	{"low_version", authz.Denied, convention.ReasonMalformed}, // HTTP/1.0
	{"missing_host_header", authz.Denied, convention.ReasonMalformed},
	{"absolute_path_rejected", authz.Denied, convention.ReasonMalformed}, // the target *
	{"route_not_found", authz.Denied, convention.ReasonNotFound},         // CONNECT
	{"request_header_timeout", authz.Denied, "timed_out"},
	{"ext_authz_invalid", authz.Denied, convention.ReasonTooManyHeaders},
	{"ext_authz_error", authz.CannotTell, "check_failed"},
	{"rate_limiter_error", authz.CannotTell, "not_counted"},
}

// verdict is the decision and the reason of a request, as format strings.
type verdict struct{ decision, reason string }

// Envoy can refuse a request after it was allowed, and names that end. A route without a decision of Gatepost has one
// itself. A look-up of the end takes several microseconds, so it is left out if there cannot be one.
var (
	passed = verdict{
		first(ofDecision(authz.MetadataDecision), ofRoute(authz.MetadataDecision), ofHit(string(authz.Allowed)), ofUnparsed(string(authz.Denied))),
		first(ofDecision(authz.MetadataReason), ofRoute(authz.MetadataReason), ofHit(authz.ReasonModule), ofUnparsed(convention.ReasonMalformed)),
	}
	refused = verdict{
		first(ofEnd(string(authz.Denied), func(i int) string { return string(envoysEnds[i].decision) }), ofDecision(authz.MetadataDecision), ofRoute(authz.MetadataDecision), ofHit(string(authz.Allowed))),
		first(ofEnd(convention.ReasonMalformed, func(i int) string { return envoysEnds[i].reason }), ofDecision(authz.MetadataReason), ofRoute(authz.MetadataReason), ofHit(authz.ReasonModule)),
	}
)

// ofHit is a value for a request that the module has let pass. For another one the expression is an error, and there is
// no value.
func ofHit(value string) operator {
	return operator{Command: "CEL", Param: fmt.Sprintf("{true:'%s'}[metadata.filter_metadata['%s']['%s'] != '']",
		value, authz.MetadataNamespace, authz.MetadataHit)}
}

// ofEnd is a part of the entry of envoysEnds for the request, or a value for one that Envoy's parser refuses: its body
// comes after the decision. If it is neither, the expression is an error, and there is no value.
func ofEnd(unparsed string, part func(i int) string) operator {
	entries := make([]string, len(envoysEnds))
	for i, end := range envoysEnds {
		entries[i] = fmt.Sprintf("'%s':'%s'", end.details, part(i))
	}
	return operator{Command: "CEL", Param: unparsedDetails + "?'" + unparsed + "':{" + strings.Join(entries, ",") + "}[response.code_details]"}
}

// unparsedDetails is a condition of CEL for a request that Envoy's parser refuses, by the names of such ends
// (http1.codec_error, http2.unexpected_underscore).
const unparsedDetails = "response.code_details.startsWith('http')"

// ofUnparsed is a value for a request that Envoy's parser refuses. For another one the expression is an error, and
// there is no value.
func ofUnparsed(value string) operator {
	return operator{Command: "CEL", Param: fmt.Sprintf("{true:'%s'}[%s]", value, unparsedDetails)}
}

func one(o operator) string { return "%" + o.Command + "(" + o.Param + ")%" }

// first is the first of the values that there is.
func first(all ...operator) string {
	list, _ := json.Marshal(map[string]any{"operators": all}) // texts always have a JSON form
	return "%COALESCE(" + string(list) + ")%"
}

// line are the values of a line that differ between the parts of the log, as format strings. An empty one has no field.
type line struct {
	verdict
	texts
	user, session, service, version, trace string
}

// passedLine is a line of a request that was not refused, and is no hit.
func passedLine(t texts) line {
	return line{passed, t, formatUser, formatSession, formatService, formatVersion, formatTrace}
}

// refusedLine is a line of a request that was refused. An upstream can have refused it after a hit.
func refusedLine(t texts) line {
	return line{refused, t, formatUser, formatSession, formatService, formatVersion, formatTrace}
}

// hitLine is a line of a request that the module has let pass. Its route has the name of its service. The identity
// header has the user too, but to find one by name Envoy indexes all headers.
func hitLine(t texts) line {
	allowed := verdict{string(authz.Allowed), authz.ReasonModule}
	t.path = one(kept(keptPath))
	user, session := one(ofDecision(authz.MetadataHit)), one(ofDecision(authz.MetadataHitSession))
	return line{allowed, t, user, session, formatRoute, formatVersion, formatTrace}
}

// routeLine is a line of a request that its route decides. All of its metadata must be there.
var routeLine = line{
	verdict: verdict{one(ofRoute(authz.MetadataDecision)), one(ofRoute(authz.MetadataReason))},
	texts:   texts{ofHeader, one(kept(keptPath))},
	service: formatService, version: formatVersion, trace: formatTrace,
}

// fieldTime is the field with the start of a request.
const fieldTime = "@timestamp"

type field struct{ name, value string }

// ecsFields are the fields of a line. Their names are those of the Elastic Common Schema, which OpenTelemetry shares in
// part; a dot separates the levels of an object.
func ecsFields(l line) []field {
	all := []field{
		{fieldTime, formatTime},
		{"ecs.version", "8.11.0"},
		{"event.dataset", "gatepost.access"},
		{"event.duration", formatDuration},
		{"http.version", "%PROTOCOL%"},
		{"http.request.method", formatMethod},
		{"http.request.id", l.header(convention.HeaderRequestID)},
		{"http.request.bytes", "%BYTES_RECEIVED%"},
		{"http.response.status_code", "%RESPONSE_CODE%"},
		{"http.response.bytes", "%BYTES_SENT%"},
		{"url.path", l.path},
		{"server.address", l.header(":AUTHORITY")},
		{"client.address", formatClient},
		{"user.id", l.user},
		{"session.id", l.session},
		{"user_agent.original", l.header("USER-AGENT")},
		{"trace.id", l.trace},
		{"service.name", l.service},
		{"service.address", "%UPSTREAM_HOST%"},
		{authz.AttributeDecision, l.decision},
		{authz.AttributeReason, l.reason},
		{"gatepost.route", formatRoute},
		{"gatepost.version", l.version},
		{"envoy.response_flags", "%RESPONSE_FLAGS%"},
		{"envoy.response_code_details", "%RESPONSE_CODE_DETAILS%"},
	}
	return slices.DeleteFunc(all, func(f field) bool { return f.value == "" })
}

// asText, after an operator, has Envoy make a text of both. It adds nothing, because nothing sets custom flags.
const asText = "%CUSTOM_FLAGS%"

// quickFormat is ecsFormat for requests of services, quicker. Metadata by itself would become a value of JSON first,
// which takes three times as long. As a text, metadata that is not there would be "-".
func (b *builder) quickFormat(l line) *corev3.SubstitutionFormatString {
	if !b.traces() {
		l.trace = ""
	}
	all := ecsFields(l)
	for i, f := range all {
		if strings.Contains(f.value, "METADATA(") {
			all[i].value += asText
		}
	}
	return ecsFormat(all, false)
}

// ecsFormat is a line in JSON. A value that is not known is omitted, or null, which costs Envoy a third less.
func ecsFormat(all []field, omit bool) *corev3.SubstitutionFormatString {
	root := map[string]any{}
	for _, f := range all {
		object, names := root, strings.Split(f.name, ".")
		for _, name := range names[:len(names)-1] {
			if object[name] == nil {
				object[name] = map[string]any{}
			}
			object = object[name].(map[string]any)
		}
		object[names[len(names)-1]] = f.value
	}
	format, err := structpb.NewStruct(root)
	if err != nil {
		panic(err) // the values above are texts
	}
	return &corev3.SubstitutionFormatString{
		Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: format},
		OmitEmptyValues: omit,
	}
}

func textFormat(l line) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: textLine(l) + "\n"},
		}},
	}
}

// textLine is a line of text. What a user service and a client choose comes last, so that it cannot imitate what is
// before it. (The id of a request is chosen by the client of a trusted proxy, if the proxy lets it.)
func textLine(l line) string {
	return strings.Join([]string{
		formatTime, formatClient, "%RESPONSE_CODE%",
		"duration_ns=" + formatDuration, "bytes=%BYTES_SENT%", "service=" + l.service, "decision=" + l.decision, "reason=" + l.reason,
		"upstream=%UPSTREAM_HOST%", "flags=%RESPONSE_FLAGS%", "details=%RESPONSE_CODE_DETAILS%",
		"trace_id=" + l.trace, "version=" + l.version, "session=" + l.session, "user=" + l.user,
		"request_id=" + l.header(convention.HeaderRequestID), formatMethod, l.path,
	}, " ")
}

// logFilters select the requests that are logged. If there are none, that is all.
func logFilters(a definitions.AccessLog) (filters []*accesslogv3.AccessLogFilter) {
	if a.ErrorsOnly {
		filters = append(filters, anyOf([]*accesslogv3.AccessLogFilter{statusFrom(400), anyFlag()}))
	}
	if a.Sample < 1 {
		const million = 1_000_000
		filters = append(filters, &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_RuntimeFilter{
			RuntimeFilter: &accesslogv3.RuntimeFilter{
				RuntimeKey: "gatepost.access_log.sample", // required, never set
				PercentSampled: &typev3.FractionalPercent{
					Numerator: uint32(math.Round(a.Sample * million)), Denominator: typev3.FractionalPercent_MILLION,
				},
				// By default the request id decides, and the client of a trusted proxy may choose it.
				UseIndependentRandomness: true,
			},
		}})
	}
	return filters
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
	return &hcmv3.HttpFilter{Name: keptPath, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(&setfilterstatev3.Config{
		OnRequestHeaders: []*filterstatev3.FilterStateValue{{
			Key:        &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: keptPath},
			FactoryKey: "envoy.string",
			Value: &filterstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: fmt.Sprintf("%%PATH(NQ:PATH):%d%%", longestPath)},
				}},
			}},
		}},
	})}}
}
