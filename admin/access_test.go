package admin

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

const (
	readToken    = "read-0123456789abcdef0123456789abcdef"
	operateToken = "oper-0123456789abcdef0123456789abcdef"
	wrongToken   = "none-0123456789abcdef0123456789abcdef"
)

// tokensIn writes a token file.
func tokensIn(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin-tokens")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const twoTokens = "# who may call\n\nread grafana " + readToken + "\noperate alice " + operateToken + "\n"

func TestWhoMayCall(t *testing.T) {
	t.Parallel()
	file := tokensIn(t, twoTokens)
	for name, at := range map[string]struct {
		config            Config
		health, read, end [3]int // without a token, with the role read, with operate
	}{
		"local":             {Config{Local: true}, [3]int{200, 200, 200}, [3]int{200, 401, 401}, [3]int{404, 401, 401}},
		"local with tokens": {Config{Local: true, TokenFile: file}, [3]int{200, 200, 200}, [3]int{200, 200, 200}, [3]int{401, 403, 404}},
		"network":           {Config{TokenFile: file}, [3]int{200, 200, 200}, [3]int{401, 200, 200}, [3]int{401, 403, 404}},
	} {
		k := newKitWith(t, at.config)
		for i, headers := range [][]string{nil, {"Authorization: Bearer " + readToken}, {"Authorization: bearer " + operateToken}} {
			k.want(t, "GET", "/healthz", at.health[i], "", headers...)
			k.want(t, "GET", "/readyz", at.health[i], "", headers...)
			for _, path := range []string{"/metrics", "/api/v1/status", "/api/v1/denials", "/api/v1/users/alice/sessions"} {
				k.want(t, "GET", path, at.read[i], "", headers...)
			}
			k.want(t, "DELETE", "/api/v1/sessions/none", at.end[i], "", headers...)
		}
		if t.Failed() {
			t.Fatalf("… as %s", name)
		}
	}
}

func TestChangesNameTheirCallerInTheLog(t *testing.T) {
	t.Parallel()
	for want, config := range map[string]Config{"by=alice": {TokenFile: tokensIn(t, twoTokens)}, `by="local, without a token"`: {Local: true}} {
		k := newKitWith(t, config)
		id, _ := k.login(t, "bob")
		var headers []string
		if config.TokenFile != "" {
			headers = []string{"Authorization: Bearer " + operateToken}
		}
		k.want(t, "DELETE", "/api/v1/sessions/"+id, http.StatusOK, "", headers...)
		if log := k.log.String(); !strings.Contains(log, want) || strings.Contains(log, operateToken) {
			t.Errorf("the log has %s, want %s in it, and no token", log, want)
		}
	}
}

func TestOnlyOneBearerTokenIsAccepted(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{TokenFile: tokensIn(t, twoTokens)})
	for _, headers := range [][]string{
		{"Authorization: Basic " + readToken}, {"Authorization: " + readToken}, {"Authorization: Bearer"}, {"Authorization: Bearer " + readToken + "0"},
		{"Cookie: token=" + readToken}, {"X-Token: " + readToken},
		{"Authorization: Bearer " + readToken, "Authorization: Bearer " + wrongToken}, {"Authorization: Bearer " + readToken, "Authorization: "},
	} {
		k.want(t, "GET", "/api/v1/status", http.StatusUnauthorized, "", headers...)
	}
	k.want(t, "GET", "/api/v1/status?access_token="+readToken, http.StatusUnauthorized, "")
}

func TestGuessingIsSlowedDownAndLogsNoToken(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{Local: true, TokenFile: tokensIn(t, twoTokens)})
	throttled := 0
	for range 100 {
		if got := k.ask("GET", "/api/v1/status", "Authorization: Bearer "+wrongToken); got.Code == http.StatusTooManyRequests {
			throttled++
			if got.Header().Get("Retry-After") == "" {
				t.Fatal("a 429 without Retry-After")
			}
		}
	}
	if throttled < 70 {
		t.Errorf("%d of 100 guesses were refused, want most", throttled)
	}
	lines := strings.Count(k.log.String(), "admin token refused")
	if lines > 30 || lines == 0 || strings.Count(k.log.String(), "event.action=admin-refused") != lines || strings.Contains(k.log.String(), wrongToken) {
		t.Errorf("%d lines in the log, want one for each guess that was compared, and no token", lines)
	}
	// Others behind the same address lock nobody out.
	k.want(t, "GET", "/api/v1/status", http.StatusOK, "", "Authorization: Bearer "+readToken)
	k.want(t, "GET", "/api/v1/status", http.StatusTooManyRequests, "", "Authorization: Bearer "+wrongToken)
	k.want(t, "GET", "/api/v1/status", http.StatusOK, "")
	k.want(t, "GET", "/readyz", http.StatusOK, "")
}

