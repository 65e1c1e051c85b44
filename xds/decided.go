package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/definitions"
)

// The decisions of routes that do not lead to an upstream. Package explain returns the same reasons.
var (
	decidedPublic      = decided{authz.Allowed, authz.ReasonPublic.String()}
	decidedPreflight   = decided{authz.Allowed, convention.ReasonPreflight}
	decidedMethod      = decided{authz.Denied, convention.ReasonMethodNotAllowed}
	decidedNotFound    = decided{authz.Denied, convention.ReasonNotFound}
	decidedCertificate = decided{authz.Denied, convention.ReasonNoCertificate}
	decidedMalformed   = decided{authz.Denied, convention.ReasonMalformed}
	decidedMaintenance = decided{authz.Denied, convention.ReasonMaintenance}
)

// decided is the decision of a route, if Gatepost does not deny the request. The zero value is none: it is Gatepost's.
type decided struct {
	decision authz.Outcome
	reason   string
}

// decides is the decision of a route to upstreams.
func decides(rule authz.Rule) decided {
	if rule.Authenticate {
		return decided{}
	}
	return decidedPublic
}

// logged adds to a route what the access log and spans say about it: the service, the version of its definitions and
// the decision.
func (b *builder) logged(r *routev3.Route, of endpointGroup, d decided) *routev3.Route {
	if !b.describes() {
		return r
	}
	fields := map[string]*structpb.Value{}
	for name, value := range map[string]string{
		logService: of.rule.Service, logVersion: of.version, authz.MetadataDecision: string(d.decision), authz.MetadataReason: d.reason,
	} {
		if value != "" {
			fields[name] = structpb.NewStringValue(value)
		}
	}
	if r.Metadata == nil {
		r.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
	}
	r.Metadata.FilterMetadata[logMetadata] = &structpb.Struct{Fields: fields}
	return r
}

// versionOf returns the version of the definitions of a service, or of the settings if it is nil. If nothing shows it,
// it is empty.
func (b *builder) versionOf(s *definitions.Service) string {
	if !b.describes() {
		return ""
	}
	if b.versions == nil {
		b.versions = b.gw.Versions()
	}
	return b.versions(s)
}
