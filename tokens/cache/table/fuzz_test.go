package table_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// FuzzModule feeds any table, route and request to the module under ASan and UBSan. The module must
// always answer, and a hit must have a user that is a valid header value.
func FuzzModule(f *testing.F) {
	r := newFixture(f)
	e := r.entry()
	e.Session = uuid.New()
	r.table.Put(0, e)
	good, err := os.ReadFile(r.path)
	if err != nil {
		f.Fatal(err)
	}
	good = good[:128+8*96] // one bucket
	plain := strings.TrimPrefix(route(5*time.Minute, "-"), "route ")
	f.Add(good, uint64(1), plain, "Bearer alice-token", "")
	f.Add(good, uint64(2), plain, "Bearer alice-token", "")
	f.Add(good[:130], uint64(1), plain, "x", "y")
	f.Add(good, uint64(1), strings.TrimPrefix(route(5*time.Minute, "l"), "route "), "Bearer alice-token", "")
	f.Add([]byte{}, uint64(1), strings.TrimPrefix(route(0, "focsl"), "route "), strings.Repeat("t", 5000), "\xff\x00")
	n := 0
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, table []byte, buckets uint64, route, authorization, cookie string) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		if len(table) >= 16 {
			table = append([]byte{}, table...)
			// Set the magic and a small number of buckets; otherwise hardly any input is mapped.
			copy(table, good[:8])
			copy(table[8:16], []byte{byte(buckets), byte(buckets >> 8), byte(buckets >> 16), 0, 0, 0})
		}
		if err := os.WriteFile(path, table, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		r.Must("config %s", path)
		if strings.ContainsAny(route, "\n\x00") || r.Do("route %s", route) != "ok" {
			r.Must("route %s", plain)
		}
		answer := r.Do("request authorization=%s cookie=%s", hex.EncodeToString([]byte(authorization)), hex.EncodeToString([]byte(cookie)))
		for field := range strings.FieldsSeq(answer) {
			name, value, _ := strings.Cut(field, "=")
			raw, _ := hex.DecodeString(value)
			if strings.HasPrefix(answer, "hit") && name == "x-user-id" && (len(raw) == 0 || strings.ContainsAny(string(raw), "\r\n\x00")) {
				t.Errorf("a user of %q", raw)
			}
			if name == "@session" && uuid.Validate(string(raw)) != nil {
				t.Errorf("a session of %q", raw)
			}
		}
	})
}
