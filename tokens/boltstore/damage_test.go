//go:build unix

package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/testrun"
	"gatepost/tokens"
	"gatepost/tokens/storetest"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.etcd.io/bbolt"
)

// damagedStore is a closed store with many sessions, some of them ended.
type damagedStore struct {
	t         *testing.T
	dir, path string
	live      []tokens.Hash
	revoked   *tokens.Session
	exchanged *tokens.Session // refreshed with a grace
	log       bytes.Buffer
}

const damageableSessions = 3000

func newDamagedStore(t *testing.T) *damagedStore {
	t.Helper()
	d := &damagedStore{t: t, dir: t.TempDir()}
	d.path = filepath.Join(d.dir, fileName)
	s := mustOpen(t, d.dir)
	d.live = fill(t, s, damageableSessions)
	d.revoked, d.exchanged = create(t, s, "ann"), create(t, s, "bob")
	next := d.exchanged.Renewed(storetest.NewHash(t), time.Now(), time.Hour)
	_, err := s.Rotate(t.Context(), d.exchanged.Hash, storetest.Successor(next), time.Minute)
	if err := errors.Join(err, s.Revoke(t.Context(), d.revoked.Hash), s.Close()); err != nil {
		t.Fatal(err)
	}
	return d
}

// open opens the store and writes its log to d.log.
func (d *damagedStore) open() *Store {
	d.t.Helper()
	d.log.Reset()
	s, err := Open(d.dir, Config{Logger: slog.New(slog.NewTextHandler(&d.log, nil))})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = s.Close() })
	return s
}

// overwrite writes data at an offset of a page.
func (d *damagedStore) overwrite(page, offset int, data []byte) {
	d.t.Helper()
	file, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := file.WriteAt(data, int64(page*os.Getpagesize()+offset)); err != nil {
		d.t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// pagesOf returns the pages of a kind (leaf, branch, freelist); with a bucket, its first leaf.
func (d *damagedStore) pagesOf(kind string, bucket []byte) (ids []int) {
	d.t.Helper()
	db, err := bbolt.Open(d.path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true, Timeout: lockTimeout})
	if err != nil {
		d.t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		text, err := os.ReadFile(d.path)
		if err != nil {
			return err
		}
		first, _ := tx.Bucket(tokensBucket).Cursor().First()
		if bucket != nil {
			first, _ = tx.Bucket(bucket).Cursor().First()
		}
		for id := 2; ; id++ {
			info, err := tx.Page(id)
			if info == nil || err != nil {
				return err
			}
			page := text[id*os.Getpagesize():]
			if info.Type != kind || bucket != nil && !bytes.HasPrefix(page[16+binary.NativeEndian.Uint32(page[16+4:]):], first) {
				continue // the first element, after the header, has the offset of the first key
			}
			ids = append(ids, id)
		}
	})
	if err != nil || len(ids) == 0 {
		d.t.Fatalf("pages of type %s: %v, %v", kind, ids, err)
	}
	return ids
}

// aside returns the saved damaged files.
func (d *damagedStore) aside() []string {
	d.t.Helper()
	found, err := filepath.Glob(d.path + ".damaged-*")
	if err != nil {
		d.t.Fatal(err)
	}
	return found
}

// kept returns the number of live sessions. It fails the test if one is neither live nor unknown.
func (d *damagedStore) kept(s *Store) (live int) {
	d.t.Helper()
	for _, h := range d.live {
		switch _, err := s.Lookup(d.t.Context(), h); {
		case err == nil:
			live++
		case !errors.Is(err, tokens.ErrUnknown):
			d.t.Fatalf("a look-up after the rebuild: %v", err)
		}
	}
	return live
}

