package xds

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/testrun"
	"gatepost/tokens"
	"gatepost/tokens/redistest"
)

// at returns a value of a line in JSON; "" if it is omitted.
func at(t testing.TB, line string, path ...string) string {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(line), &value); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	for _, name := range path {
		object, _ := value.(map[string]any)
		value = object[name]
	}
	if value == nil {
		return ""
	}
	return fmt.Sprint(value)
}

// TestEachRequestHasALine: with who and why for a miss, a hit, a denial and a public service; and without secrets.
func TestEachRequestHasALine(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, "access_log: {format: ecs}\n"+decidingShop, 1)
	token := d.login("ada", time.Hour)
	bearer, mallory := "authorization: bearer "+token, "x-user-id: mallory"
	var ids []string
	for _, r := range []struct{ method, path, header string }{
		{"GET", "/orders/5?token=" + token, bearer},
		{"GET", "/orders/5?token=" + token, bearer},
		{"GET", "/ORDERS/6", mallory},
		{"GET", "/items/7?token=" + token, mallory},
		{"GET", "/items/8", bearer},
		{"GET", "/nobody?token=" + token, mallory},
		{"PUT", definitions.VersionPath, mallory},
		{"GET", "/a%2fb?token=" + token, bearer},
	} {
		got := d.do(r.method, r.path, r.header, "user-agent: test", "cookie: s="+token, "referer: http://x/?"+token)
		ids = append(ids, got.Header.Get("x-request-id"))
	}
	var got, sessions []string
	for i, line := range d.log.await(t, len(ids)) {
		if unknown := strings.Contains(strings.Replace(line, `"response_flags":"-"`, "", 1), `"-"`); unknown || strings.Contains(line, `""`) {
			t.Errorf("a value that is not known has a text: %s", line)
		}
		if id := at(t, line, "session", "id"); id != "" {
			sessions = append(sessions, id)
		}
		if strings.Contains(line, token) || strings.Contains(line, "token=") {
			t.Errorf("a token or a query: %s", line)
		}
		if id := at(t, line, "http", "request", "id"); id != ids[i] {
			t.Errorf("the request id is %q, and the client received %q", id, ids[i])
		}
		if at(t, line, "client", "address") != "127.0.0.1" || at(t, line, "http", "request", "method") == "" || at(t, line, "event", "duration") == "" {
			t.Errorf("incomplete: %s", line)
		}
		got = append(got, strings.Join([]string{
			at(t, line, "http", "response", "status_code"), at(t, line, "url", "path"), at(t, line, "gatepost", "route"), at(t, line, "service", "name"),
			at(t, line, "gatepost", "decision"), at(t, line, "gatepost", "reason"), at(t, line, "user", "id"), at(t, line, "user_agent", "original"),
		}, "|"))
		if (at(t, line, "gatepost", "version") == "") != (at(t, line, "service", "name") == "") {
			t.Errorf("a service without a version, or the reverse: %s", line)
		}
	}
	if len(sessions) != 2 || sessions[0] != sessions[1] {
		t.Errorf("the sessions of a miss and a hit are %q, want the same twice", sessions)
	}
	want := []string{
		"200|/orders/5|orders|orders|allow|token_known|ada|test",
		"200|/orders/5|orders|orders|allow|module|ada|test",
		"401|/ORDERS/6|orders|orders|deny|token_missing||test",
		"200|/items/7|items|items|allow|public||test",
		"200|/items/8|items|items|allow|public||test",
		"404|/nobody|unknown 404||deny|not_found||test",
		"200|" + definitions.VersionPath + "|version|||||test",
		"400|/a/b|||deny|malformed||test",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestLineOfText: what a client chooses comes last.
func TestLineOfText(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, "access_log: {format: text}\n"+decidingShop, 1)
	bearer := "authorization: bearer " + d.login("ada", time.Hour)
	d.do("GET", "/orders/5?x=1", bearer)
	d.do("GET", "/orders/5?x=1", bearer)
	d.do("GET", "/items/7")
	for i, want := range []string{"token_known user=ada /orders/5", "module user=ada /orders/5", "public user=- /items/7"} {
		line := d.log.await(t, 3)[i]
		service, end, _ := strings.Cut(line, " upstream=")
		_, reason, _ := strings.Cut(service, " reason=")
		_, user, _ := strings.Cut(end, " user=")
		user, id, _ := strings.Cut(user, " request_id=")
		_, path, _ := strings.Cut(id, " GET ")
		if got := reason + " user=" + user + " " + path; got != want+"\n" {
			t.Errorf("%q, want %q in %s", got, want, line)
		}
	}
}

