package authz

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// A worker of Envoy remembers a decision for each token, and each ends after a lease. So that it need not ask as often as it has
// tokens, it names beside a question other requests of the same rule that it has let pass by decisions that end soon; they
// are decided about as if they had come, and the answer renews their leases too. (Gray and Cheriton, "Leases", 1989, §3: a
// cache extends all its leases together.) What is said of each is its client's address and, as in the filter's key,
// the value of Authorization and of each of [Shared.LeaseInputs]; the rule is the question's.

// fieldRenewed is the answer to fieldRenew: for each request in turn what leaseMetadata makes of its verdict, and an empty
// structure where it is to be asked about when it comes.
const fieldRenewed = "renewed"

const (
	// mostRenewals is more than the filter names at once.
	mostRenewals = 256
	// renewTimeout is for how long a request waits for what is looked up of others.
	renewTimeout = 10 * time.Millisecond
)

// writeRenewals writes what is said of requests, one after another; nothing where one of them is not what the filter says.
func writeRenewals(said *structpb.ListValue) string {
	var all []string
	for _, one := range said.GetValues() {
		all = append(all, one.GetStringValue())
		if len(all) > mostRenewals || strings.Contains(one.GetStringValue(), renewalEnd) { // else the answers could be taken for others'
			return ""
		}
	}
	return strings.Join(all, renewalEnd)
}

// renewalEnd stands between two of them. No header's value has it (RFC 9110 §5.5).
const renewalEnd = "\x00"

// again is the request of which this is said, as if it had come in the place of q: from the client's address, with Authorization
// and the inputs, a line each. Where that cannot be read it is the zero request, which has no rule and is not let pass.
func (q *request) again(said string, inputs []string) request {
	lines := strings.Split(said, "\n")
	if len(lines) != 2+len(inputs) {
		return request{}
	}
	other := request{carried: q.carried, client: lines[0], authorization: lines[1]}
	for i, name := range inputs {
		other.setHeader(name, lines[2+i])
	}
	return other
}

// inputs are the [Shared.LeaseInputs] of the rule.
func (c *carried) inputs() []string {
	return Shared{Origins: strings.Fields(c.origins), Cookie: c.cookie, Subprotocol: c.subprotocol}.LeaseInputs()
}

// renew decides about the requests that are named beside q, and returns what may be remembered of each. Those for which the time does not
// suffice are missing at the end. The lease was asked for before.
func (s *Server) renew(ctx context.Context, q *request, lease time.Duration) *structpb.ListValue {
	if q.lease.renew == "" {
		return nil
	}
	bounded := withTimeout(ctx, renewTimeout)
	defer bounded.done()
	inputs, renewed := q.carried.inputs(), &structpb.ListValue{}
	for said := range strings.SplitSeq(q.lease.renew, renewalEnd) {
		if bounded.Err() != nil {
			break
		}
		other := q.again(said, inputs)
		renewed.Values = append(renewed.Values, structpb.NewStructValue(s.renewal(bounded, &other, lease)))
	}
	return renewed
}

// renewal is what may be remembered of one of them; empty: nothing.
func (s *Server) renewal(ctx context.Context, q *request, lease time.Duration) *structpb.Struct {
	v, ask := q.judge()
	if ask {
		s.lookup(ctx, q, &v, lease)
	}
	if v.lease <= 0 {
		return &structpb.Struct{}
	}
	s.renewals.Inc()
	return v.leaseMetadata()
}

// renewedBytes are the entry of leaseMetadata for what was renewed, as bytes.
func (v *verdict) renewedBytes() []byte {
	if v.renewed == nil {
		return nil
	}
	b, err := proto.Marshal(&structpb.Struct{Fields: map[string]*structpb.Value{fieldRenewed: structpb.NewListValue(v.renewed)}})
	if err != nil { // a user's id that is no UTF-8, which is not presentable: then nothing is renewed
		return nil
	}
	return b
}
