package convention

import (
	"math"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestAJSONResponseIsKeptByNoCache(t *testing.T) {
	w := httptest.NewRecorder()
	WriteJSON(w, http.StatusNotFound, TextNotFound)
	if w.Code != http.StatusNotFound || w.Body.String() != `"Could not find any resources for given path."` {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Cache-Control": "no-store", "Pragma": "no-cache", "Content-Length": "46",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestAValueWithoutAJSONFormIsAnInternalError(t *testing.T) {
	w := httptest.NewRecorder()
	WriteJSON(w, http.StatusOK, math.NaN())
	if w.Code != http.StatusInternalServerError || w.Body.String() != `"internal error"` {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}
