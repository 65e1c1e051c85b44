package tokens

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestPrincipalMatchesSession(t *testing.T) {
	now := time.Now()
	for _, scopes := range [][]string{nil, {"read"}, {"a", "b b", strings.Repeat("c", 300)}, {""}} {
		for _, user := range []string{"u", "ann", strings.Repeat("é", 2000)} {
			s, err := NewSession(Hash{1, 2, 3}, user, scopes, now, time.Minute, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			h := s.Principal()
			if h.IsZero() || h.Hash() != s.Hash || !h.Has(s.Hash) || h.Has(Hash{1, 2}) || h.ID() != s.ID || h.User() != user ||
				!h.Expires().Equal(s.Expires) || !h.Ends().Equal(s.Ends) || h.Live(now) != s.Live(now) || h.Live(s.Expires) {
				t.Errorf("the principal of %+v is %q", s, h.packed)
			}
			for _, scope := range append(scopes, s.Scopes...) {
				if !h.HasScope(scope) {
					t.Errorf("%q has no scope %q", scopes, scope)
				}
			}
			if h.HasScope("rea") || h.HasScope("b") && len(scopes) != 3 {
				t.Errorf("%q has an unknown scope", scopes)
			}
		}
	}
}

func TestPrincipalClampsTimes(t *testing.T) {
	now := time.Now()
	far, long := Session{Expires: now.AddDate(500, 0, 0)}, Session{}
	if !far.Principal().Live(now) || long.Principal().Live(now) || long.Principal().Live(time.Unix(0, 0)) {
		t.Error("a time outside of the range is not clamped")
	}
}

func TestZeroPrincipal(t *testing.T) {
	var h Principal
	if !h.IsZero() || h.Has(Hash{}) || h.Hash() != (Hash{}) || h.ID() != "" || h.User() != "" || h.HasScope("") || h.Live(time.Time{}) {
		t.Error("the zero principal is not empty")
	}
}

func TestPrincipalReadsDoNotAllocate(t *testing.T) {
	s := &Session{Hash: Hash{7}, User: "ann", Scopes: []string{"a", "b"}, Expires: time.Now()}
	h := s.Principal()
	if n := testing.AllocsPerRun(100, func() {
		_, _, _, _ = h.User(), h.HasScope("b"), h.Live(s.Expires), h.Has(s.Hash)
	}); n != 0 {
		t.Errorf("reading a principal makes %v allocations", n)
	}
}

func TestPrincipalIsNotPrinted(t *testing.T) {
	s := &Session{Hash: Hash{7}, User: "ann", Expires: time.Now()}
	h := s.Principal()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		fmt.Fprintf(&out, verb, h)
		fmt.Fprintf(&out, verb, struct{ H Principal }{h})
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "principal", h)
	if err := json.NewEncoder(&out).Encode(h); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"ann", s.Hash.Hex(), string(s.Hash[:4]), fmt.Sprintf("%x", "ann")} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("printed: %q", out.String())
		}
	}
}
