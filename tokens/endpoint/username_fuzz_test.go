package endpoint

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"

	"gatepost/definitions"
	"gatepost/tokens"
	"gatepost/tokens/shield"
)

// FuzzUserName compares the user that the shield counts with the user names that real user services
// read in Go, Node.js and Python, each in several ways and mostly regardless of the media type. If
// a login passes, any name that a service reads must be the counted one.
func FuzzUserName(f *testing.F) {
	for _, c := range ambiguous {
		f.Add(c.contentType, c.text)
	}
	f.Add(jsonType, `{"username":"ann","password":"x"}`)
	f.Add(jsonType+"; charset=utf-8", `{"USERNAME":12345,"password":"a&b;c=d"}`)
	f.Add(jsonType, `{"username":null,"email":"ann"}`)
	f.Add(jsonType, ` {"a":{"username":"eve"},"\u0075sername":"\u0061nn \u00e4"} `)
	f.Add(formType, "username=ann&password=x")
	f.Add(formType+";charset=utf-8", "%75sername=+%C3%A4+b&password=100%&username_id=5&username")
	f.Add("", "")
	services := readers(f)
	f.Fuzz(func(t *testing.T, contentType, text string) {
		if !httpguts.ValidHeaderFieldValue(contentType) {
			t.Skip("not HTTP")
		}
		counted, err := read(t, contentType, text)
		var refused ambiguousError
		if err != nil && !errors.As(err, &refused) && !errors.Is(err, errTooLarge) {
			t.Fatalf("an unexpected error: %v", err)
		}
		for _, service := range services {
			names, reached := service.read(t, contentType, text)
			if reached != (err == nil) {
				t.Fatalf("%s: reached is %v for a login with the error %v", service.name, reached, err)
			}
			for way, name := range names {
				if name != "" && shield.Normalise(name) != shield.Normalise(counted) {
					t.Fatalf("%s reads the user %q (way %d), but the login counts for %q", service.name, name, way, counted)
				}
			}
		}
	})
}

// reader is a handler in front of a user service that reports the names it reads in a login.
type reader struct {
	name    string
	handler http.Handler
}

func readers(f *testing.F) []reader {
	demo := httptest.NewServer(http.HandlerFunc(goUsers))
	f.Cleanup(demo.Close)
	all := []reader{newReader(f, "Go", demo.URL)}
	for name, command := range map[string][]string{
		"Node.js": {"node", "testdata/users.js"},
		"Python":  {"python3", "testdata/users.py"},
	} {
		if _, err := exec.LookPath(command[0]); err != nil {
			f.Logf("without the %s user service: %v", name, err)
			continue
		}
		all = append(all, newReader(f, name, startUsers(f, command...)))
	}
	return all
}

func newReader(f *testing.F, name, address string) reader {
	target, err := url.Parse(address)
	if err != nil {
		f.Fatal(err)
	}
	settings := &definitions.Tokens{
		Lifetime: time.Hour, SessionLifetime: time.Hour, Format: string(tokens.FormatUUID),
		Authenticator: &definitions.Authenticator{
			URL: target, Timeout: time.Minute, UserHeader: "userid", ScopesHeader: "scopes", UserField: "username",
		},
	}
	h := newHandler(f, Config{Store: newMemory(), Settings: func() *definitions.Tokens { return settings }, Logger: slog.New(slog.DiscardHandler)})
	f.Cleanup(h.Close)
	return reader{name, h}
}

// startUsers starts a user service that prints its port and exits when its standard input closes.
func startUsers(f *testing.F, command ...string) string {
	process := exec.Command(command[0], command[1:]...)
	process.Stderr = os.Stderr
	input, err := process.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	output, err := process.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if err := process.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		_ = input.Close()
		if err := process.Wait(); err != nil {
			f.Errorf("%s: %v", command[0], err)
		}
	})
	port, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		f.Fatalf("%s printed no port: %v", command[0], err)
	}
	return "http://127.0.0.1:" + strings.TrimSpace(port)
}

// read sends a login and returns the names that the user service reads, if the login reached it.
func (s reader) read(t *testing.T, contentType, text string) (names []string, reached bool) {
	t.Helper()
	r := httptest.NewRequest("POST", "/token", strings.NewReader(text))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	switch w.Code {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return nil, false
	case http.StatusUnauthorized:
	default:
		t.Fatalf("%s: answered %d %s", s.name, w.Code, w.Body)
	}
	list, err := base64.StdEncoding.DecodeString(w.Header().Get("X-Read"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(list, &names); err != nil || len(names) == 0 {
		t.Fatalf("%s: X-Read is %q: %v", s.name, list, err)
	}
	return names, true
}

// goUsers is the Go version of users.js and users.py. Its first way is the demo's.
func goUsers(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var demo struct{ Username, Password string }
	_ = json.NewDecoder(strings.NewReader(string(body))).Decode(&demo)
	var number struct{ Username json.Number }
	_ = json.Unmarshal(body, &number)
	var fields map[string]any
	_ = json.Unmarshal(body, &fields)
	named := ""
	if fields["username"] != nil {
		named = fmt.Sprint(fields["username"])
		if f, ok := fields["username"].(float64); ok {
			named = fmt.Sprintf("%.0f", f)
		}
	}
	form, _ := url.ParseQuery(string(body)) // parsed pairs are returned even with an error
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	names, _ := json.Marshal([]string{
		demo.Username, number.Username.String(), named, form.Get("username"), form.Get("username[]"), r.PostFormValue("username"),
	})
	w.Header().Set("X-Read", base64.StdEncoding.EncodeToString(names))
	w.WriteHeader(http.StatusUnauthorized)
}