// TestARequestIDImitatesNoUser: the client of a proxy that passes x-request-id on chooses what comes after the user.
func TestARequestIDImitatesNoUser(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "access_log: {format: text}\n"+shop+proxies+"}")
	g.from(proxy, "", "GET", "/items", "x-forwarded-for: 192.0.2.1", "x-request-id: 1 session=s user=admin")
	line := g.log.await(t, 1)[0]
	if before, _, found := strings.Cut(line, " user=- request_id=1 session=s user=admin GET /items"); !found || strings.Contains(before, "=s") {
		t.Error(line)
	}
}

// TestTheClientsOfEachPartOfTheLogWriteNoFields: each part has a format of its own, and a client writes into it only
// what is the text of a JSON value.
func TestTheClientsOfEachPartOfTheLogWriteNoFields(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, "access_log: {format: ecs}\n"+decidingShop, 1)
	bearer := "authorization: bearer " + d.login("ada", time.Hour)
	const forged = `","user":{"id":"admin"},"x":"\`
	paths := []string{"/orders/1", "/orders/2", "/items/3", "/orders/4", "/nobody", "/.gatepost/version"}
	for n, path := range paths {
		credentials := bearer
		if n == 3 {
			credentials = "x-user-id: " + forged
		}
		envoytest.RawRequest(t, d.addr, request("GET", path+forged, credentials, "user-agent: "+forged+"\xff\t", "x-request-id: "+forged,
			"x-user-id: admin", "connection: close"))
	}
	for n, text := range d.log.await(t, len(paths)) {
		user := map[bool]string{true: "ada"}[n < 2]
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if at(t, text, "user", "id") != user || line["x"] != nil || !strings.HasPrefix(at(t, text, "url", "path"), paths[n]) || strings.Count(text, "\n") != 1 {
			t.Errorf("%s", text)
		}
		if agent := at(t, text, "user_agent", "original"); !strings.HasPrefix(agent, forged) {
			t.Errorf("the user agent is %q", agent)
		}
	}
}

// TestTheNamesOfUsersWriteNoFields: a user service names users, and a name is in the metadata of the module if the
// request is a hit. A slot has a name of 39 bytes with the session, one of 55 without, and no longer one.
func TestTheNamesOfUsersWriteNoFields(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, "access_log: {format: ecs}\n"+decidingShop, 1)
	const forged = `","user":{"id":"admin"},"x":"\%é`
	users := []string{"-", forged, "%REQ(:PATH)%"}
	for _, length := range []int{39, 40, 55, 56, 255, 256} {
		users = append(users, forged+strings.Repeat("u", length-len(forged)))
	}
	for _, user := range users {
		bearer := "authorization: bearer " + d.login(user, time.Hour)
		d.get("/orders/5", bearer)
		if hit := d.get("/orders/5", bearer); hit != (len(user) <= 55) {
			t.Errorf("%d bytes: the second request is a hit: %v", len(user), hit)
		}
	}
	for n, text := range d.log.await(t, 2*len(users)) {
		user, isHit := users[n/2], n%2 == 1 && len(users[n/2]) <= 55
		if got := at(t, text, "user", "id"); got != user || strings.Count(text, "\n") != 1 {
			t.Errorf("the user is %q, want %q, in %s", got, user, text)
		}
		if known := at(t, text, "session", "id") != ""; known != (!isHit || len(user) <= 39) {
			t.Errorf("%d bytes, hit %v: the session is known: %v, in %s", len(user), isHit, known, text)
		}
		if reason := map[bool]string{true: "module", false: "token_known"}[isHit]; at(t, text, "gatepost", "reason") != reason || at(t, text, "gatepost", "decision") != "allow" {
			t.Errorf("%d bytes, hit %v: %s", len(user), isHit, text)
		}
	}
}

// TestEachRequestIsInOnePartOfTheLog: whatever metadata and headers it has.
func TestEachRequestIsInOnePartOfTheLog(t *testing.T) {
	d, err := definitions.Parse("gatepost.yaml", []byte("access_log: {format: ecs}\nservices: []"))
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{gw: d.Gateway}
	parts := b.accessLog()
	for _, r := range requestsOfTheLog() {
		var matched []int
		for n, part := range parts {
			if r.matches(t, part.GetFilter()) {
				matched = append(matched, n)
			}
		}
		if len(matched) != 1 {
			t.Errorf("%+v is in the parts %v", r, matched)
		}
	}
}

// requestOfTheLog is what the filters of the log's parts look at.
type requestOfTheLog struct {
	status    uint32
	described map[string]bool
	headers   map[string]string
}

// requestsOfTheLog are all kinds of requests: by status, metadata and headers.
func requestsOfTheLog() (all []requestOfTheLog) {
	for _, status := range []uint32{0, 101, 199, 200, 399, 400, 503} {
		for _, described := range []map[string]bool{
			nil, {"reason": true, "decision": true}, {"hit": true}, {"hit": true, "hit_session": true},
			{"hit": true, "hit_session": true, "reason": true, "decision": true}, {"hit_session": true}, {"decision": true},
		} {
			for _, path := range []string{"/", "/.gatepost/version", "/.well-known/acme-challenge/x"} {
				all = append(all,
					requestOfTheLog{status, described, map[string]string{":path": path}},
					requestOfTheLog{status, described, map[string]string{":path": path, "access-control-request-method": "GET"}})
			}
		}
	}
	return all
}

// matches does as Envoy does with a filter.
func (r requestOfTheLog) matches(t *testing.T, filter *accesslogv3.AccessLogFilter) bool {
	t.Helper()
	each := func(f *accesslogv3.AccessLogFilter) bool { return r.matches(t, f) }
	switch by := filter.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_AndFilter:
		return !slices.ContainsFunc(by.AndFilter.GetFilters(), func(f *accesslogv3.AccessLogFilter) bool { return !each(f) })
	case *accesslogv3.AccessLogFilter_OrFilter:
		return slices.ContainsFunc(by.OrFilter.GetFilters(), each)
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		than := by.StatusCodeFilter.GetComparison().GetValue().GetDefaultValue()
		if by.StatusCodeFilter.GetComparison().GetOp() == accesslogv3.ComparisonFilter_LE {
			return r.status <= than
		}
		return r.status >= than
	case *accesslogv3.AccessLogFilter_MetadataFilter:
		if !r.described[by.MetadataFilter.GetMatcher().GetPath()[0].GetKey()] {
			return by.MetadataFilter.GetMatchIfKeyNotFound().GetValue()
		}
		return by.MetadataFilter.GetMatcher().GetValue().GetPresentMatch()
	case *accesslogv3.AccessLogFilter_HeaderFilter:
		m := by.HeaderFilter.GetHeader()
		value, present := r.headers[m.GetName()]
		return (present && strings.HasPrefix(value, m.GetStringMatch().GetPrefix())) != m.GetInvertMatch()
	}
	t.Fatalf("the filter %v is not known here", filter)
	return false
}

// TestRoutesHaveWhatTheirLinesNeed: the line of a request that its route decides has "-" for a value that is missing.
func TestRoutesHaveWhatTheirLinesNeed(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text, options := string(archive.Files[0].Data), testOptions
		if strings.Contains(text, "access_log:") {
			continue
		}
		options.ClusterLimits, options.Module = true, Module{Library: "/m.so", Table: "/t"}
		for _, r := range allRoutes(buildWith(t, "access_log: {format: ecs}\n"+text, options)) {
			path := r.GetMatch().GetPath() + r.GetMatch().GetPrefix()
			if r.GetDirectResponse().GetStatus() >= 400 || strings.HasSuffix(r.GetName(), " preflight") || strings.HasPrefix(path, "/.") {
				continue
			}
			seen++
			fields := r.GetMetadata().GetFilterMetadata()[logMetadata].GetFields()
			needed := []string{logService, logVersion}
			if fields[authz.MetadataDecision] != nil {
				needed = append(needed, authz.MetadataReason)
			} else if r.GetTypedPerFilterConfig()[filterOwnToken] == nil {
				t.Errorf("%s: the route %q has no decision, and is none that needs a token", file, r.GetName())
			}
			if name := fields[logService].GetStringValue(); r.GetTypedPerFilterConfig()[filterModule] != nil && name != r.GetName() {
				t.Errorf("%s: the route %q is of the service %q", file, r.GetName(), name)
			}
			for _, key := range needed {
				if fields[key].GetStringValue() == "" {
					t.Errorf("%s: the route %q has no %s", file, r.GetName(), key)
				}
			}
		}
	}
	if seen == 0 {
		t.Error("no routes")
	}
}

// TestErrorsOnly: what was answered well has no line.
func TestErrorsOnly(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, "access_log: {format: ecs, errors_only: true}\n"+decidingShop, 1)
	d.do("GET", "/items/7")
	d.do("GET", "/orders/5")
	if line := d.log.await(t, 1)[0]; at(t, line, "http", "response", "status_code") != "401" {
		t.Error(line)
	}
}

// TestMetadataOfACheckIsNoMark: ext_authz reads the mark before it asks, and of this request alone.
func TestMetadataOfACheckIsNoMark(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, "access_log: {format: ecs}\n"+decidingShop, 1)
	mark, err := structpb.NewStruct(map[string]any{authz.MetadataHit: "mallory", authz.MetadataHitSession: "s"})
	if err != nil {
		t.Fatal(err)
	}
	for name, reply := range map[string]func(*authv3.AttributeContext) *authv3.CheckResponse{"an allow": allow, "a denial": deny(typev3.StatusCode_Unauthorized, "no")} {
		d.answers(func(a *authv3.AttributeContext) *authv3.CheckResponse {
			r := reply(a)
			r.DynamicMetadata = mark
			return r
		})
		for range 3 {
			d.do("GET", "/orders/5")
		}
		if asked := len(d.asked()); asked != 3 {
			t.Errorf("%s: %d questions about 3 requests", name, asked)
		}
	}
	if d.hits() != 0 {
		t.Error("a request was taken for a hit")
	}
}

// TestAccessLogThatIsOffChangesNothing: no resource differs from those of definitions that do not mention it.
func TestAccessLogThatIsOffChangesNothing(t *testing.T) {
	text := `services: [{name: a, path: /a, upstreams: ["http://127.0.0.1:1"]}]`
	if without, off := build(t, text), build(t, "access_log: {format: off}\n"+text); without.Version != off.Version {
		t.Error("the version differs")
	}
}

// TestChangeOfAServiceLeavesTheAccessLog: else each change would drain connections.
func TestChangeOfAServiceLeavesTheAccessLog(t *testing.T) {
	const log = "access_log: {format: ecs}\n"
	before := build(t, log+`services: [{name: a, path: /a, upstreams: ["http://127.0.0.1:1"]}]`)
	after := build(t, log+`services: [{name: b, path: /b, authenticate: false, upstreams: ["http://127.0.0.1:2"]}]`)
	one, other := resourcesOf(before, resourcev3.ListenerType)[ListenerName], resourcesOf(after, resourcev3.ListenerType)[ListenerName]
	if !proto.Equal(one, other) {
		t.Error("the listener differs")
	}
}

// TestAccessLogWithoutACollectorIsRefused: lines that nobody receives would be lost in silence.
func TestAccessLogWithoutACollectorIsRefused(t *testing.T) {
	d, err := definitions.Parse("gatepost.yaml", []byte("access_log: {format: ecs, to: otlp}\nservices: []"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Build(d.Gateway, testOptions); err == nil || !strings.Contains(err.Error(), "set OTEL_EXPORTER_OTLP_ENDPOINT") {
		t.Error(err)
	}
}

// TestSettingsOfTheCollectorCountOnlyIfItIsUsed: an error in them is that of the definitions that send the log there.
func TestSettingsOfTheCollectorCountOnlyIfItIsUsed(t *testing.T) {
	opts := testOptions
	opts.LogsError = errors.New("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf: write grpc")
	for log, want := range map[string]error{"": nil, "access_log: {format: ecs}": nil, "access_log: {format: ecs, to: otlp}": opts.LogsError} {
		d, err := definitions.Parse("gatepost.yaml", []byte(log+"\nservices: []"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Build(d.Gateway, opts); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", log, err, want)
		}
	}
}

// TestVersionOfAServiceIsItsOwn: a change of another service changes none of its routes, but the settings do.
func TestVersionOfAServiceIsItsOwn(t *testing.T) {
	route := func(settings, upstream string) (first, second string) {
		text := settings + `
