package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"gatepost/admin"
	"gatepost/convention"
	"gatepost/envoy/envoytest"
)

// operator calls the admin API of a gateway, and holds each call and its answer to openapi.yaml.
type operator struct {
	t      *testing.T
	g      *gateway
	token  string
	router routers.Router
	called map[string]bool // the operations that were called
}

const operatorToken = "operate-0123456789abcdef0123456789abcdef"

// withOperator returns the options of a gateway with a token file, and its path.
func withOperator(t *testing.T) (setup, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte("operate alice "+operatorToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return setup{Args: []string{"--admin-token-file", path}}, path
}

func newOperator(t *testing.T, g *gateway) *operator {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(admin.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	doc.Servers = openapi3.Servers{{URL: "http://" + g.Admin}}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	openapi3filter.RegisterBodyDecoder("application/yaml", openapi3filter.PlainBodyDecoder)
	openapi3filter.RegisterBodyDecoder("application/gzip", openapi3filter.FileBodyDecoder)
	return &operator{t: t, g: g, token: operatorToken, router: router, called: map[string]bool{}}
}

// call sends a request and returns the body of the answer, which must have this status.
func (o *operator) call(method, path, body string, status int) []byte {
	o.t.Helper()
	request, err := http.NewRequestWithContext(o.t.Context(), method, "http://"+o.g.Admin+path, strings.NewReader(body))
	if err != nil {
		o.t.Fatal(err)
	}
	if o.token != "" {
		request.Header.Set("Authorization", "Bearer "+o.token)
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	route, parameters, err := o.router.FindRoute(request)
	if err != nil {
		o.t.Fatalf("%s %s is not in openapi.yaml: %v", method, path, err)
	}
	o.called[route.Method+" "+route.Path] = true
	options := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}
	input := &openapi3filter.RequestValidationInput{Request: request, PathParams: parameters, Route: route, Options: options}
	if err := openapi3filter.ValidateRequest(o.t.Context(), input); err != nil && status < 400 {
		o.t.Errorf("%s %s does not fit openapi.yaml: %v", method, path, err)
	}
	// The validation has added defaults to the body.
	request.Body, request.ContentLength, request.GetBody = io.NopCloser(strings.NewReader(body)), int64(len(body)), nil
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		o.t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	if response.StatusCode != status {
		o.t.Fatalf("%s %s: %d %s, want %d", method, path, response.StatusCode, got, status)
	}
	err = openapi3filter.ValidateResponse(o.t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: response.StatusCode, Header: response.Header, Body: io.NopCloser(bytes.NewReader(got)), Options: options,
	})
	if err != nil {
		o.t.Errorf("the answer to %s %s does not fit openapi.yaml: %v", method, path, err)
	}
	return got
}

// read is call of a GET, with its JSON.
func read[T any](o *operator, path string) (value T) {
	o.t.Helper()
	if err := json.Unmarshal(o.call("GET", path, "", http.StatusOK), &value); err != nil {
		o.t.Fatalf("%s: %v", path, err)
	}
	return value
}

// TestAdminAPI uses each call against a real gateway with a file, and holds all answers to openapi.yaml.
func TestAdminAPI(t *testing.T) {
	t.Parallel()
	options, _ := withOperator(t)
	upstream := envoytest.Upstream(t)
	definitions := func(more string) string {
		return fmt.Sprintf(`
tokens: {authenticator: {url: "%s/users/authenticate", user_field: username}, shield: {user: {failures: 1, base: 900s}}}
services:
  - {name: orders, path: /orders, upstreams: ["%s/base"], allowed_methods: [GET]}
%s`, users(t).URL(), upstream.URL(), more)
	}
	g := start(t, definitions(""), options)
	o := newOperator(t, g)

	overview := read[admin.Overview](o, "/api/v1/overview")
	if !overview.Ready || overview.Services != 1 || overview.Envoys != 1 || overview.May != "operate" {
		t.Errorf("the overview is %+v", overview)
	}
	o.call("GET", "/api/v1/status", "", http.StatusOK)
	if got := string(o.call("GET", "/api/v1/certificates", "", http.StatusOK)); strings.TrimSpace(got) != "[]" {
		t.Errorf("without certificates there are %s", got)
	}
	o.call("GET", "/api/v1/config?service=orders", "", http.StatusOK)
	o.call("GET", "/api/v1/config?service=none", "", http.StatusNotFound)
	if got := o.call("GET", "/api/v1/definitions", "", http.StatusOK); !bytes.Contains(got, []byte("name: orders")) {
		t.Errorf("the definitions are %s", got)
	}
	if got := o.call("GET", "/api/v1/openapi.yaml", "", http.StatusOK); !bytes.Equal(got, admin.OpenAPI) {
		t.Error("openapi.yaml is served otherwise")
	}

	// Services have what Envoy knows of their upstreams.
	if s := read[admin.Services](o, "/api/v1/services").Services; len(s) != 1 || !s[0].LastRequest.IsZero() {
		t.Errorf("before a request the services are %+v", s)
	}
	login := func(user, password string) answer {
		return g.Do("POST", "/token", fmt.Sprintf(`{"username":%q,"password":%q}`, user, password), "Content-Type: application/json")
	}
	token := login("bob", "right").Header.Get("token")
	g.Do("GET", "/orders", "", "Authorization: Bearer "+token)
	envoytest.Eventually(t, "Envoy to count the request", func() bool {
		s := read[admin.Services](o, "/api/v1/services").Services
		return len(s) == 1 && s[0].State == admin.StateServed && s[0].File == g.File && len(s[0].Upstreams) == 1 && s[0].Upstreams[0].Requests == 1 &&
			time.Since(s[0].LastRequest) < time.Minute
	})

	// A denial is seen live and in the list, and is explained.
	live, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+g.Admin+"/api/v1/denials/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := http.DefaultClient.Do(live)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	sent := bufio.NewScanner(stream.Body)
	if !sent.Scan() || sent.Text() != "" {
		t.Fatalf("the stream begins with %q, %v", sent.Text(), sent.Err())
	}
	o.called["GET /api/v1/denials/live"] = true
	g.Do("GET", "/orders/7?secret=1", "")
	var denied struct{ Service, Reason, Path string }
	if !sent.Scan() || json.Unmarshal(sent.Bytes(), &denied) != nil || denied.Service != "orders" || denied.Reason != "token_missing" || denied.Path != "/orders/7" {
		t.Errorf("the stream has %q, want the denial", sent.Text())
	}
	if got := o.call("GET", "/api/v1/denials", "", http.StatusOK); !bytes.Contains(got, []byte(`"path":"/orders/7"`)) {
		t.Errorf("the denials are %s", got)
	}
	explained := string(o.call("POST", "/api/v1/explain", `{"method":"POST","url":"/orders/7"}`, http.StatusOK))
	if !strings.Contains(explained, `"reason":"method_not_allowed"`) || !strings.Contains(explained, `"status":405`) || !strings.Contains(explained, g.File) {
		t.Errorf("explained %s", explained)
	}
	live405 := g.Do("POST", "/orders/7", "")
	if live405.Status != http.StatusMethodNotAllowed {
		t.Errorf("the gateway answers %d", live405.Status)
	}
	if got := string(o.call("POST", "/api/v1/explain", `{"url":"/orders","any_token":true}`, http.StatusOK)); strings.Count(got, `"when"`) != 2 {
		t.Errorf("explained %s, want both states of the token", got)
	}
	withToken := fmt.Sprintf(`{"url":"/orders","headers":[{"name":"Authorization","value":"Bearer %s"}]}`, token)
	got := string(o.call("POST", "/api/v1/explain", withToken, http.StatusOK))
	if !strings.Contains(got, `"reason":"forwarded"`) && !strings.Contains(got, `"reason":"token_known"`) || strings.Contains(got, token) {
		t.Errorf("explained %s, want the live token, unquoted", got)
	}
	o.call("POST", "/api/v1/explain", `{"url":"orders"}`, http.StatusBadRequest)
	o.call("POST", "/api/v1/exchange", `{"code":"guess"}`, http.StatusUnauthorized)
	o.call("POST", "/api/v1/lookup", `{"token_hash":"`+strings.Repeat("0", 64)+`"}`, http.StatusOK)

	// Sessions.
	sessions := read[[]admin.Session](o, "/api/v1/users/bob/sessions")
	if len(sessions) != 1 {
		t.Fatalf("bob has %d sessions", len(sessions))
	}
	o.call("DELETE", "/api/v1/sessions/"+sessions[0].ID, "", http.StatusOK)
	if got := g.Do("GET", "/orders", "", "Authorization: Bearer "+token); got.Status != http.StatusUnauthorized {
		t.Errorf("with the token of an ended session: %d", got.Status)
	}
	o.call("DELETE", "/api/v1/sessions/"+sessions[0].ID, "", http.StatusNotFound)
	o.call("DELETE", "/api/v1/users/bob/sessions", "", http.StatusOK)

	// The shield: two failures of a user, who is forgiven.
	for range 2 {
		login("carol", "wrong")
	}
	held := read[map[string][]admin.Held](o, "/api/v1/shield?user=Carol")
	if len(held["users"]) != 1 || !held["users"][0].Until.After(time.Now()) {
		t.Fatalf("held are %+v", held)
	}
	if got := login("carol", "right"); got.Status != http.StatusTooManyRequests {
		t.Errorf("a held login: %d", got.Status)
	}
	o.call("POST", "/api/v1/shield/forgive", `{"user":"CAROL"}`, http.StatusOK)
	if got := login("carol", "right"); got.Status != http.StatusOK {
		t.Errorf("a forgiven login: %d", got.Status)
	}
	o.call("POST", "/api/v1/shield/forgive", `{"user":"carol","key":"00"}`, http.StatusBadRequest)

	// A change of the file is a revision; a rollback replaces the file.
	await := func(n int, served bool) {
		t.Helper()
		envoytest.Eventually(t, fmt.Sprintf("revision %d", n), func() bool {
			all := read[[]admin.Revision](o, "/api/v1/revisions")
			return len(all) == n && strings.Contains(string(o.call("GET", "/api/v1/definitions", "", http.StatusOK)), "name: items") == served
		})
	}
	await(1, false)
	before, err := os.ReadFile(g.File)
	if err != nil {
		t.Fatal(err)
	}
	g.Define(definitions(`  - {name: items, path: /items, authenticate: false, upstreams: ["` + upstream.URL() + `"]}`))
	await(2, true)
	if got := string(o.call("GET", "/api/v1/revisions/2/diff", "", http.StatusOK)); !strings.Contains(got, "+  - name: items") {
		t.Errorf("the diff is %s", got)
	}
	o.call("GET", "/api/v1/revisions/1/diff", "", http.StatusOK)
	o.call("POST", "/api/v1/revisions/1/rollback", `{"base":1}`, http.StatusConflict)
	o.call("POST", "/api/v1/revisions/9/rollback", `{}`, http.StatusNotFound)
	o.call("POST", "/api/v1/revisions/1/rollback", `{"base":2}`, http.StatusOK)
	await(3, false)
	if now, err := os.ReadFile(g.File); err != nil || !bytes.Equal(now, before) {
		t.Errorf("the file is %s, %v, want that of revision 1", now, err)
	}
	if newest := read[admin.Revision](o, "/api/v1/revisions/3"); newest.Who != "alice" || newest.Message != "rollback to revision 1" || newest.Text != string(before) {
		t.Errorf("the rollback is %+v", newest)
	}

	// Without a token all may be read on loopback, and nothing changed.
	o.token = ""
	if may := read[admin.Overview](o, "/api/v1/overview").May; may != "read" {
		t.Errorf("without a token the caller may %s", may)
	}
	o.call("POST", "/api/v1/revisions/2/rollback", `{}`, http.StatusUnauthorized)
	o.call("POST", "/api/v1/shield/forgive", `{"user":"carol"}`, http.StatusUnauthorized)
	o.call("DELETE", "/api/v1/users/carol/sessions", "", http.StatusUnauthorized)

	for name, content := range unpack(t, o.call("GET", "/api/v1/support", "", http.StatusOK)) {
		if len(content) == 0 || strings.Contains(content, token) || strings.Contains(content, operatorToken) || strings.Contains(content, "secret=1") {
			t.Errorf("%s of the support bundle is empty, or has a secret: %s", name, content)
		}
	}
	for message, event := range map[string]convention.Event{
		`"definitions rolled back"`: convention.EventAdminRollback, `"failed logins forgiven"`: convention.EventAdminForgive,
		`"session revoked"`: convention.EventSessionEnded, `"sessions revoked"`: convention.EventSessionEnded,
	} {
		want := message + "," // the next fields follow
		envoytest.Eventually(t, "a line of the log with "+want, func() bool {
			return len(lines(g.Log(), want, `"by":"alice"`, fmt.Sprintf(`"event.action":%q`, event))) > 0
		})
		if strings.Contains(g.Log(), operatorToken) {
			t.Error("the log has the token of the operator")
		}
	}
	doc, err := openapi3.NewLoader().LoadFromData(admin.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			if !o.called[method+" "+path] {
				t.Errorf("%s %s of openapi.yaml was not called", method, path)
			}
		}
	}
}

// unpack returns the files of a .tar.gz by their names.
func unpack(t *testing.T, packed []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	unzipped, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(content)
	}
	if len(files) != 10 {
		t.Errorf("the support bundle has %d files", len(files))
	}
	return files
}
