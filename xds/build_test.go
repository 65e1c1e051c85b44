package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// breakRoutes makes the scope of a name into one that Envoy refuses: two virtual hosts for every domain.
func breakRoutes(t testing.TB, s *Snapshot, name string) {
	t.Helper()
	scope := resourcesOf(s, resourcev3.ScopedRouteType)[name].(*routev3.ScopedRouteConfiguration)
	config := scope.GetRouteConfiguration()
	second := proto.CloneOf(config.VirtualHosts[0])
	second.Name = "second"
	config.VirtualHosts = append(config.VirtualHosts, second)
	broken, err := newResource(scope)
	if err != nil {
		t.Fatal(err)
	}
	s.routes.add(name, broken)
}

func TestTheSameDefinitionsMakeTheSameVersion(t *testing.T) {
	one := build(t, `services: [{name: a, path: /a, upstreams: ["http://b", "http://a"]}, {name: b, path: /b, upstreams: ["http://c"]}]`)
	two := build(t, `services: [{name: b, path: /b, upstreams: ["http://c"]}, {name: a, path: /a, upstreams: ["http://a", "http://b"]}]`)
	if one.Version != two.Version || one.routes.version != two.routes.version || one.clusters.version != two.clusters.version {
		t.Errorf("versions %s and %s", one.Version, two.Version)
	}
	other := build(t, `services: [{name: a, path: /a, upstreams: ["http://a", "http://b"]}, {name: b, path: /B, upstreams: ["http://c"]}]`)
	if other.Version == one.Version {
		t.Error("another path, the same version")
	}
	if other.clusters.version != one.clusters.version || other.listeners.version != one.listeners.version {
		t.Error("another path changed more than the routes")
	}
}

// TestAChangeOfAServiceLeavesTheListener: connections outlive it.
func TestAChangeOfAServiceLeavesTheListener(t *testing.T) {
	base := build(t, `services: [{name: a, path: /a, upstreams: ["http://a"]}]`)
	for _, text := range []string{
		`services: []`,
		`{identity: {user_header: x-uid}, services: [{name: a, path: /a, upstreams: ["http://a"]}]}`,
		`{cors: {max_age: 5s}, tokens: {path: /login}, services: [{name: a, path: /a, upstreams: ["http://a"]}]}`,
	} {
		if got := build(t, text); got.listeners.version != base.listeners.version || got.Version == base.Version {
			t.Errorf("%s: listener %s, was %s", text, got.listeners.version, base.listeners.version)
		}
	}
}

