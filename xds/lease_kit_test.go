package xds

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/authz"
	"gatepost/envoy/envoytest"
	"gatepost/tokens"
)

// clocksOfTheTest has the two clocks show what the last request that names them says, in milliseconds. Nothing else
// of the filter is another than in production.
const clocksOfTheTest = `
local now, wall = 1000000, 5000000
function gatepost_clocks() return now, wall end
local on_request = envoy_on_request
function envoy_on_request(handle)
  local headers = handle:headers()
  now = tonumber((headers:get("x-test-now"))) or now
  wall = tonumber((headers:get("x-test-wall"))) or wall
  headers:remove("x-test-now")
  headers:remove("x-test-wall")
  return on_request(handle)
end
`

// The times at which the tests begin.
const (
	noon     = 1_000_000
	wallNoon = 5_000_000
)

// leasing is a gateway whose Envoy remembers decisions.
type leasing struct {
	*gateway
	envoy *envoytest.Envoy
}

// leaseSetup is what a test may want otherwise of the filter.
type leaseSetup struct {
	// append is put behind the script; replace are pairs of texts in it, old and new.
	append  string
	replace []string
	workers int
}

// startLeasing is startGateway with an Envoy that can be asked, and a stand-in for the sidecar that grants a lease
// of 900 ms with each answer.
func startLeasing(t testing.TB, text string, s leaseSetup) *leasing {
	t.Helper()
	envoytest.Require(t)
	g := &gateway{checker: startChecker(t), t: t, addr: envoytest.Addr(t),
		tokens: envoytest.Upstream(t), secured: envoytest.Upstream(t), public: envoytest.Upstream(t)}
	g.answers(granting(900, "ada"))
	text = strings.NewReplacer("LISTEN", g.addr, "SECURED", g.secured.URL(), "PUBLIC", g.public.URL()).Replace(text)
	resources := messages(build(t, text))
	for i, r := range resources {
		if l, ok := r.(*listenerv3.Listener); ok {
			resources[i] = withScript(t, l, s)
		}
	}
	e := envoytest.Start(t, envoytest.Options{
		GRPC: g.checker.addr, HTTP: g.tokens.Addr(), Resources: resources, Listen: []string{g.addr}, Concurrency: s.workers,
	})
	t.Cleanup(func() {
		if n := e.Stat("http.gatepost.lua.lease.errors"); n != 0 {
			t.Errorf("the filter failed %d times", n)
		}
	})
	return &leasing{g, e}
}

// withScript changes the script of the lease filter in a listener.
func withScript(t testing.TB, l *listenerv3.Listener, s leaseSetup) *listenerv3.Listener {
	t.Helper()
	script := leaseScript
	for i := 0; i < len(s.replace); i += 2 {
		if strings.Count(script, s.replace[i]) != 1 {
			t.Fatalf("%q is not once in the script", s.replace[i])
		}
		script = strings.Replace(script, s.replace[i], s.replace[i+1], 1)
	}
	hcm, err := managerOf(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range hcm.GetHttpFilters() {
		lua := new(luav3.Lua)
		if f.GetName() != filterLease || f.GetTypedConfig().UnmarshalTo(lua) != nil {
			continue
		}
		lua.DefaultSourceCode = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: script + s.append}}
		f.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(t, lua)}
	}
	l = proto.CloneOf(l)
	l.FilterChains[0].Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, hcm)}
	return l
}

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// granting allows as the sidecar does, with a lease.
func granting(milliseconds float64, user string) func(*authv3.AttributeContext) *authv3.CheckResponse {
	return func(a *authv3.AttributeContext) *authv3.CheckResponse {
		r := allow(a)
		ok := r.GetOkResponse()
		ok.Headers = []*corev3.HeaderValueOption{setHeader(a.GetContextExtensions()["user_header"], user)}
		if a.GetContextExtensions()["forward_token"] != "true" {
			ok.HeadersToRemove = []string{"authorization"}
		}
		r.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			"lease": structpb.NewNumberValue(milliseconds), "user": structpb.NewStringValue(user),
		}}
		return r
	}
}

// renewing allows as granting does, and renews for so many milliseconds what a question names beside the request, for the user that
// users says of what is said of it; not where it says none.
func renewing(milliseconds float64, users map[string]string) func(*authv3.AttributeContext) *authv3.CheckResponse {
	return func(a *authv3.AttributeContext) *authv3.CheckResponse {
		r := granting(900, "ada")(a)
		said := renewsOf(a)
		if said == nil {
			return r
		}
		renewed := &structpb.ListValue{}
		for _, one := range said {
			fields := map[string]*structpb.Value{}
			if user := users[one]; user != "" {
				fields["lease"], fields["user"] = structpb.NewNumberValue(milliseconds), structpb.NewStringValue(user)
			}
			renewed.Values = append(renewed.Values, structpb.NewStructValue(&structpb.Struct{Fields: fields}))
		}
		r.DynamicMetadata.Fields["renewed"] = structpb.NewListValue(renewed)
		return r
	}
}

// renewsOf is what a question names beside its request.
func renewsOf(a *authv3.AttributeContext) []string {
	var all []string
	ask := a.GetMetadataContext().GetFilterMetadata()[authz.LeaseNamespace].GetFields()["ask"].GetStructValue()
	for _, one := range ask.GetFields()["renew"].GetListValue().GetValues() {
		all = append(all, one.GetStringValue())
	}
	return all
}