services:
  - {name: a, path: /a, upstreams: ["http://127.0.0.1:1"]}
  - {name: b, path: /b, upstreams: ["` + upstream + `"]}`
		routes := build(t, "access_log: {format: ecs}\n"+text).routes
		return routes.get("/a").version, routes.get("/b").version
	}
	a, b := route("", "http://127.0.0.1:2")
	if otherA, otherB := route("", "http://127.0.0.1:3"); otherA != a || otherB == b {
		t.Errorf("another upstream of b: a is changed: %v, b: %v", otherA != a, otherB != b)
	}
	if otherA, _ := route("tokens: {refresh_grace: 7s}", "http://127.0.0.1:2"); otherA == a {
		t.Error("other settings: a is unchanged")
	}
}

const ends = `
listen: LISTEN
access_log: {format: ecs}
tokens: {subprotocol: gatepost.bearer}
tls: {redirect: false, certificates: [{cert_file: c, key_file: k}], client_certificates: {ca_file: c, mode: optional}}
services:
  - {name: orders, path: /orders, allowed_methods: [GET, POST], upstreams: ["SECURED"], max_request_bytes: 10}
  - {name: open, path: /open, upstreams: ["SECURED"]}
  - {name: admin, path: /admin, scopes: [admin], upstreams: ["SECURED"]}
  - {name: few, path: /few, upstreams: ["SECURED"], rate_limits: [{requests: 1, per: 24h, by: user}]}
  - {name: items, path: /items, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1, per: 24h, by: service}]}
  - {name: dead, path: /dead, authenticate: false, upstreams: ["http://127.0.0.1:9"]}
  - {name: moved, path: /moved, authenticate: false, redirect: {to: "https://new.example", status: 308}}
  - {name: down, path: /down, upstreams: ["SECURED"], maintenance: {message: later}}
  - {name: partner, path: /partner, client_certificate: true, authenticate: false, upstreams: ["PUBLIC"]}
