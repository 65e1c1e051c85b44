package tokens

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func newSession(t testing.TB, user string) *Session {
	t.Helper()
	s, err := NewSession(mustMint(t, FormatUUID).Hash(), user, []string{"write", "read", "read"}, time.Now(), time.Hour, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustEncode(t testing.TB, s *Session) []byte {
	t.Helper()
	data, err := EncodeRecord(s)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTokenExpiresWithItsSession(t *testing.T) {
	now := time.Now()
	h := mustMint(t, FormatUUID).Hash()
	s, err := NewSession(h, "ann", nil, now, time.Hour, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Expires.Equal(s.Ends) || s.Ends.Sub(s.Issued) != time.Minute {
		t.Errorf("issued %v, expires %v, ends %v", s.Issued, s.Expires, s.Ends)
	}
	next := s.Renewed(mustMint(t, FormatUUID).Hash(), now.Add(30*time.Second), time.Hour)
	if !next.Expires.Equal(s.Ends) || next.ID != s.ID || next.Hash == h || s.Hash != h {
		t.Errorf("renewed to %+v", next)
	}
}

func TestNewSessionSortsScopes(t *testing.T) {
	given := []string{"write", "read", "read"}
	s, err := NewSession(mustMint(t, FormatUUID).Hash(), "ann", given, time.Now(), time.Hour, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"read", "write"}, s.Scopes); diff != "" {
		t.Error(diff)
	}
	if given[0] != "write" {
		t.Error("the caller's scopes were changed")
	}
}

func TestRecordRoundTrip(t *testing.T) {
	s := newSession(t, "Zoë 👩‍💻")
	s.ClientAddress, s.UserAgent = "2001:db8::1", "curl/8"
	s.LastSeen, s.LastAddress = s.Issued.Add(time.Minute), "192.0.2.1"
	got, err := DecodeRecord(s.Hash, mustEncode(t, s))
	if err != nil || got.Retired {
		t.Fatalf("%+v, %v", got, err)
	}
	if diff := cmp.Diff(s, got.Session); diff != "" {
		t.Error(diff)
	}
}

func TestRetiredRecord(t *testing.T) {
	s := newSession(t, "ann")
	data, err := EncodeRetired(s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRecord(s.Hash, data)
	if err != nil || !got.Retired || got.Live(s.Issued) || got.Session.ID != s.ID || got.Session.User != s.User || !got.Session.Ends.Equal(s.Ends) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestPredecessorIsLiveUntilGraceEnds(t *testing.T) {
	s := newSession(t, "ann")
	next := Successor{s.Renewed(mustMint(t, FormatUUID).Hash(), s.Issued, time.Hour), Sealed("sealed")}
	end := s.Issued.Add(70 * time.Second)
	data, err := EncodePredecessor(s, next, next.GraceEnds(s.Issued.Add(time.Minute), 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRecord(s.Hash, data)
	if err != nil {
		t.Fatal(err)
	}
	before := *s
	before.Expires = end
	want := &Record{Session: &before, Retired: true, Next: next.Session.Hash, Successor: next.Token, GraceEnds: end}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if just := end.Add(-time.Nanosecond); !got.Live(just) || !got.InGrace(just) || got.Live(end) || got.InGrace(end) {
		t.Error("the grace ends at the wrong time")
	}
}

func TestPredecessorExpiresWithEitherToken(t *testing.T) {
	s := newSession(t, "ann")
	for lifetime, end := range map[time.Duration]time.Time{time.Second: s.Issued.Add(time.Second), 2 * time.Hour: s.Expires} {
		next := Successor{Session: s.Renewed(mustMint(t, FormatUUID).Hash(), s.Issued, lifetime)}
		data, err := EncodePredecessor(s, next, next.GraceEnds(s.Issued, 90*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRecord(s.Hash, data)
		if err != nil || !got.Live(end.Add(-1)) || got.Live(end) {
			t.Errorf("with a successor of %v: %+v, %v", lifetime, got, err)
		}
		// After its own expiry it still gets its successor, but not after the successor's expiry.
		graceEnds := s.Issued.Add(min(lifetime, 90*time.Minute))
		if err == nil && (!got.InGrace(graceEnds.Add(-1)) || got.InGrace(graceEnds)) {
			t.Errorf("with a successor of %v its grace ends at %v", lifetime, got.GraceEnds)
		}
	}
}

func TestCorruptRecords(t *testing.T) {
	s, other := newSession(t, "ann"), newSession(t, "bob")
	good := mustEncode(t, s)
	for name, data := range map[string][]byte{
		"nothing":             {},
		"the old gateway's 1": []byte("1"),
		"garbage":             []byte("\x00\xff\x00\xffgarbage"),
		"JSON":                []byte(`{"user":"ann"}`),
		"another's record":    mustEncode(t, other),
		"half a record":       good[:len(good)/2],
		"zeros":               make([]byte, 200),
		"a record and more":   append(append([]byte{}, good...), 0xff),
	} {
		got, err := DecodeRecord(s.Hash, data)
		if got != nil || !errors.Is(err, ErrUnavailable) || !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if err != nil && strings.Contains(err.Error(), s.Hash.Hex()) {
			t.Errorf("%s: the error contains the hash", name)
		}
	}
}

func TestInvalidSessions(t *testing.T) {
	for name, change := range map[string]func(*Session){
		"no user":              func(s *Session) { s.User = "" },
		"a user too long":      func(s *Session) { s.User = strings.Repeat("a", MaxUserLength+1) },
		"a user not UTF-8":     func(s *Session) { s.User = "a\xff" },
		"no id":                func(s *Session) { s.ID = "" },
		"no token":             func(s *Session) { s.Hash = Hash{} },
		"no times":             func(s *Session) { s.Issued, s.Expires, s.Ends = time.Time{}, time.Time{}, time.Time{} },
		"longer than the end":  func(s *Session) { s.Expires = s.Ends.Add(time.Second) },
		"a scope not UTF-8":    func(s *Session) { s.Scopes = []string{"\xff"} },
		"an id that is binary": func(s *Session) { s.ID = "\xff\xff" },
	} {
		s := newSession(t, "ann")
		change(s)
		if data, err := EncodeRecord(s); !errors.Is(err, ErrInvalid) || data != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewSession(mustMint(t, FormatUUID).Hash(), "", nil, time.Now(), time.Hour, time.Hour); !errors.Is(err, ErrInvalid) {
		t.Errorf("a session without a user: %v", err)
	}
}

func TestClientTextsAreClipped(t *testing.T) {
	for name, agent := range map[string]string{
		"long":              strings.Repeat("x", 100_000),
		"long in two bytes": strings.Repeat("ö", 1000),
		"long in four":      "a" + strings.Repeat("👩", 1000),
		"not UTF-8":         strings.Repeat("\x80", 1000),
	} {
		s := newSession(t, "ann")
		s.UserAgent = agent
		got, err := DecodeRecord(s.Hash, mustEncode(t, s))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if n := len(got.Session.UserAgent); n > maxClientText || n < maxClientText-4 && name != "not UTF-8" || !utf8.ValidString(got.Session.UserAgent) {
			t.Errorf("%s: stored as %d bytes", name, n)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	s := newSession(f, "ann")
	f.Add(mustEncode(f, s))
	f.Add([]byte("1"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeRecord(s.Hash, data)
		switch {
		case err != nil && (got != nil || !errors.Is(err, ErrUnavailable)):
			t.Fatalf("%+v, %v", got, err)
		case err == nil && (got.Session.Hash != s.Hash || got.Session.valid() != nil):
			t.Fatalf("decoded to %+v", got)
		}
	})
}

func BenchmarkDecodeRecord(b *testing.B) {
	s := newSession(b, "ann")
	data := mustEncode(b, s)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeRecord(s.Hash, data); err != nil {
			b.Fatal(err)
		}
	}
}
