package xds

import (
	"os"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"

	"gatepost/definitions"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(confinedEnvoy); path != "" {
		confine(path)
	}
	goleak.VerifyTestMain(m)
}

// long skips a test with -short. It takes seconds on any machine: it waits for timers of Envoy, or makes load.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
}

// testOptions are the names of the bootstrap's clusters, as package envoy gives them.
var testOptions = Options{GRPCCluster: "gatepost-grpc", HTTPCluster: "gatepost-http"}

// parse parses definitions that are known to be good.
func parse(t testing.TB, text string) *definitions.Gateway {
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
	return buildWith(t, text, testOptions)
}

func buildWith(t testing.TB, text string, options Options) *Snapshot {
	t.Helper()
	s, err := Build(parse(t, text), options)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages(s) {
		validate(t, m)
	}
	return s
}

// validate checks a message, and each message that is packed in it, against the rules of Envoy's messages.
func validate(t testing.TB, m proto.Message) {
	t.Helper()
	err := protorange.Range(m.ProtoReflect(), func(at protopath.Values) error {
		switch last := at.Index(-1); last.Step.Kind() {
		case protopath.RootStep, protopath.AnyExpandStep: // both cover what is in them, but not what is packed
			if ruled, ok := last.Value.Message().Interface().(interface{ ValidateAll() error }); ok {
				return ruled.ValidateAll()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// messages are all resources of a snapshot.
func messages(s *Snapshot) []proto.Message {
	var out []proto.Message
	for _, typeURL := range order {
		for _, m := range resourcesOf(s, typeURL) {
			out = append(out, m)
		}
	}
	return out
}

// resourcesOf are the resources of a type, which are known to be good.
func resourcesOf(s *Snapshot, typeURL string) map[string]proto.Message {
	all, err := s.Resources(typeURL)
	if err != nil {
		panic(err)
	}
	return all
}

// routesOf are the routes of a scope.
func routesOf(scope proto.Message) []*routev3.Route {
	return routesIn(scope.(*routev3.ScopedRouteConfiguration))
}

// hostOfRoute are the routes of all scopes with their virtual hosts.
func hostOfRoute(s *Snapshot) map[*routev3.Route]*routev3.VirtualHost {
	all := map[*routev3.Route]*routev3.VirtualHost{}
	for _, scope := range resourcesOf(s, resourcev3.ScopedRouteType) {
		for _, vhost := range scope.(*routev3.ScopedRouteConfiguration).GetRouteConfiguration().GetVirtualHosts() {
			for _, r := range vhost.GetRoutes() {
				all[r] = vhost
			}
		}
	}
	return all
}

// allRoutes are the routes of all scopes.
func allRoutes(s *Snapshot) (all []*routev3.Route) {
	for _, scope := range resourcesOf(s, resourcev3.ScopedRouteType) {
		all = append(all, routesOf(scope)...)
	}
	return all
}