`

// TestEachEndOfADecisionHasALine: with the decision and the reason, also if Envoy ends the request by itself.
func TestEachEndOfADecisionHasALine(t *testing.T) {
	t.Parallel()
	testEnds(t, ends, "", map[string]string{
		"GET /items":            "200 items allow public",
		"GET /items/again":      "429 items deny rate_limited",
		"GET /orders":           "200 orders allow token_known ada",
		"GET /orders/anonymous": "401 orders deny token_missing",
		"GET /orders/unknown":   "401 orders deny token_unknown",
		"GET /orders/malformed": "401 orders deny token_malformed",
		"GET /admin":            "403 admin deny scope_missing ada",
		"GET /few":              "200 few allow token_known ada",
		"GET /few/again":        "429 few deny rate_limited ada",
		"POST /orders/large":    "413 orders deny body_too_large ada",
		"POST /orders/unparsed": "400 orders deny malformed ada", // after the decision of the module
		"POST /open/unparsed":   "400 open deny malformed",       // before the decision
		"DELETE /orders":        "405 orders deny method_not_allowed",
		"GET /nobody":           "404 deny not_found",
		"GET /items/%2e%2e;/x":  "400 deny malformed",
		"GET /items%2f":         "400 deny malformed",
		"GET /dead":             "503 dead allow public",
		"GET /moved":            "308 moved allow public",
		"GET /down":             "503 down deny maintenance",
		"GET /partner":          "403 partner deny certificate_missing",
		"GET /orders/chat":      "403 orders deny upgrade_refused",
		"GET /ORDERS/chat":      "403 orders deny upgrade_refused",
		"GET /admin/unanswered": "503 admin error check_failed",
	})
}

// TestEachEndWithOriginsHasALine: Gatepost is asked about the origin then, and that it allows it is not the end.
func TestEachEndWithOriginsHasALine(t *testing.T) {
	t.Parallel()
	testEnds(t, ends+`origins: ["https://shop.example"]`+"\n", "https://shop.example", map[string]string{
		"GET /items":        "200 items allow public",
		"GET /items/again":  "429 items deny rate_limited",
		"DELETE /orders":    "405 orders deny method_not_allowed",
		"GET /nobody":       "404 deny not_found",
		"GET /moved":        "308 moved allow public",
		"GET /down":         "503 down deny maintenance",
		"OPTIONS /orders":   "200 orders allow preflight",
		"GET /moved/origin": "401 moved deny origin_refused",
	})
}

// testEnds sends the requests, each with a live token if its last segment has no other meaning, and compares the lines.
func testEnds(t *testing.T, text, origin string, want map[string]string) {
	t.Helper()
	d := startDeciding(t, text, 1)
	token := d.login("ada", time.Hour)
	unknown, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		t.Fatal(err)
	}
	decide := d.reply
	names := slices.Sorted(maps.Keys(want))
	for _, name := range names {
		method, path, _ := strings.Cut(name, " ")
		headers, body := []string{"authorization: Bearer " + token, "origin: " + origin, "connection: close"}, ""
		switch last := path[strings.LastIndex(path, "/"):]; last {
		case "/anonymous":
			headers = headers[1:]
		case "/unknown":
			headers[0] = "authorization: Bearer " + unknown.Reveal()
		case "/malformed":
			headers[0] = "authorization: Bearer x"
		case "/origin":
			headers[1] = "origin: https://other.example"
		case "/large":
			headers, body = append(headers, "content-length: 11"), "01234567890"
		case "/unparsed":
			headers, body = append(headers, "transfer-encoding: chunked"), "x\r\n"
		case "/chat":
			headers[2] = "connection: upgrade"
			headers = append(headers, "upgrade: websocket")
		case "/unanswered":
			d.answers(noAnswer)
		}
		if method == "OPTIONS" {
			headers = append(headers, "access-control-request-method: GET")
		}
		envoytest.RawRequest(t, d.addr, append(request(method, path, headers...), body...))
		d.answers(decide)
	}
	got := map[string]string{}
	for n, line := range d.log.await(t, len(names)) {
		got[names[n]] = endOf(t, line)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// endOf returns the status, the service, the decision, its reason and the user of a line.
func endOf(t *testing.T, line string) string {
	t.Helper()
	return strings.Join(strings.Fields(strings.Join([]string{
		at(t, line, "http", "response", "status_code"), at(t, line, "service", "name"),
		at(t, line, "gatepost", "decision"), at(t, line, "gatepost", "reason"), at(t, line, "user", "id"),
	}, " ")), " ")
}

// TestEachEndOfAClusterLimitHasALine: above it, and if Redis does not count.
func TestEachEndOfAClusterLimitHasALine(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	server := redistest.Start(t)
	g := startCluster(t, server, "access_log: {format: ecs}\n"+clusterLimited, 1)[0]
	g.do("GET", "/key")
	g.do("GET", "/key")
	server.Kill()
	g.do("GET", "/open")
	g.do("GET", "/closed")
	var got []string
	for _, line := range g.log.await(t, 4) {
		got = append(got, endOf(t, line))
	}
	expected := []string{"200 key allow public", "429 key deny rate_limited", "200 open allow public", "503 closed error not_counted"}
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Error(diff)
	}
}