// TestWhatCannotBeServedIsRefused: also where the definitions' own checks were left out.
func TestWhatCannotBeServedIsRefused(t *testing.T) {
	for _, c := range []struct {
		spoil func(*gatewayv1.Gateway)
		want  string
	}{
		{func(g *gatewayv1.Gateway) { g.Services[1].Name = "a" }, `service "a"`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/A" }, `its path "/A" is that of service "a"`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/token/x" }, `keeps the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/.Gatepost" }, `keeps the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/b/../c" }, `service "b": the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/b/" }, `service "b": the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/b%2f" }, `service "b": the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "b" }, `service "b": the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Authenticate = nil }, `service "b": its defaults`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Timeout = nil }, `service "b": its defaults`},
		{func(g *gatewayv1.Gateway) { g.Services[1].AllowedMethods = nil }, `service "b": its defaults`},
		{func(g *gatewayv1.Gateway) { *g.Services[1].Authenticate = false; g.Services[1].Scopes = []string{"x"} }, `scopes need a token`},
		{func(g *gatewayv1.Gateway) {
			g.Services[1].Websocket, g.Services[1].AllowedMethods = true, []string{"POST"}
		}, `service "b": a WebSocket begins with GET`},
		{func(g *gatewayv1.Gateway) { g.Tokens.Cookie = "session" }, `tokens.cookie needs origins`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"ftp://x"} }, `service "b": upstream`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://x?y=1"} }, `service "b": upstream`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://u:p@x"} }, `service "b": upstream`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://x:0"} }, `service "b": upstream`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://x", "https://y"} }, `differs from the first`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://x/a", "http://y/b"} }, `differs from the first`},
		{func(g *gatewayv1.Gateway) { g.Origins = []string{"*"} }, `origin "*"`},
		{func(g *gatewayv1.Gateway) { g.Origins = []string{"null"} }, `origin "null"`},
		{func(g *gatewayv1.Gateway) { g.Cors.AllowCredentials = true }, `needs origins`},
		{func(g *gatewayv1.Gateway) { g.Listen = "localhost:80" }, `listen`},
		{func(g *gatewayv1.Gateway) { g.Listen = "" }, `defaults were not filled in`},
		{func(g *gatewayv1.Gateway) { g.Tokens.Path = "/" }, `tokens.path`},
		{func(g *gatewayv1.Gateway) { g.Identity.UserHeader = "Authorization" }, `identity.user_header`},
		{func(g *gatewayv1.Gateway) { g.Identity.UserHeader = "x y" }, `identity.user_header`},
		{func(g *gatewayv1.Gateway) { g.Identity.UserHeader = ":path" }, `identity.user_header`},
		{func(g *gatewayv1.Gateway) { g.Services[1].AllowedMethods = []string{"GET", "G%T"} }, `service "b": the methods`},
	} {
		g := parse(t, `services: [{name: a, path: /a, upstreams: ["http://a"]}, {name: b, path: /b, upstreams: ["http://b"]}]`)
		c.spoil(g)
		s, err := Build(g, testOptions)
		if s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want an error with %q", err, c.want)
		}
	}
	if _, err := Build(parse(t, "services: []"), Options{}); err == nil {
		t.Error("without the clusters of Gatepost itself")
	}
	clash := testOptions
	clash.HTTPCluster = "service/b"
	_, err := Build(parse(t, `services: [{name: a, path: /a, upstreams: ["http://a"]}, {name: b, path: /b, upstreams: ["http://b"]}]`), clash)
	if err == nil || strings.Count(err.Error(), "also one of the bootstrap's") != 1 {
		t.Errorf("a service's cluster with the name of Gatepost's own: %v", err)
	}
}

// TestEveryRouteBearsARule: there is no way around ext_authz but to say so.
func TestEveryRouteBearsARule(t *testing.T) {
	for _, origins := range []string{"", "origins: [\"https://a.example\"]\n"} {
		s := build(t, origins+`services: [{name: a, path: /a, upstreams: ["http://a"]}, {name: b, path: /b, authenticate: false, upstreams: ["http://b"]}]`)
		for name, scope := range resourcesOf(s, resourcev3.ScopedRouteType) {
			frame := scope.(*routev3.ScopedRouteConfiguration).GetRouteConfiguration().GetVirtualHosts()[0].GetTypedPerFilterConfig()
			for _, r := range routesOf(scope) {
				rule := r.GetTypedPerFilterConfig()[filterAuthz]
				if rule == nil { // the scope's, which may only say that there is nothing to ask
					rule = frame[filterAuthz]
				}
				says := new(extauthzv3.ExtAuthzPerRoute)
				if err := rule.UnmarshalTo(says); err != nil {
					t.Fatal(err)
				}
				open := says.GetDisabled()
				if !open && says.GetCheckSettings().GetContextExtensions()["authenticate"] == "" {
					t.Errorf("origins %q: %s: route %q bears no rule", origins, name, r.GetName())
				}
				if want := r.GetName() == "version" || origins == "" && r.GetName() != "a"; open != want {
					t.Errorf("origins %q: %s: route %q is open: %v", origins, name, r.GetName(), open)
				}
			}
		}
	}
}

// FuzzBuild: whatever the definitions are, they are refused or make valid resources that lead somewhere.
func FuzzBuild(f *testing.F) {
	f.Add("orders", "/orders", "http://orderservice/base", "GET,POST", "https://shop.example", "x-user-id", "/token", true, int64(15))
	f.Add("", "/", "https://[::1]:1", "", "", "", "", false, int64(-1))
	f.Add("a\xff", "/%", "http://\x00", "get", "*", "a:b", "/.gatepost", true, int64(1)<<40)
	f.Fuzz(func(t *testing.T, name, path, upstream, methods, origin, header, tokens string, authenticate bool, timeout int64) {
		g := parse(t, `services: [{name: a, path: /a, upstreams: ["http://a"]}]`)
		s := proto.CloneOf(g.Services[0])
		s.Name, s.Path, s.Upstreams, s.Authenticate = name, path, strings.Split(upstream, " "), &authenticate
		s.AllowedMethods = strings.Split(methods, ",")
		s.Timeout.Seconds = timeout
		g.Services = append(g.Services, s)
		g.Identity.UserHeader, g.Tokens.Path = header, tokens
		if origin != "" {
			g.Origins = strings.Split(origin, " ")
		}
		snapshot, err := Build(g, testOptions)
		if err != nil {
			if snapshot != nil {
				t.Fatal("an error and a snapshot")
			}
			return
		}
		for _, m := range messages(snapshot) {
			if err := m.(validated).ValidateAll(); err != nil {
				t.Fatal(err)
			}
			if _, err := proto.Marshal(m); err != nil {
				t.Fatal(err)
			}
		}
		slices.Reverse(g.Services)
		if again, err := Build(g, testOptions); err != nil || again.Version != snapshot.Version {
			t.Fatalf("in another order: %v", err)
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		g := manyServices(b, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Build(g, testOptions); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestABuilderMakesWhatBuildMakes: whatever it built before, and it takes over what is the same.
func TestABuilderMakesWhatBuildMakes(t *testing.T) {
	const one, two = `{name: a, path: /a, upstreams: ["http://a"]}`, `{name: b, path: /B/c, upstreams: ["http://b/base"]}`
	var b Builder
	for _, text := range []string{
		"services: [" + one + "]", "services: [" + one + "," + two + "]", "services: [" + two + "," + one + "]",
		`services: [{name: a, path: /a, authenticate: false, upstreams: ["http://a"]},` + two + "]",
		`services: [` + one + `,{name: b, path: /B/c, upstreams: ["http://b/other"]}]`,
		`services: [` + one + `,` + two + `,{name: root, path: /, upstreams: ["http://r"]}]`,
		`{origins: ["https://a.example"], services: [` + one + "," + two + "]}",
		`{origins: ["https://a.example"], tokens: {lease: 1s}, services: [` + one + "," + two + "]}",
		`{identity: {user_header: x-uid}, services: [` + one + "," + two + "]}",
		"services: [" + two + "]", "services: []", "services: [" + one + "," + two + "]",
	} {
		got, err := b.Build(parse(t, text), testOptions)
		if err != nil {
			t.Fatal(err)
		}
		want := build(t, text)
		if got.Version != want.Version {
			t.Errorf("%s: version %s, want %s", text, got.Version, want.Version)
		}
		for _, typeURL := range order {
			if !maps.Equal(got.of(typeURL).versions, want.of(typeURL).versions) || got.of(typeURL).version != want.of(typeURL).version {
				t.Errorf("%s: %s differ", text, typeURL)
			}
		}
	}
	alone, err := b.Build(parse(t, "services: ["+one+"]"), testOptions)
	if err != nil {
		t.Fatal(err)
	}
	both, err := b.Build(parse(t, "services: ["+two+","+one+"]"), testOptions)
	if err != nil || both.clusters.byName["service/a"] != alone.clusters.byName["service/a"] || both.routes.byName["/a"] != alone.routes.byName["/a"] {
		t.Errorf("what is the same was made anew: %v", err)
	}
	bad := parse(t, `services: [{name: a, path: /a, upstreams: ["http://a"]}]`)
	bad.Services[0].Upstreams = []string{"ftp://x"}
	if _, err := b.Build(bad, testOptions); err == nil {
		t.Fatal("a bad service is built")
	}
	withheld := testOptions
	withheld.Withheld = []string{"a"}
	got, err := b.Build(parse(t, "services: ["+one+"]"), withheld)
	if err != nil || got.clusters.byName["service/a"] != nil {
		t.Fatalf("a withheld service has its cluster: %v", err)
	}
}

func BenchmarkBuildAgain(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			g := manyServices(b, n)
			var builder Builder
			if _, err := builder.Build(g, testOptions); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				g.Services[n/2].Path = fmt.Sprint("/moved", i)
				if _, err := builder.Build(g, testOptions); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func manyServices(b *testing.B, n int) *gatewayv1.Gateway {
	g := parse(b, `services: [{name: a, path: /a, upstreams: ["http://10.0.0.1:8080"]}]`)
	one := g.Services[0]
	g.Services = nil
	for i := range n {
		s := proto.CloneOf(one)
		s.Name, s.Path = fmt.Sprint("s", i), fmt.Sprint("/s", i)
		g.Services = append(g.Services, s)
	}
	return g
}

// TestNoRouteLeavesTheUsersIdToTheClient: where no decision writes over the header, the route takes it out.
func TestNoRouteLeavesTheUsersIdToTheClient(t *testing.T) {
	for _, more := range []string{"", `origins: ["https://a.example"]`, `tokens: {lease: 1s}`} {
		s := build(t, more+`
identity: {user_header: x-caller}
services:
  - {name: secured, path: /a, upstreams: ["http://a"]}
  - {name: public, path: /a/b, authenticate: false, upstreams: ["http://b"]}
  - {name: live, path: /live, authenticate: false, websocket: true, upstreams: ["http://c"]}
  - {name: root, path: /, upstreams: ["http://d"]}
`)
		for _, r := range allRoutes(s) {
			if r.GetRoute() == nil || r.GetRoute().GetCluster() == nowhere {
				continue
			}
			rule := new(extauthzv3.ExtAuthzPerRoute)
			if packed := r.GetTypedPerFilterConfig()[filterAuthz]; packed != nil {
				if err := packed.UnmarshalTo(rule); err != nil {
					t.Fatal(err)
				}
			}
			decided := rule.GetCheckSettings().GetContextExtensions()["authenticate"] == "true"
			taken := slices.Contains(r.GetRequestHeadersToRemove(), "x-caller")
			if decided == taken {
				t.Errorf("%s %s: route %q: decided %v, taken out %v", more, r.GetMatch(), r.GetName(), decided, taken)
			}
		}
	}
}
