package endpoint

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"gatepost/convention"
)

// read returns the user name of a login with the field username.
func read(t testing.TB, contentType, text string) (string, error) {
	r := httptest.NewRequest("POST", "/token", strings.NewReader(text))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	b, err := readBody(r)
	if err != nil {
		t.Skip("too large")
	}
	return userName("username", r, b)
}

const jsonType = "application/json"

func TestUserName(t *testing.T) {
	for _, c := range []struct{ contentType, text, name string }{
		{jsonType + "; charset=utf-8", `{"username":"ann","password":"x"}`, "ann"},
		{`Application/JSON;charset="UTF-8"`, `{"username":"ann","password":"a&b;c=d"}`, "ann"},
		{jsonType, ` {"a":{"username":"eve"},"b":["username"],"USERNAME":"ann"} ` + "\n", "ann"},
		{jsonType, `{"\u0075sername":"\u0061nn"}`, "ann"},
		{jsonType, `{"username":123456789012345}`, "123456789012345"},
		{jsonType, `{"username":null}`, ""},
		{jsonType, `{"email":"ann"}`, ""},
		{formType, "password=100%&username=ann%40example.com&x", "ann@example.com"},
		{formType + "; charset=utf-8", "%75sername=a+b", "a b"},
		{formType, "username_confirmation=eve&user=eve&username2=eve", ""},
		{formType, "password=x", ""},
		{"", "", ""},
	} {
		if name, err := read(t, c.contentType, c.text); err != nil || name != c.name {
			t.Errorf("%s %s: %q, %v, want %q", c.contentType, c.text, name, err, c.name)
		}
	}
}

// ambiguous lists logins in which user services may read different users.
var ambiguous = []struct{ contentType, text string }{
	// The media type and the body disagree.
	{formType, `{"a":"&username=bob&password=g1&b="}`},
	{formType, `{"username":"bob"}`},
	{formType, "\ufeff{\"username\":\"bob\"}"},
	{formType, `%7B"username":"bob"}`},
	{jsonType, `{"a":"&username=bob&password=g1&b="}`},
	{jsonType, `{"a":";%75sername[]=bob"}`},
	{jsonType, "username=bob"},
	{"", "username=bob"},
	{"text/plain", `{"username":"bob"}`},
	{"application/xml", "<username>bob</username>"},
	{"multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=username\r\n\r\nbob\r\n--x--"},
	{formType + "; x=application/json", "username=bob"},
	{jsonType + ", " + formType, `{"username":"bob"}`},
	// Character sets.
	{jsonType + "; charset=utf-16", `{"username":"bob"}`},
	{jsonType, "{\x00\"\x00u\x00s\x00e\x00r\x00n\x00a\x00m\x00e\x00\"\x00:\x00\"\x00b\x00o\x00b\x00\"\x00}\x00"},
	{formType + "; charset=ibm037", "username=bob"},
	{jsonType, "\ufeff{\"username\":\"bob\"}"},
	{jsonType, "{\"username\":\"bob\xff\"}"},
	{jsonType, `{"username":"bob\ud800"}`},
	{jsonType, `{"username\udfff":"bob"}`},
	{formType, "username=bob%ff"},
	{formType, "username=bob%ef%bf%bd"},
	// Numbers in several spellings.
	{jsonType, `{"username":12345.0}`},
	{jsonType, `{"username":12345.00}`},
	{jsonType, `{"username":1.2345e4}`},
	{jsonType, `{"username":-0}`},
	{jsonType, `{"username":9007199254740993}`},
	// Not a string.
	{jsonType, `{"username":["bob"]}`},
	{jsonType, `{"username":{"$ne":1}}`},
	{jsonType, `{"username":true}`},
	{jsonType, `["username","bob"]`},
	// Control characters, which some parsers cut off.
	{jsonType, `{"username":"bob\u0000"}`},
	{jsonType, `{"username":"bob\t"}`},
	{jsonType, "{\"username\":\"bob\"}\x00"},
	{jsonType, "{\"username\":\"bob\"}\v"},
	{formType, "username=bob%00"},
	{formType, "password=x&username=bob\r\n"},
	{formType, "username%00x=bob"},
	// The field more than once, or in another spelling.
	{jsonType, `{"username":"ann","username":"bob"}`},
	{jsonType, `{"username":null,"UserName":"bob"}`},
	{jsonType, `{"username":"ann"} {"username":"bob"}`},
	{jsonType, `{"username ":"bob"}`},
	{jsonType, `{"__proto__":{"username":"bob"}}`},
	{formType, "username=ann&username=bob"},
	{formType, "username&Username=bob"},
	{formType, "a=1;username=bob"},
	{formType, "username[]=bob"},
	{formType, "username%5B0%5D=bob"},
	{formType, "[username]=bob"},
	{formType, "username.0=bob"},
	{formType, "username+=bob"},
	{formType, "!username=bob"},
	{formType, "user%E2%80%8Bname=bob"},
	// Malformed.
	{jsonType, `{"username":"bob"`},
	{jsonType, `{'username':'bob'}`},
	{jsonType, `{"username":"bob"/**/}`},
	{formType, "username=%zz"},
	{formType, "%zz=1&username=bob"},
}

