package xds

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestAnAnswerInPiecesSaysTheSame(t *testing.T) {
	snapshot := build(t, `services: [{name: a, path: /a, upstreams: ["http://b"]}, {name: c, path: /c, upstreams: ["http://a"]}]`)
	answers := []*discoveryv3.DeltaDiscoveryResponse{
		{},
		{SystemVersionInfo: "1", TypeUrl: "t", Nonce: "7", RemovedResources: []string{"/x", "/y"}, ControlPlane: &corev3.ControlPlane{Identifier: "us"}},
		{TypeUrl: "t", Resources: []*discoveryv3.Resource{{}, {Name: "n"}, {Version: "v", Resource: &anypb.Any{}}}},
	}
	for _, part := range []set{snapshot.listeners, snapshot.clusters, snapshot.routes} {
		answer := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: "t", Nonce: "8"}
		for _, one := range part.all {
			answer.Resources = append(answer.Resources, &discoveryv3.Resource{Name: one.name, Version: one.version, Resource: &anypb.Any{TypeUrl: "t", Value: one.raw}})
		}
		answers = append(answers, answer)
	}
	for _, want := range answers {
		pieces, err := inPieces{want}.MarshalMessage()
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range want.GetResources() {
			if one.Resource == nil {
				one.Resource = new(anypb.Any) // which says nothing either
			}
		}
		got := new(discoveryv3.DeltaDiscoveryResponse)
		if err := proto.Unmarshal(pieces.Materialize(), got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%v became %v, %v", want, got, err)
		}
	}
}