func TestRemovedTokensAreRefusedAndABrokenFileChangesNothing(t *testing.T) {
	t.Parallel()
	path := tokensIn(t, twoTokens)
	k := newKitWith(t, Config{TokenFile: path})
	again := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		k.access.file.at = k.access.file.at.Add(-readEvery)
	}
	k.want(t, "GET", "/api/v1/status", http.StatusOK, "", "Authorization: Bearer "+readToken)
	again("operate alice " + operateToken)
	k.want(t, "GET", "/api/v1/status", http.StatusUnauthorized, "not one of", "Authorization: Bearer "+readToken)
	again("operate alice")
	k.want(t, "GET", "/api/v1/status", http.StatusOK, "", "Authorization: Bearer "+operateToken)
	if !strings.Contains(k.log.String(), "keeping the previous tokens") {
		t.Errorf("the log has %s", k.log.String())
	}
}

func TestMistakesInATokenFileNameTheirLineAndQuoteNothing(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"\noperate alice":                          "line 2: it has 2 parts",
		"admin alice " + readToken:                 "line 1: the role is not read or operate",
		"read a/b " + readToken:                    "the name is not",
		"read alice short-secret":                  "the token is not 32",
		twoTokens + "read bob " + operateToken:     "line 5: the token is on another line too",
		"# none":                                   "it has no token",
		"read alice " + strings.Repeat("x", 4<<20): "larger than 4 MiB",
	} {
		_, err := ReadTokenFile(tokensIn(t, text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "short-secret") || strings.Contains(err.Error(), operateToken) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func TestWhichAddressesAreLocal(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "[::1]:1": true, "localhost:1": true, "unix:/run/admin.sock": true, "127.8.0.1:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "gw:1": false, "localhost.evil.example:1": false, "x": false,
	} {
		if IsLocal(address) != want {
			t.Errorf("IsLocal(%q) = %v", address, !want)
		}
	}
}

func TestOnlyOperateMayChangeWhatIsServedOrForgive(t *testing.T) {
	t.Parallel()
	for _, config := range []Config{{Local: true}, {Local: true, TokenFile: tokensIn(t, twoTokens)}, {TokenFile: tokensIn(t, twoTokens)}} {
		k := newKitWith(t, config)
		for _, path := range []string{"/api/v1/revisions/1/rollback", "/api/v1/shield/forgive"} {
			k.want(t, "POST", path, http.StatusUnauthorized, "")
			if config.TokenFile != "" {
				k.want(t, "POST", path, http.StatusForbidden, "operate", "Authorization: Bearer "+readToken)
				k.want(t, "POST", path, http.StatusBadRequest, "openapi.yaml", "Authorization: Bearer "+operateToken) // no body
			}
		}
	}
}

func TestBigBodiesAreRefused(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{TokenFile: tokensIn(t, twoTokens)})
	for path, size := range map[string]int{"/api/v1/explain": maxExplain, "/api/v1/shield/forgive": maxBody, "/api/v1/revisions/1/rollback": maxBody, "/api/v1/exchange": maxBody} {
		body := `{"url":"/` + strings.Repeat("a", size) + `"}`
		for token, want := range map[string]int{operateToken: http.StatusRequestEntityTooLarge, wrongToken: http.StatusUnauthorized} {
			request := httptest.NewRequest("POST", "http://127.0.0.1:18002"+path, strings.NewReader(body))
			request.Header.Set("Authorization", "Bearer "+token)
			answer := httptest.NewRecorder()
			if k.ServeHTTP(answer, request); answer.Code != want {
				t.Errorf("%s with %d bytes: %d %s, want %d", path, len(body), answer.Code, answer.Body, want)
			}
		}
	}
}

// withDeadline is a recorder with the deadline for reading.
type withDeadline struct {
	*httptest.ResponseRecorder
	at time.Time
}

func (w *withDeadline) SetReadDeadline(at time.Time) error {
	w.at = at
	return nil
}

// emptyBody is a body that is at its end, and calls a function first.
type emptyBody func()

func (b emptyBody) Read([]byte) (int, error) {
	b()
	return 0, io.EOF
}

// A body that never ends would hold a connection, also for a caller without a token. The deadline is for the body
// alone: it would also end the call.
func TestBodiesHaveADeadline(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{TokenFile: tokensIn(t, twoTokens)})
	for _, path := range []string{"/api/v1/exchange", "/api/v1/explain", "/api/v1/lookup", "/api/v1/shield/forgive", "/api/v1/revisions/1/rollback"} {
		for _, token := range []string{operateToken, wrongToken} {
			w, during := &withDeadline{ResponseRecorder: httptest.NewRecorder()}, time.Time{}
			request := httptest.NewRequest("POST", "http://127.0.0.1:18002"+path, emptyBody(func() { during = w.at }))
			request.Header.Set("Authorization", "Bearer "+token)
			k.ServeHTTP(w, request)
			read := w.Code == http.StatusBadRequest
			if read && (during.IsZero() || !w.at.IsZero()) || !read && w.at.IsZero() {
				t.Errorf("%s, %d: the deadline is %v while the body is read, and %v afterwards", path, w.Code, during, w.at)
			}
		}
	}
}

