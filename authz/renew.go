package authz

import (
	"context"
	"iter"
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

// eachRenewal reads what writeRenewals has written: the requests, each as if it had come in the place of q; ok says whether
// it could be read.
func (q *request) eachRenewal() iter.Seq2[request, bool] {
	return func(yield func(request, bool) bool) {
		if q.lease.renew == "" {
			return
		}
		inputs := q.carried.inputs()
		for said := range strings.SplitSeq(q.lease.renew, renewalEnd) {
			if !yield(q.again(strings.Split(said, "\n"), inputs)) {
				return
			}
		}
	}
}

// again is the request of which these values are said: the client's address, Authorization, and the inputs.
func (q *request) again(said, inputs []string) (request, bool) {
	if len(said) != 2+len(inputs) {
		return request{}, false
	}
	other := request{carried: q.carried, client: said[0], authorization: said[1]}
	for i, name := range inputs {
		other.setHeader(name, said[2+i])
	}
	return other, true
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
	renewed := &structpb.ListValue{}
	for other, ok := range q.eachRenewal() {
		if bounded.Err() != nil {
			break
		}
		said := &structpb.Struct{}
		if ok {
			if v, ask := other.judge(); ask {
				if s.lookup(bounded, &other, &v, lease); v.lease > 0 {
					said = v.leaseMetadata()
					s.renewals.Inc()
				}
			}
		}
		renewed.Values = append(renewed.Values, structpb.NewStructValue(said))
	}
	return renewed
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
