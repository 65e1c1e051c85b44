package authz

import (
	"encoding/hex"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// The module in Envoy (envoy/module) marks the requests that it lets pass in dynamic metadata: under
// MetadataNamespace, which is that of ext_authz, MetadataHit is the user. No client can set any. With an access log,
// MetadataHitSession is the session, if the slot has it. The reason of these requests is ReasonModule.
const (
	MetadataNamespace  = "envoy.filters.http.ext_authz"
	MetadataHit        = "hit"
	MetadataHitSession = "hit_session"
	ReasonModule       = "module"
)

// ServiceID identifies a service whose hits the module counts.
func ServiceID(service string) uint64 { return table.ServiceID(service) }

// Decisions takes decisions that Envoy may make by itself from now on. A cache of package tokens/cache is one.
type Decisions interface {
	// Ticket is called before a token is looked up.
	Ticket(h tokens.Hash) table.Ticket
	// Grant lets Envoy allow requests like the one that was allowed, unless the token may have changed since the ticket
	// was taken.
	Grant(t table.Ticket, e table.Entry)
	// Hits returns how many requests Envoy has allowed by itself, by service.
	Hits() (of func(service string) uint64)
}

// ModuleInputs are the request headers that decisions depend on beside Authorization. A new one
// must be added here, in table.h and in module.c: a decision is used for a request that has the same of each.
func (s Shared) ModuleInputs() []string {
	var inputs []string
	if len(s.Origins) > 0 {
		inputs = append(inputs, headerOrigin)
	}
	if s.Cookie != "" {
		inputs = append(inputs, headerCookie)
	}
	if s.Subprotocol != "" {
		inputs = append(inputs, headerSubprotocols)
	}
	return inputs
}

// grant lets the module allow requests like this one, if the token is in Authorization and no other header of the
// request changes. d must be an allow for a token.
func (s *Server) grant(c *call, d *Decision) {
	if s.decisions == nil || d.stripped != (strippedHeaders{}) {
		return
	}
	e := table.Entry{
		Inputs: c.inputs(&d.rule), Token: d.Token, User: d.User, Session: c.principal.UUID(), Expires: c.principal.Expires(),
	}
	if n, err := hex.Decode(e.Rule[:], []byte(c.rawRule.id)); err != nil || n != len(e.Rule) {
		return // the route was not made for a module
	}
	s.decisions.Grant(c.ticket, e)
}

// inputs are the values of the headers that a decision by the rule depends on.
func (q *Request) inputs(r *rule) [4]string {
	in := [4]string{q.authorization}
	if r.origins != "" {
		in[1] = q.origin
	}
	if r.cookie != "" {
		in[2] = q.cookie
	}
	if r.subprotocol != "" {
		in[3] = q.subprotocols
	}
	return in
}
