package history

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/bbolt"

	"gatepost/definitions"
	"gatepost/definitions/revisions"
)

func TestEachChangeIsARevisionAndTheOldestGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Newest(); !errors.Is(err, revisions.ErrNone) {
		t.Errorf("an empty history: %v", err)
	}
	add := func(i int) *definitions.Definitions {
		d, err := definitions.Parse("gatepost.yaml", fmt.Appendf(nil, "services: [{name: s%d, path: /s, upstreams: [\"http://127.0.0.1:1\"]}]", i))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Add(d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	add(1)
	add(1) // the same again
	// As if there had been more: the next one is Kept + 1.
	err = s.db.Update(func(tx *bbolt.Tx) error {
		about := tx.Bucket(aboutBucket)
		return about.Put(key(revisions.Kept), bytes.Replace(about.Get(key(1)), []byte(`"Number":1,`), fmt.Appendf(nil, `"Number":%d,`, revisions.Kept), 1))
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Expect(add(0).Text, revisions.Note{Who: "late"}) // it is the newest already
	s.Expect([]byte("of another text"), revisions.Note{Who: "nobody"})
	add(1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.History(t.Context())
	if err != nil || len(all) != 3 || all[0].Number != revisions.Kept+2 || all[0].Who != "the file" || all[0].Change != "-s0 +s1" {
		t.Fatalf("%d revisions, the newest %+v, %v", len(all), all[0], err)
	}
	d, err := s.Load(t.Context(), all[1])
	if err != nil || d.Gateway.Services[0].Name != "s0" {
		t.Errorf("the revision before: %v", err)
	}
	if _, err := s.About(t.Context(), 1); !errors.Is(err, revisions.ErrNone) {
		t.Errorf("a revision that is not kept: %v", err)
	}
	err = s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(aboutBucket).Put(key(all[2].Number), []byte("{")) })
	if err != nil {
		t.Fatal(err)
	}
	if r, err := s.About(t.Context(), all[1].Number); err != nil || r.Number != all[1].Number {
		t.Errorf("a revision beside a damaged one: %+v, %v", r, err)
	}
	if _, err := s.About(t.Context(), all[2].Number); !errors.Is(err, revisions.ErrDamaged) {
		t.Errorf("a damaged revision: %v", err)
	}
}