// renews is what the last question names beside its request, sorted.
func (l *leasing) renews() []string {
	l.t.Helper()
	all := l.asked()
	return slices.Sorted(slices.Values(renewsOf(all[len(all)-1])))
}

// sidecar decides as the real one does, about tokens in memory, with leases of 900 ms.
type sidecar struct {
	t    testing.TB
	live map[tokens.Hash]*tokens.Session
	uses []string // of which users, and from where
}

// decides puts a sidecar in the place of the stand-in.
func (l *leasing) decides() *sidecar {
	l.t.Helper()
	s := &sidecar{t: l.t, live: map[tokens.Hash]*tokens.Session{}}
	server, err := authz.New(authz.Config{
		Sessions: tokens.LookupFunc(func(_ context.Context, h tokens.Hash) (*tokens.Session, error) {
			if session := s.live[h]; session != nil {
				return session, nil
			}
			return nil, tokens.ErrUnknown
		}),
		Seen:  func(h tokens.Holder, address string) { s.uses = append(s.uses, h.User()+" "+address) },
		Lease: func() time.Duration { return 900 * time.Millisecond },
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.answers(func(a *authv3.AttributeContext) *authv3.CheckResponse {
		r, err := server.Check(context.Background(), &authv3.CheckRequest{Attributes: a})
		if err != nil {
			l.t.Error(err)
		}
		return r
	})
	return s
}

// login returns the token of a new session.
func (s *sidecar) login(user string) tokens.Token {
	s.t.Helper()
	token, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		s.t.Fatal(err)
	}
	ends := time.Now().Add(time.Hour)
	s.live[token.Hash()] = &tokens.Session{Hash: token.Hash(), ID: user, User: user, Expires: ends, Ends: ends}
	return token
}

// said is what a question says of a request whose headers that count have these values.
func said(headers ...string) string { return "127.0.0.1\n" + strings.Join(headers, "\n") }

// visit sends a request at the times, in milliseconds after the start of the test.
func (l *leasing) visit(path string, now, wall float64, headers ...string) envoytest.Response {
	l.t.Helper()
	headers = append(headers, fmt.Sprintf("x-test-now: %f", noon+now), fmt.Sprintf("x-test-wall: %f", wallNoon+wall))
	return l.do("GET", path, headers...)
}

// twoInUse has a token and another one remembered from 0 and 5 ms on, and the other one used.
func (l *leasing) twoInUse() {
	l.t.Helper()
	l.get("/orders/5", 0, 0, token)
	l.get("/orders/5", 5, 5, otherToken)
	l.get("/orders/5", 6, 6, otherToken)
}

// get visits, and says whether it was a hit. It must be let pass.
func (l *leasing) get(path string, now, wall float64, headers ...string) bool {
	l.t.Helper()
	before, hits := len(l.asked()), l.hits()
	if got := l.visit(path, now, wall, headers...); got.Status != 200 {
		l.t.Fatalf("%s %q: %d %s", path, headers, got.Status, got.Body)
	}
	asked, hit := len(l.asked())-before, l.hits()-hits
	if asked+hit != 1 {
		l.t.Fatalf("%s %q: %d questions and %d hits, want one of them", path, headers, asked, hit)
	}
	return hit == 1
}

// hits is how many requests passed ext_authz without being asked about, by Envoy's own account.
func (l *leasing) hits() int { return l.envoy.Stat("http.gatepost.ext_authz.disabled") }

// asks is what the filter says to the sidecar with the last question: the hits by service, or nil where it asked
// for no lease.
func (l *leasing) asks() map[string]float64 {
	l.t.Helper()
	all := l.asked()
	ask := all[len(all)-1].GetMetadataContext().GetFilterMetadata()[authz.LeaseNamespace].GetFields()["ask"].GetStructValue()
	if ask == nil {
		return nil
	}
	hits := map[string]float64{}
	for service, n := range ask.GetFields()["hits"].GetStructValue().GetFields() {
		hits[service] = n.GetNumberValue()
	}
	return hits
}

const (
	token, otherToken = "authorization: Bearer 6e1c0000-0000-4000-8000-00000000000a", "authorization: " + bearerOther
	bearerOther       = "Bearer 6e1c0000-0000-4000-8000-00000000000b"
)

const leasingShop = `
listen: LISTEN
tokens: {lease: 1s, authenticator: {url: "http://users.example/authenticate"}}
services:
  - {name: orders, path: /orders, upstreams: ["SECURED"]}
  - {name: parts, path: /parts, upstreams: ["SECURED"]}
  - {name: kept, path: /kept, forward_token: true, upstreams: ["SECURED"]}
  - {name: items, path: /items, authenticate: false, upstreams: ["PUBLIC"]}
  - {name: live, path: /live, websocket: true, upstreams: ["SECURED"]}
`

// cookieShop is leasingShop where a cookie may bear the token, and one origin may call.
var cookieShop = strings.Replace(leasingShop, "{lease: 1s,", "{lease: 1s, cookie: __Host-s,", 1) + "origins: [\"https://shop.example\"]\n"

var requestID = regexp.MustCompile(`(?m)^x-request-id: [0-9a-f-]{36}\r$`)

// wire is what came to an upstream, byte by byte, since the last time, but for the one header that is another with each request.
func wire(r *envoytest.Recorder) string {
	raw := r.Raw()
	r.Reset()
	return requestID.ReplaceAllString(raw, "x-request-id: one\r")
}