func TestDamagedFileIsRebuiltFromReadableRecords(t *testing.T) {
	testrun.Plain(t)
	wild := binary.NativeEndian.AppendUint32(nil, math.MaxUint32-100)
	for name, c := range map[string]struct {
		kind   string
		bucket []byte
		offset int
		data   []byte
		loses  bool
	}{
		"a leaf of sessions without a header":        {"leaf", tokensBucket, 0, make([]byte, 16), true},
		"a leaf of sessions with a wild offset":      {"leaf", tokensBucket, 16 + 4, wild, true},
		"a leaf of sessions with a wild length":      {"leaf", tokensBucket, 16 + 8, wild, true},
		"a leaf of sessions with a huge size":        {"leaf", tokensBucket, 12, wild, true},
		"a leaf of users without a header":           {"leaf", usersBucket, 0, make([]byte, 16), false},
		"a leaf of public ids with too many entries": {"leaf", idsBucket, 10, []byte{0xff, 0xff}, false},
		// the leaf may have revoked tokens
		"a list of free pages with a leaf of sessions": {"freelist", nil, 16, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDamagedStore(t)
			data, page := c.data, d.pagesOf(c.kind, c.bucket)[0]
			if data == nil {
				data = binary.NativeEndian.AppendUint64(nil, uint64(d.pagesOf("leaf", tokensBucket)[0]))
			}
			d.overwrite(page, c.offset, data)
			before, err := os.ReadFile(d.path)
			if err != nil {
				t.Fatal(err)
			}
			s := d.open()
			live := d.kept(s)
			if c.loses && (live == damageableSessions || live < damageableSessions*9/10) || !c.loses && live != damageableSessions {
				t.Errorf("%d of %d sessions kept", live, damageableSessions)
			}
			if _, err := s.Lookup(t.Context(), d.revoked.Hash); !errors.Is(err, tokens.ErrUnknown) {
				t.Errorf("a revoked token after the rebuild: %v", err)
			}
			if _, err := s.Lookup(t.Context(), d.exchanged.Hash); !errors.Is(err, tokens.ErrUnknown) {
				t.Errorf("an exchanged token after the rebuild: %v", err)
			}
			if aside := d.aside(); len(aside) != 1 {
				t.Errorf("damaged files: %v", aside)
			} else if kept, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(kept, before) {
				t.Errorf("%s is not the damaged file (%v)", aside[0], err)
			}
			if log := d.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "the token database was damaged; rebuilt it") {
				t.Errorf("the log is %q", log)
			}
			if got := testutil.ToFloat64(s.damage); got != 1 {
				t.Errorf("the damage counter is %v, want 1", got)
			}
			create(t, s, "carl")
			if n, err := s.RevokeUser(t.Context(), d.live[0].Hex()[:12]); n > 1 || err != nil {
				t.Errorf("ending a user's sessions = %d, %v", n, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			d.open()
			if len(d.aside()) != 1 || d.log.Len() > 0 {
				t.Errorf("rebuilt a second time: %q", d.log.String())
			}
		})
	}
}

func TestUnreadableFileIsAnErrorWithRemedy(t *testing.T) {
	d := newDamagedStore(t)
	for _, page := range d.pagesOf("leaf", nil) {
		d.overwrite(page, 0, make([]byte, os.Getpagesize()))
	}
	before, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first attempt must release its lock
		_, err = Open(d.dir, Config{})
		if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), d.path) || !strings.Contains(err.Error(), "move it away, and users log in again") {
			t.Errorf("Open = %v, want one line with the remedy", err)
		}
	}
	if after, err := os.ReadFile(d.path); err != nil || !bytes.Equal(after, before) || len(d.aside()) > 0 {
		t.Errorf("the file was changed (%v, %v)", err, d.aside())
	}
}

// Free pages contain revoked tokens. Without the list of free pages, a damaged branch may lead to
// one.
func TestFileWithoutFreelistIsAnErrorWithRemedy(t *testing.T) {
	d := newDamagedStore(t)
	d.overwrite(d.pagesOf("freelist", nil)[0], 0, make([]byte, 16))
	before, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(d.dir, Config{})
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "the list of free pages") || !strings.Contains(err.Error(), "move it away, and users log in again") {
		t.Errorf("Open = %v, want one line with the remedy", err)
	}
	if after, err := os.ReadFile(d.path); err != nil || !bytes.Equal(after, before) || len(d.aside()) > 0 {
		t.Errorf("the file was changed (%v, %v)", err, d.aside())
	}
}