func TestAmbiguousLoginDoesNotReachUserService(t *testing.T) {
	reached := false
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) { reached = true; ann(w, r) }))
	g.settings.Authenticator.UserField = "username"
	refused := func(contentType, text string, headers ...string) {
		t.Helper()
		if contentType != "" {
			headers = append(headers, "Content-Type", contentType)
		}
		a := g.call("POST", "/token", text, headers...)
		if a.StatusCode != 400 || !strings.HasPrefix(a.body, `"`+textAmbiguous) || strings.Contains(a.body, "bob") {
			t.Errorf("%s %q: %d %s", contentType, text, a.StatusCode, a.body)
		}
		a.has(t, "Content-Type", jsonType)
	}
	for _, c := range ambiguous {
		refused(c.contentType, c.text)
	}
	refused(jsonType, `{"username":"bob"}`, "Content-Encoding", "identity, gzip")
	refused(jsonType, `{"username":"bob"}`, "Content-Type", formType)
	g.call("POST", "/token", "username="+strings.Repeat("a", headSize), "Content-Type", formType).isText(t, 413, convention.TextTooLarge)
	if reached {
		t.Error("the user service got a request")
	}
	if n := g.counter("gatepost_logins_total", "unreadable"); int(n) != len(ambiguous)+2 {
		t.Errorf("%v counted", n)
	}
	if !strings.Contains(g.log.String(), "ambiguous user name: give the user's field once") || strings.Contains(g.log.String(), "bob") {
		t.Errorf("log:\n%s", g.log)
	}
	g.call("POST", "/token", "username=a", "Content-Type", formType).is(t, 200)
	g.call("POST", "/token", "email=a", "Content-Type", formType).is(t, 200) // by address alone
}

func TestAnyBodyIsForwardedWithoutUserField(t *testing.T) {
	g := newGateway(t, users(t, ann))
	for _, c := range ambiguous {
		g.call("POST", "/token", c.text, "Content-Type", c.contentType).is(t, 200)
	}
}

// In a form, PHP also accepts other spellings of user_name.
func TestPHPSpellingsOfFieldAreRefused(t *testing.T) {
	for _, name := range []string{"user.name", "user+name", "user[name", "user.name[]"} {
		r := httptest.NewRequest("POST", "/token", strings.NewReader(name+"=bob"))
		r.Header.Set("Content-Type", formType)
		b, _ := readBody(r)
		got, err := userName("user_name", r, b)
		var ambiguous ambiguousError
		if !errors.As(err, &ambiguous) {
			t.Errorf("%s: %q, %v, want an ambiguousError", name, got, err)
		}
	}
}

// All spellings of a user name count for one user: three guesses reach the user service, no more.
func TestAllSpellingsCountForOneUser(t *testing.T) {
	requests := 0
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) { requests++; w.WriteHeader(401) }))
	g.settings.Authenticator.UserField = "username"
	user := &g.settings.Shield.User
	user.Failures, user.Base = 2, user.Cap
	logins := []struct{ contentType, text string }{
		{jsonType, `{"username":"12345"}`}, {jsonType, `{"username":12345}`}, {formType, "username=12345"},
		{formType, "username=+12345+"}, {jsonType, `{"USERNAME":"１２３４５"}`}, {jsonType, `{"username":"1\u03012345"}`},
		{formType, "username=1%E2%80%8B2345"}, {formType, "username=0012345"}, {formType, "username=1_2345"}, {formType, "username=%2B12345"},
	}
	for _, c := range append(logins, ambiguous...) {
		g.call("POST", "/token", c.text, "Content-Type", c.contentType)
	}
	if requests != 3 {
		t.Errorf("%d guesses reached the user service, want 3", requests)
	}
}