// The limit stays for a body that has not ended, although its JSON has, or it is too large: net/http waits for the rest
// of it after the response.
func TestTheDeadlineStaysForABodyThatHasNotEnded(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{TokenFile: tokensIn(t, twoTokens)})
	for _, path := range []string{"/api/v1/exchange", "/api/v1/explain", "/api/v1/lookup", "/api/v1/shield/forgive", "/api/v1/revisions/1/rollback"} {
		for _, begin := range []string{`{}`, strings.Repeat("a", maxExplain+1)} {
			w := &withDeadline{ResponseRecorder: httptest.NewRecorder()}
			body := io.MultiReader(strings.NewReader(begin), iotest.ErrReader(os.ErrDeadlineExceeded))
			request := httptest.NewRequest("POST", "http://127.0.0.1:18002"+path, body)
			request.Header.Set("Authorization", "Bearer "+operateToken)
			k.ServeHTTP(w, request)
			if w.Code < 400 || w.at.IsZero() {
				t.Errorf("%s with %d bytes: %d, the deadline is %v", path, len(begin), w.Code, w.at)
			}
		}
	}
}

func TestPathsOutsideOfTheAPIAreNotServed(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	for _, path := range []string{"/api/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/v1/revisions/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/page/../admin.go"} {
		if got := k.ask("GET", path); got.Code == http.StatusOK || strings.Contains(got.Body.String(), "root:") {
			t.Errorf("%s: %d %.100s", path, got.Code, got.Body)
		}
	}
}

// exchange sends a code, and returns the token that it gets.
func (k *kit) exchange(t *testing.T, code string, want int) string {
	t.Helper()
	request := httptest.NewRequest("POST", "http://127.0.0.1:18002/api/v1/exchange", strings.NewReader(`{"code":"`+code+`"}`))
	answer := httptest.NewRecorder()
	k.ServeHTTP(answer, request)
	var got ExchangeResponse
	if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil || answer.Code != want {
		t.Fatalf("the code %q: %d %s, want %d", code, answer.Code, answer.Body, want)
	}
	return got.Token
}

func TestALinkToThePageWorksOnceAndNotForLong(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{TokenFile: tokensIn(t, twoTokens)})
	now := time.Now()
	k.access.link.now = func() time.Time { return now }
	code := func() string {
		t.Helper()
		url, code, _ := strings.Cut(k.PageLink(":18002"), "#code=")
		if url != "http://127.0.0.1:18002/" || len(code) < 26 {
			t.Fatalf("the link is %s with the code %q", url, code)
		}
		return code
	}
	k.exchange(t, "", http.StatusUnauthorized) // before there is a link

	first := code()
	token := k.exchange(t, first, http.StatusOK)
	k.exchange(t, first, http.StatusUnauthorized)
	k.want(t, "GET", "/api/v1/status", http.StatusOK, "", "Authorization: Bearer "+token)
	k.want(t, "DELETE", "/api/v1/sessions/none", http.StatusNotFound, "", "Authorization: Bearer "+token)
	k.want(t, "GET", "/api/v1/status", http.StatusUnauthorized, "", "Authorization: Bearer "+first)
	id, _ := k.login(t, "bob")
	k.want(t, "DELETE", "/api/v1/sessions/"+id, http.StatusOK, "", "Authorization: Bearer "+token)
	if log := k.log.String(); !strings.Contains(log, linkCaller.Name) || !strings.Contains(log, "event.action=admin-link-opened") || strings.Contains(log, token) || strings.Contains(log, first) {
		t.Errorf("the log has %s, want the caller, and neither the code nor the token", log)
	}
	now = now.Add(pageLifetime)
	k.want(t, "GET", "/api/v1/status", http.StatusUnauthorized, "", "Authorization: Bearer "+token)

	old, second := code(), code()
	k.exchange(t, old, http.StatusUnauthorized) // there is one link
	now = now.Add(linkLifetime - 1)
	k.exchange(t, second, http.StatusOK)
	third := code()
	now = now.Add(linkLifetime)
	k.exchange(t, third, http.StatusUnauthorized)
}

func TestLinksToThePageHaveACodeOnlyIfThereAreTokens(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	for address, want := range map[string]string{
		"127.0.0.1:1": "http://127.0.0.1:1/", "[::]:2": "http://127.0.0.1:2/", "gw.example:3": "http://gw.example:3/", "unix:/run/admin.sock": "",
	} {
		if got := k.PageLink(address); got != want {
			t.Errorf("the link to %s is %q, want %q", address, got, want)
		}
	}
	k.exchange(t, "", http.StatusUnauthorized)
}

func TestGuessingTheCodeOfALinkIsSlowedDown(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{Local: true, TokenFile: tokensIn(t, twoTokens)})
	k.PageLink("127.0.0.1:1")
	throttled := false
	for range 30 {
		request := httptest.NewRequest("POST", "http://127.0.0.1:18002/api/v1/exchange", strings.NewReader(`{"code":"guess"}`))
		answer := httptest.NewRecorder()
		k.ServeHTTP(answer, request)
		throttled = throttled || answer.Code == http.StatusTooManyRequests
	}
	if !throttled {
		t.Error("30 guesses were compared")
	}
}
