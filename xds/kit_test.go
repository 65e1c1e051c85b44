package xds

import (
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testOptions are the names of the bootstrap's clusters, as package envoy gives them.
var testOptions = Options{GRPCCluster: "gatepost-grpc", HTTPCluster: "gatepost-http"}

// parse reads definitions as a file would be.
func parse(t testing.TB, text string) *gatewayv1.Gateway {
	t.Helper()
	d, err := definitions.Parse("gateway.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d.Gateway
}

// build makes a snapshot of definitions that are known to be good.
func build(t testing.TB, text string) *Snapshot {
	t.Helper()
	s, err := Build(parse(t, text), testOptions)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// messages are all resources of a snapshot.
func messages(s *Snapshot) []proto.Message {
	var out []proto.Message
	for _, part := range []set{s.listeners, s.routes, s.clusters} {
		for _, r := range part.byName {
			out = append(out, r)
		}
	}
	return out
}
