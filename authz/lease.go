package authz

// LeaseNamespace is that of the metadata by which the lease filter in Envoy (xds/lease.lua) asks for a lease, and
// marks the requests that it lets pass.
const LeaseNamespace = "gatepost.lease"

// Leasable says whether there is anything to remember about decisions by the rule. What the upstream is told of a request
// that may outlast its token, such as a WebSocket, changes from one to the next.
func (r Rule) Leasable() bool { return r.Authenticate && r.Longest > 0 }

// LeaseInputs are the request headers that decisions depend on, beside Authorization. Whoever has a decision depend on
// one more names it here: a decision is used again for a request that has the same of each.
func (s Shared) LeaseInputs() []string {
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
