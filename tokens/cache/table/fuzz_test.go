package table_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"gatepost/tokens/cache/table"
)

// FuzzModule feeds any table, route and request to the module under ASan and UBSan. The module must
// always answer, and a hit must have a user that is a valid header value.
func FuzzModule(f *testing.F) {
	r := newFixture(f)
	small := filepath.Join(f.TempDir(), "small")
	made, err := table.Create(small, 8, r.clock.now) // one bucket
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = made.Close() })
	e := r.entry()
	e.Session = uuid.New()
	made.Put(0, e)
	made.Extend(r.clock.Add(time.Second))
	good, err := os.ReadFile(small)
	if err != nil {
		f.Fatal(err)
	}
	r.Must("config %s", small)
	if got := r.Request(alice); got != "hit x-user-id=alice" { // otherwise little of the module would be tried
		f.Fatalf("the table to begin with is of no use: %s", got)
	}
	plain := strings.TrimPrefix(route(5*time.Minute, "-"), "route ")
	f.Add(good, uint64(1), plain, "Bearer alice-token", "")
	f.Add(good, uint64(2), plain, "Bearer alice-token", "")
	f.Add(good[:130], uint64(1), plain, "x", "y")
	f.Add(good, uint64(1), strings.TrimPrefix(route(5*time.Minute, "l"), "route "), "Bearer alice-token", "")
	f.Add([]byte{}, uint64(1), strings.TrimPrefix(route(0, "focslv"), "route "), strings.Repeat("t", 5000), "\xff\x00")
	f.Add(good, uint64(1), strings.TrimPrefix(route(0, "c"), "route "), strings.Repeat("t", 4096-16-8), strings.Repeat("c", 5000))
	n := 0
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, bytes []byte, buckets uint64, route, authorization, cookie string) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		if len(bytes) >= 16 {
			bytes = append([]byte{}, bytes...)
			// Set the magic and a small number of buckets; otherwise hardly any input is mapped.
			copy(bytes, good[:8])
			copy(bytes[8:16], []byte{byte(buckets), byte(buckets >> 8), byte(buckets >> 16), 0, 0, 0})
		}
		if err := errors.Join(os.WriteFile(path, bytes, 0o600), os.Link(small+".hits", path+".hits")); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		defer os.Remove(path + ".hits")
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
