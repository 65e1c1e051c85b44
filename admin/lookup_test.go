package admin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"gatepost/tokens"
)

// lookup sends a LookupRequest for a hash.
func (k *kit) lookup(hash string, headers ...string) *httptest.ResponseRecorder {
	request := httptest.NewRequest("POST", "http://127.0.0.1:18002/api/v1/lookup", strings.NewReader(`{"token_hash":"`+hash+`"}`))
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		request.Header.Set(name, value)
	}
	answer := httptest.NewRecorder()
	k.ServeHTTP(answer, request)
	return answer
}

func TestLookupByHash(t *testing.T) {
	k := newKit(t)
	id, token := k.login(t, "alice")
	hash := token.Hash().Hex()
	got := k.lookup(hash)
	var found LookupResponse
	if err := json.Unmarshal(got.Body.Bytes(), &found); err != nil || got.Code != http.StatusOK || found.Session == nil {
		t.Fatalf("a live token: %d %s, %v", got.Code, got.Body, err)
	}
	if s := found.Session; s.ID != id || s.User != "alice" || !s.Expires.After(time.Now()) || strings.Contains(got.Body.String(), hash) {
		t.Errorf("a live token: %s", got.Body)
	}
	if err := k.store.Revoke(t.Context(), token.Hash()); err != nil {
		t.Fatal(err)
	}
	if got := k.lookup(hash); got.Code != http.StatusOK || !strings.Contains(got.Body.String(), `"session":null`) {
		t.Errorf("a revoked token: %d %s, want that there is no session", got.Code, got.Body)
	}
	if err := k.store.Close(); err != nil {
		t.Fatal(err)
	}
	if got := k.lookup(hash); got.Code != http.StatusServiceUnavailable {
		t.Errorf("a store out of reach: %d %s, want 503", got.Code, got.Body)
	}
	if strings.Contains(k.log.String(), hash) {
		t.Error("the log has the hash")
	}
}

func TestInvalidHashIsRejectedAndNotQuoted(t *testing.T) {
	k := newKit(t)
	token, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{token.Reveal(), "", "00", strings.Repeat("0", 2000), token.Hash().Hex() + "00"} {
		got := k.lookup(text)
		if got.Code != http.StatusBadRequest || strings.Contains(got.Body.String()+k.log.String(), token.Reveal()) {
			t.Errorf("%.40q: %d %s, want 400", text, got.Code, got.Body)
		}
	}
}

func TestPagesAndClientsCannotLookUpTokens(t *testing.T) {
	k := newKit(t)
	_, token := k.login(t, "alice")
	for _, header := range []string{"Sec-Fetch-Site: cross-site", "Origin: https://evil.example", "X-Envoy-External-Address: 203.0.113.7", "X-Envoy-Internal: true"} {
		if got := k.lookup(token.Hash().Hex(), header); got.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s, want 403", header, got.Code, got.Body)
		}
	}
}
