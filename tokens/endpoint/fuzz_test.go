package endpoint

import (
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/definitions"
	"gatepost/tokens"
)

// For any answer of the user service: a token is returned if and only if it is stored, with the one
// user that the answer names.
func FuzzUserServiceAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nuserid: ann\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nuserid: ann\r\nscopes: a b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nuserid: ann\r\nuserid: eve\r\n\r\n",
		"HTTP/1.1 200 OK\r\nuserid: ann\r\ntoken: x\r\nConnection: token, userid\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nuserid: ann\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: y\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\n\r\n", "HTTP/1.1 099 x\r\n\r\n", "\x00",
	} {
		f.Add([]byte(seed))
	}
	var answer atomic.Pointer[[]byte]
	target, err := url.Parse(rawUsers(f, func(c net.Conn) { _, _ = c.Write(*answer.Load()) }))
	if err != nil {
		f.Fatal(err)
	}
	settings := &definitions.Tokens{
		Lifetime: time.Hour, SessionLifetime: time.Hour, Format: string(tokens.FormatUUID),
		Authenticator: &definitions.Authenticator{URL: target, Timeout: 10 * time.Second, UserHeader: "userid", ScopesHeader: "scopes"},
	}
	store := newMemory()
	h := newHandler(f, Config{Store: store, Settings: func() *definitions.Tokens { return settings }, Logger: slog.New(slog.DiscardHandler)})
	f.Cleanup(h.Close)
	f.Fuzz(func(t *testing.T, bytes []byte) {
		answer.Store(&bytes)
		clear(store.sessions)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/token", strings.NewReader("x")))
		response := w.Result()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != 200 {
			if len(store.sessions) != 0 {
				t.Fatalf("answered %d and stored a session", response.StatusCode)
			}
			return
		}
		if len(store.sessions) != 1 {
			t.Fatalf("answered 200 %q with %d sessions stored", body, len(store.sessions))
		}
		returned := response.Header.Values("token")
		token, err := tokens.Parse(strings.Join(returned, ","))
		if err != nil {
			t.Fatalf("the response has the tokens %q", returned)
		}
		s := store.sessions[token.Hash()]
		if s == nil {
			t.Fatal("the returned token is not the stored one")
		}
		if id, why := userID("userid", []string{s.User}); why != "" || id != s.User {
			t.Fatalf("stored for user %q: %s", s.User, why)
		}
	})
}
