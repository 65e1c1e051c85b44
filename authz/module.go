package authz

import (
	"encoding/hex"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// ModuleNamespace is that of the metadata by which the module in Envoy (envoy/module) marks the requests that it lets pass, and
// reports how many it has let pass before one that Check is asked about. No client can set any.
const ModuleNamespace = "gatepost.module"

// fieldHits is the field of the metadata with the number of requests of the same service that the module has let pass.
const fieldHits = "hits"

// reasonModule labels the requests that the module let pass.
const reasonModule = "module"

// Decisions takes decisions that Envoy may make by itself from now on. A cache of package tokens/cache is one.
type Decisions interface {
	// Ticket is called before a token is looked up.
	Ticket(h tokens.Hash) table.Ticket
	// Grant lets Envoy allow requests like the one that was allowed, unless the token may have changed since the ticket was taken.
	Grant(t table.Ticket, e table.Entry)
}

// ModuleInputs are the request headers that decisions depend on beside Authorization. Whoever makes decisions depend on one more
// adds it here, in table.h and in module.c: a decision is used for a request that has the same of each.
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

// grant lets the module allow requests like this one, if the token is in Authorization and no other header of the request
// changes. d must be an allow for a token.
func (s *Server) grant(c *call, d *Decision) {
	if s.decisions == nil || d.stripped != (strippedHeaders{}) {
		return
	}
	e := table.Entry{Inputs: c.inputs(&d.rule), Token: d.Token, User: d.User, Expires: c.holder.Expires()}
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

// mostHits is more requests than an Envoy lets pass between two checks of a service.
const mostHits = 1 << 40

// readHits takes the module's report out of a Check's metadata.
func (q *Request) readHits(m *corev3.Metadata) {
	n := m.GetFilterMetadata()[ModuleNamespace].GetFields()[fieldHits].GetNumberValue()
	q.hits = 0
	if n >= 1 && n <= mostHits {
		q.hits = int64(n)
	}
}

// readMetadata reads the metadata that is in rawMetadata. A Check has any only if the module has let requests pass since the last one.
func (q *Request) readMetadata() error {
	if q.rawMetadata == "" {
		return nil
	}
	m := new(corev3.Metadata)
	if err := proto.Unmarshal([]byte(q.rawMetadata), m); err != nil {
		return err
	}
	q.rawMetadata = ""
	q.readHits(m)
	return nil
}
