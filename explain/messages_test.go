package explain

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"
	"gatepost/xds"
)

// explained returns the printed explanation of a request.
func explained(t *testing.T, e *Explainer, line string) string {
	t.Helper()
	a, err := e.Explain(t.Context(), requestOf(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	var out bytes.Buffer
	if err := a.Print(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// wants checks that the output contains each text. A text after ! must be absent.
func wants(t *testing.T, what, out string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		unwanted, not := strings.CutPrefix(text, "!")
		if strings.Contains(out, unwanted) == not {
			t.Errorf("%s: want %q in\n%s", what, text, out)
		}
	}
}

// TestTokenStepNeedsALookup checks that a token that was not looked up is reported neither as live
// nor as unknown: a method that is not allowed is rejected first.
func TestTokenStepNeedsALookup(t *testing.T) {
	sessions := sessions{}
	alice := sessions.open(t, tokens.FormatUUID, "alice", time.Hour)
	for _, given := range []string{shop, shop + origins} {
		e := explainerOf(t, given, sessions)
		for _, line := range []string{
			"PROPFIND /orders [Origin: https://shop.example]",
			"PROPFIND /orders [Origin: https://shop.example] [Authorization: " + alice + "]",
			"DELETE /orders [Origin: https://shop.example] [Authorization: nonsense]",
		} {
			wants(t, line, explained(t, e, line), "response   405", "!is live", "!the right form")
		}
	}
}

func TestForwardedRequestStatesThatUpstreamsAreNotChecked(t *testing.T) {
	out := explained(t, explainerOf(t, shop, nil), "GET /items")
	wants(t, "GET /items", out, `the request is sent to the service "items"`, "whether its upstream responds is not checked", "!answers")
}

func TestPreflightThatTheBrowserRejects(t *testing.T) {
	const preflight = "OPTIONS /orders [Origin: https://a.example] [Access-Control-Request-Method: "
	e := explainerOf(t, shop, nil)
	for line, texts := range map[string][]string{
		preflight + "GET]": {"the response lists what the browser may send", "!change"},
		preflight + "GET] [Access-Control-Request-Headers: authorization, Content-Type]": {"the response lists what the browser may send", "!change"},
		preflight + "GET] [Access-Control-Request-Headers: authorization,x-other,x-more]": {
			"response   200", "a browser does not send the request: the headers x-other, x-more are not in cors.allow_headers", "add them to cors.allow_headers in gateway.yaml",
		},
		preflight + "GET] [Access-Control-Request-Headers: x-other]": {
			"the header x-other is not in cors.allow_headers", "add it to cors.allow_headers in gateway.yaml",
		},
		preflight + "DELETE]": {
			"a browser does not send the request: DELETE is not allowed here", `add DELETE to allowed_methods of "orders" at gateway.yaml:3`,
		},
		preflight + "DELETE] [Access-Control-Request-Headers: x-other]": {"DELETE is not allowed here", "the header x-other is not in cors.allow_headers"},
		// Browsers send GET, HEAD and POST regardless of the preflight (Fetch standard,
		// CORS-safelisted method).
		"OPTIONS /items [Origin: https://a.example] [Access-Control-Request-Method: POST]": {
			"the browser sends POST all the same, and gets 405", `add POST to allowed_methods of "items" at gateway.yaml:5`,
		},
		"OPTIONS /nothing [Origin: https://a.example] [Access-Control-Request-Method: GET]": {"the response lists what the browser may send"},
	} {
		wants(t, line, explained(t, e, line), texts...)
	}
	listed := explainerOf(t, shop+origins, nil)
	wants(t, "an unlisted origin", explained(t, listed, preflight+"GET] [Access-Control-Request-Headers: x-other]"), "its origin is not on the list")
}

func TestTokenInAnUnreadSubprotocol(t *testing.T) {
	const token = "7a6b3c50-1c2d-4e5f-8a9b-0c1d2e3f4a5b"
	const upgrade = " [Connection: Upgrade] [Upgrade: websocket] [Sec-WebSocket-Protocol: "
	websocket := strings.Replace(shop, "path: /orders,", "path: /orders, websocket: true,", 1)
	unset := explainerOf(t, websocket, nil)
	set := explainerOf(t, strings.Replace(websocket, "tokens: {", "tokens: {subprotocol: my.token, ", 1), nil)
	for _, c := range []struct {
		e     *Explainer
		line  string
		texts []string
	}{
		{unset, "GET /orders" + upgrade + "chat, gatepost.bearer." + token + "]", []string{
			"response   401", `a token (09743b17) is offered as a subprotocol after "gatepost.bearer." and is not read: tokens.subprotocol is not set`,
			"set tokens.subprotocol: gatepost.bearer in gateway.yaml",
		}},
		{unset, "GET /live" + upgrade + "gatepost.bearer." + token + "]", []string{
			"is not read: tokens.subprotocol is not set; the upstream receives it",
		}},
		{unset, "GET /orders" + upgrade + token + "]", []string{"is offered as a subprotocol by itself and is not read: tokens.subprotocol is not set"}},
		{unset, "GET /orders" + upgrade + "chat]", []string{"the request has none", "!offered"}},
		{set, "GET /orders" + upgrade + "gatepost.bearer." + token + "]", []string{
			`is not read: tokens.subprotocol is my.token`, "offer it as my.token.TOKEN",
		}},
		{set, "GET /orders" + upgrade + "my.token." + token + "]", []string{"09743b17 has the right form", "!offered"}},
	} {
		out := explained(t, c.e, c.line)
		wants(t, c.line, out, append(c.texts, "!"+token)...)
	}
}

func TestHostsAreExplained(t *testing.T) {
	const text = `services:
  - {name: orders, path: /orders, hosts: [api.example, "*.shop.example"], upstreams: ["http://orders"]}
  - {name: items, path: /items, authenticate: false, upstreams: ["http://items"]}
`
	e := explainerOf(t, text, nil)
	for _, c := range []struct{ host, path, service, change string }{
		{"www.shop.example:80", "/orders/5", "orders at gateway.yaml:2 serves /orders and the paths below it under *.shop.example, api.example, with a token", "send Authorization"},
		{"shop.example", "/orders/5", "none", `/orders is the path of "orders" at gateway.yaml:2 under *.shop.example, api.example: send such a Host, or add shop.example to its hosts`},
		{"api.example", "/order", "none", `did you mean /orders, the path of "orders"`},
		{"user@api.example", "/orders", "none: the host user@api.example is rejected", "send the host as a name"},
		{"api.example", "/items", "items at gateway.yaml:3 serves /items and the paths below it, without a token", ""},
	} {
		a, err := e.Explain(t.Context(), Request{Target: c.path, Header: []Field{{"Host", c.host}}})
		if err != nil {
			t.Fatal(err)
		}
		service := slices.IndexFunc(a.Steps, func(s Step) bool { return s.Part == "service" })
		if a.Steps[service].Text != c.service || !strings.HasPrefix(a.Outcomes[0].Change, c.change) {
			t.Errorf("%s%s: %q, %q; want %q, %q", c.host, c.path, a.Steps[service].Text, a.Outcomes[0].Change, c.service, c.change)
		}
	}
}

func TestLimitsRedirectsAndMaintenanceAreExplained(t *testing.T) {
	e := explainerOf(t, `rate_limits: [{requests: 8, by: gateway}]
services:
  - {name: items, path: /items, authenticate: false, upstreams: ["http://items"], max_request_bytes: 1KB,
     rate_limits: [{requests: 5, per: 1m, by: address}, {requests: 7, burst: 9, header: X-Key}, {requests: 1, by: service},
       {requests: 2, by: service, scope: cluster}, {requests: 3, by: address, scope: cluster, without_redis: refuse}]}
  - {name: moved, path: /moved, authenticate: false, redirect: {to: "https://new.example/shop", status: 308}}
  - {name: down, path: /down, upstreams: ["http://down"], maintenance: {message: Back at noon, retry_after: 60s}}
`, nil)
	wants(t, "no service", explained(t, e, "GET /nobody"), "429 above 8 requests to the gateway in 1s of all clients together")
	wants(t, "limits", explained(t, e, "GET /items"),
		"429 above 5 requests to the service in 1m of each address, 5 at once (not counted here)", "429 above 7 requests to the service in 1s of each value of the header x-key, 9 at once",
		"429 above 1 requests to the service in 1s of all clients together, 1 at once (not", "429 above 2 requests to the service in 1s of all clients together, 2 at once, through all gateways; no limit without Redis (not",
		"429 above 3 requests to the service in 1s of each address, 3 at once, through all gateways; 503 without Redis (not", "413 for a body of more than 1000 bytes", "is sent to the service")
	wants(t, "a preflight", explained(t, e, "OPTIONS /items [Origin: https://a.example] [Access-Control-Request-Method: GET]"), "!429 above")
	wants(t, "a redirect", explained(t, e, "GET /moved/5?x=1"), "308", `the service "moved" redirects to https://new.example/shop/5?x=1`, "location: https://new.example/shop/5?x=1")
	wants(t, "maintenance", explained(t, e, "GET /down/5"), "503", `the service "down" is in maintenance`, "Back at noon", "remove maintenance at gateway.yaml:7", "retry-after: 60")
}

// TestTheCertificateIsExplained: for a whole URL of https, the certificate of its host comes first.
func TestTheCertificateIsExplained(t *testing.T) {
	d, err := definitions.Parse("gatepost.yaml", []byte(`
tls: {certificates: [{cert_file: shop.pem, key_file: k}, {cert_file: api.pem, key_file: k}], http3: true}
services: [{name: items, path: /items, authenticate: false, upstreams: ["http://127.0.0.1:1"]}]
`))
	if err != nil {
		t.Fatal(err)
	}
	certificates := []xds.Certificate{{Name: "shop.pem", ServerNames: []string{"*.example", "*.shop.example"}}, {Name: "api.pem", ServerNames: []string{"api.shop.example"}}}
	const refused, nameless = "refused: no certificate has the name shop.test", "refused: a client that names no server"
	for _, c := range []struct{ url, want, withDefault string }{
		{"https://API.shop.example.:443/items", "certificate api.pem, for HTTP/1.1, HTTP/2 and HTTP/3\n", "certificate api.pem"},
		{"https://a.b.shop.example/items", "certificate shop.pem", "certificate shop.pem"},
		{"wss://shop.example/items", "certificate shop.pem", "certificate shop.pem"},
		{"https://shop.test/items", refused, "certificate api.pem"},
		{"https://shop.test/nothing", refused, "certificate api.pem"},
		{"https://10.0.0.1/items", nameless, "certificate api.pem"},
		{"https://[::1]:443/items", nameless, "certificate api.pem"},
		{"http://api.shop.example/items", "", ""},
		{"/items", "", ""},
	} {
		for _, isDefault := range []bool{false, true} {
			o, want := options, c.want
			if o.Certificates = slices.Clone(certificates); isDefault {
				o.Certificates[1].Default, want = true, c.withDefault
			}
			e, err := New(Config{Definitions: d, Options: o, Gateway: &Gateway{Address: "gate:1", Status: &gatewayv1.Status{Version: "other"}}})
			if err != nil {
				t.Fatal(err)
			}
			r, err := NewRequest("GET", c.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			a, err := e.Explain(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := a.Print(&out); err != nil {
				t.Fatal(err)
			}
			wants(t, c.url, out.String(), "gate:1 serves other definitions")
			text := "  handshake  " + want
			switch {
			case strings.HasPrefix(want, "refused"):
				wants(t, c.url, out.String(), text, "response   none", "Envoy closes the connection", "#handshake_refused", "!forwarded", "!  path ")
			case want != "":
				wants(t, c.url, out.String(), text, "  path       /")
			default:
				wants(t, c.url, out.String(), "!handshake", "  path       /items\n")
			}
		}
	}
}