func TestDamagedMetaPageIsLogged(t *testing.T) {
	for page := range 2 {
		d := newDamagedStore(t)
		d.overwrite(page, 0, make([]byte, 80))
		s := d.open()
		if log := d.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "meta pages") || !strings.Contains(log, "repeat a revoke") {
			t.Errorf("without meta page %d the log is %q", page, log)
		}
		if got := testutil.ToFloat64(s.damage); got != 1 {
			t.Errorf("without meta page %d: the damage counter is %v, want 1", page, got)
		}
		if live := d.kept(s); live != damageableSessions {
			t.Errorf("without meta page %d: %d of %d sessions kept", page, live, damageableSessions)
		}
		create(t, s, "carl") // a change rewrites the page
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if d.open(); d.log.Len() > 0 {
			t.Errorf("logged a second time: %q", d.log.String())
		}
	}
}

// The mapping makes changes of the open file visible.
func TestDamageToOpenFileIsAnError(t *testing.T) {
	t.Run("pages without a header", func(t *testing.T) {
		d := newDamagedStore(t)
		leaf := d.pagesOf("leaf", tokensBucket)[0]
		s := d.open()
		d.overwrite(leaf, 0, make([]byte, 16))
		d.useDamaged(s)
	})
	t.Run("a wild offset", func(t *testing.T) {
		d := newDamagedStore(t)
		leaf := d.pagesOf("leaf", tokensBucket)[0]
		s := d.open()
		for element := range 5 {
			d.overwrite(leaf, 16+16*element+4, binary.NativeEndian.AppendUint32(nil, math.MaxUint32-100))
		}
		d.useDamaged(s)
	})
	t.Run("a file that was cut", func(t *testing.T) { // a read beyond its end is a bus error
		d := newDamagedStore(t)
		s := d.open()
		if err := os.Truncate(d.path, int64(4*os.Getpagesize())); err != nil {
			t.Fatal(err)
		}
		d.useDamaged(s)
	})
}

// useDamaged uses a store that has unreadable pages.
func (d *damagedStore) useDamaged(s *Store) {
	t := d.t
	t.Helper()
	if _, err := s.sweep(); err == nil || !strings.Contains(err.Error(), "a restart rebuilds it") {
		t.Errorf("sweeping = %v, want an error with the remedy", err)
	}
	failed := 0
	for _, h := range d.live {
		if _, err := s.Lookup(t.Context(), h); err != nil {
			failed++
			if !errors.Is(err, tokens.ErrUnavailable) && !errors.Is(err, tokens.ErrUnknown) {
				t.Fatalf("a look-up in a damaged file: %v", err)
			}
		}
	}
	if failed == 0 {
		t.Error("no look-up read the damaged page, so no result")
	}
	_ = s.Create(t.Context(), storetest.New(t, "dan"), 0) // may fail too
	if testutil.ToFloat64(s.damage) == 0 {
		t.Error("no damage counted")
	}
}

func TestDamagedRecordDoesNotPreventLogin(t *testing.T) {
	var log bytes.Buffer
	s, err := Open(t.TempDir(), Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	damaged, old := create(t, s, "ann"), create(t, s, "ann")
	err = s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(tokensBucket).Put(damaged.Hash[:], []byte("not a record"))
	})
	if err != nil {
		t.Fatal(err)
	}
	next := storetest.New(t, "ann")
	if err := s.Create(t.Context(), next, 1); err != nil {
		t.Fatalf("a login: %v", err)
	}
	for name, c := range map[string]struct {
		h    tokens.Hash
		want error
	}{"new": {next.Hash, nil}, "old": {old.Hash, tokens.ErrUnknown}, "damaged": {damaged.Hash, tokens.ErrCorrupt}} {
		if _, err := s.Lookup(t.Context(), c.h); !errors.Is(err, c.want) {
			t.Errorf("the %s token: %v", name, err)
		}
	}
	// by the login and by the look-up
	if got := fmt.Sprint(testutil.ToFloat64(s.damage)); got != "2" {
		t.Errorf("the damage counter is %s, want 2", got)
	}
	if !strings.Contains(log.String(), "skipped token records that cannot be read") {
		t.Errorf("the log is %q", log.String())
	}
}
