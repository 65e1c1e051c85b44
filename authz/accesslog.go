package authz

import "google.golang.org/protobuf/types/known/structpb"

// The names under [MetadataNamespace] by which the access log of Envoy finds a decision of Gatepost. The module sets
// none of them.
const (
	MetadataDecision = "decision"
	MetadataReason   = "reason"
	MetadataUser     = "user"
	MetadataSession  = "session"
)

// The names of a decision's parts in spans and in the access log.
const (
	AttributeService  = "gatepost.service"
	AttributeDecision = "gatepost.decision"
	AttributeReason   = "gatepost.reason"
)

// metadata returns what the access log has about a decision. It holds no token. Envoy keeps it with the request, and
// no upstream receives it. It never has the mark of the module, see [validateResponse]. It is nil for [ReasonPublic],
// because the route has the reason: public, or why Envoy answers by itself.
func (d *Decision) metadata() *structpb.Struct {
	if d.Reason == ReasonPublic {
		return nil
	}
	m := &structpb.Struct{Fields: map[string]*structpb.Value{
		MetadataDecision: structpb.NewStringValue(string(d.Outcome())),
		MetadataReason:   structpb.NewStringValue(d.Reason.String()),
	}}
	if user := d.principal.User(); validHeaderValue(user) { // which is UTF-8, as protobuf requires
		m.Fields[MetadataUser] = structpb.NewStringValue(user)
	}
	if id := d.principal.ID(); id != "" {
		m.Fields[MetadataSession] = structpb.NewStringValue(id)
	}
	return m
}
