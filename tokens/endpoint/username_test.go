package endpoint

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// read reads the user name of a login with the field username.
func read(t testing.TB, target, contentType, text string) (string, error) {
	r := httptest.NewRequest("POST", target, strings.NewReader(text))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	b, err := readBody(r)
	if err != nil {
		t.Fatal(err)
	}
	name, err := (&Authenticator{UserField: "username"}).userName(r, b)
	sent, readErr := io.ReadAll(b.reader())
	if readErr != nil || !bytes.Equal(sent, []byte(text)) {
		t.Fatalf("what is sent on was changed: %q, %v", sent, readErr)
	}
	return name, err
}

func TestTheUserNameIsRead(t *testing.T) {
	const jsonType = "application/json; charset=utf-8"
	for _, c := range []struct{ target, contentType, text, name string }{
		{"/token", jsonType, `{"username":"ann","password":"x"}`, "ann"},
		{"/token", jsonType, ` {"a":{"username":"eve"},"b":["username"],"USERNAME":"ann"} `, "ann"},
		{"/token", jsonType, `{"\u0075sername":"\u0061nn"}`, "ann"},
		{"/token", jsonType, `{"username":12345678901234567890}`, "12345678901234567890"},
		{"/token", jsonType, `{"username":null}`, ""},
		{"/token", jsonType, `{"email":"ann"}`, ""},
		{"/token", "application/problem+json", `{"username":"ann"}`, "ann"},
		{"/token", "text/plain", `{"username":"ann"}`, "ann"}, // some services look at the body alone
		{"/token", formType, `{"username":"ann"}`, "ann"},
		{"/token", formType + "; charset=utf-8", "password=x&username=ann%40example.com&x", "ann@example.com"},
		{"/token", formType, "%75sername=a+b", "a b"},
		{"/token", formType, "password=x", ""},
		{"/token?username=ann", formType, "password=x", "ann"},
		{"/token?x=1", "", "", ""},
	} {
		if name, err := read(t, c.target, c.contentType, c.text); err != nil || name != c.name {
			t.Errorf("%s %s %s: %q, %v, want %q", c.target, c.contentType, c.text, name, err, c.name)
		}
	}
}

func TestALoginThatCouldBeReadInTwoWaysIsRefused(t *testing.T) {
	for _, c := range []struct{ target, contentType, text string }{
		{"/token", "application/json", `{"username":"ann","username":"eve"}`},
		{"/token", "application/json", `{"username":"ann","UserName":"eve"}`},
		{"/token", "application/json", `{"username":"ann"} {"username":"eve"}`},
		{"/token", "application/json", `{"username":"ann"`},
		{"/token", "application/json", `{"username":["ann"]}`},
		{"/token", "application/json", `{"username":{"$ne":1}}`},
		{"/token", "application/json", `{"username":true}`},
		{"/token", "application/json", `["username","ann"]`},
		{"/token", "application/json", `username=ann`},
		{"/token", "application/json", "\ufeff{\"username\":\"ann\"}"},
		{"/token", formType, "username=ann&username=eve"},
		{"/token", formType, "username=ann&Username=eve"},
		{"/token", formType, "username=%zz"},
		{"/token?username=ann", formType, "username=eve"},
		{"/token", "multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=username\r\n\r\nann\r\n--x--"},
		{"/token", "", "username=ann"},
		{"/token", "application/xml", "<username>ann</username>"},
	} {
		if name, err := read(t, c.target, c.contentType, c.text); !errors.Is(err, errNoUser) {
			t.Errorf("%s %s %s: %q, %v, want it refused", c.target, c.contentType, c.text, name, err)
		}
	}
	asked := false
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) { asked = true; ann(w, r) }))
	g.settings.Authenticator.UserField = "username"
	g.call("POST", "/token", "username=a&username=b", "Content-Type", formType).says(t, 400, textNoUser)
	g.call("POST", "/token", `{"username":"a"}`, "Content-Type", "application/json", "Content-Encoding", "identity, gzip").says(t, 400, textNoUser)
	g.call("POST", "/token", "username="+strings.Repeat("a", headSize), "Content-Type", formType).says(t, 413, textTooLarge)
	if asked {
		t.Error("the user service was asked")
	}
	g.call("POST", "/token", "username=a", "Content-Type", formType).is(t, 200)
	g.call("POST", "/token", "email=a", "Content-Type", formType).is(t, 200) // by address alone
}

func FuzzUserName(f *testing.F) {
	f.Add("application/json", `{"username":"ann","password":"x"}`, "")
	f.Add(formType, "username=ann&password=x", "username=eve")
	f.Add("", "{", "%")
	f.Fuzz(func(t *testing.T, contentType, text, query string) {
		r := httptest.NewRequest("POST", "/token", strings.NewReader(text))
		r.URL.RawQuery = query
		r.Header.Set("Content-Type", contentType)
		b, err := readBody(r)
		if err != nil {
			t.Skip("too large")
		}
		name, err := (&Authenticator{UserField: "username"}).userName(r, b)
		if err != nil && !errors.Is(err, errNoUser) && !errors.Is(err, errTooLarge) {
			t.Fatalf("an error of no kind: %v", err)
		}
		if err == nil && name != "" && len(name) > 3*(len(text)+len(query)) {
			t.Fatalf("%d bytes of name out of %d", len(name), len(text)+len(query))
		}
		if sent, err := io.ReadAll(b.reader()); err != nil || string(sent) != text {
			t.Fatalf("what is sent on was changed: %q, %v", sent, err)
		}
	})
}
