//go:build unix

package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/testrun"
	"gatepost/tokens"
	"gatepost/tokens/storetest"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.etcd.io/bbolt"
)

func create(t testing.TB, s *Store, user string) *tokens.Session {
	t.Helper()
	session := storetest.New(t, user)
	if err := s.Create(t.Context(), session, 0); err != nil {
		t.Fatal(err)
	}
	return session
}

func TestFileAndFolderPermissions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "data")
	mustOpen(t, dir)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, fileName): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", filepath.Base(path), got, want)
		}
	}
}

func TestLockedFileIsAnErrorWithRemedy(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, dir)
	_, err := Open(dir, Config{})
	if err == nil || !strings.Contains(err.Error(), "another process") || !strings.Contains(err.Error(), "--data") {
		t.Errorf("opened twice: %v", err)
	}
}

func TestFileThatIsNotADatabaseIsKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	text := strings.Repeat("this is plain text\n", 2000)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Config{}); err == nil || !strings.Contains(err.Error(), "no token database") {
		t.Errorf("opened a text file: %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != text {
		t.Errorf("the file was changed (%v)", err)
	}
}

func TestSessionsSurviveRestart(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	kept, gone, refreshed := create(t, s, "ann"), create(t, s, "ann"), create(t, s, "bob")
	next := refreshed.Renewed(storetest.NewHash(t), time.Now(), time.Hour)
	if err := errors.Join(s.Revoke(t.Context(), gone.Hash), rotate(s, refreshed.Hash, next), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir)
	for name, c := range map[string]struct {
		h    tokens.Hash
		want error
	}{"kept": {kept.Hash, nil}, "revoked": {gone.Hash, tokens.ErrUnknown}, "old": {refreshed.Hash, tokens.ErrUnknown}, "new": {next.Hash, nil}} {
		if _, err := s.Lookup(t.Context(), c.h); !errors.Is(err, c.want) {
			t.Errorf("the %s token: %v", name, err)
		}
	}
	if err := rotate(s, refreshed.Hash, refreshed.Renewed(storetest.NewHash(t), time.Now(), time.Hour)); !errors.Is(err, tokens.ErrReused) {
		t.Errorf("a second exchange after a restart: %v", err)
	}
}

func TestClosedStoreIsUnavailable(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	session := create(t, s, "ann")
	if _, err := s.Lookup(t.Context(), session.Hash); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	_, lookup := s.Lookup(t.Context(), session.Hash)
	_, list := s.Sessions(t.Context(), "ann")
	for name, err := range map[string]error{
		"create": s.Create(t.Context(), storetest.New(t, "ann"), 0),
		"lookup": lookup,
		"revoke": s.Revoke(t.Context(), session.Hash),
		"list":   list,
		"ping":   s.Ping(t.Context()),
	} {
		if !errors.Is(err, tokens.ErrUnavailable) || errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCorruptRecordIsAnError(t *testing.T) {
	var log bytes.Buffer
	s, err := Open(t.TempDir(), Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	session, other := create(t, s, "ann"), create(t, s, "bob")
	err = s.db.Update(func(tx *bbolt.Tx) error {
		records := tx.Bucket(tokensBucket)
		return records.Put(session.Hash[:], records.Get(other.Hash[:]))
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Lookup(t.Context(), session.Hash)
	if got != nil || !errors.Is(err, tokens.ErrCorrupt) || !errors.Is(err, tokens.ErrUnavailable) {
		t.Errorf("another session's record: %+v, %v", got, err)
	}
	second := create(t, s, "ann")
	counted := testutil.ToFloat64(s.damage)
	if got, err := s.Sessions(t.Context(), "ann"); err != nil || len(got) != 1 || got[0].ID != second.ID {
		t.Errorf("a list with an unreadable record: %v, %v", got, err)
	}
	if got := testutil.ToFloat64(s.damage) - counted; got != 1 || !strings.Contains(log.String(), "skipped token records that cannot be read") {
		t.Errorf("the list increased the damage counter by %v, want 1; the log is %q", got, log.String())
	}
	if n, err := s.RevokeUser(t.Context(), "ann"); n != 1 || err != nil {
		t.Errorf("revoking the user: %d, %v", n, err)
	}
	if _, err := s.Lookup(t.Context(), session.Hash); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := s.Lookup(t.Context(), other.Hash); err != nil {
		t.Errorf("bob's session: %v", err)
	}
}

// A limit on the file size simulates a full disk: writes fail at the same points.
func TestFullDiskLosesNothing(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	// the limit applies to all files, so the store's must be larger than the test's log
	fill(t, s, 2000)
	before := create(t, s, "ann")
	info, err := os.Stat(s.db.Path())
	if err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var unlimited syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &unlimited); err != nil {
		t.Fatal(err)
	}
	full := unlimited
	full.Cur = uint64(info.Size())
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full); err != nil {
		t.Fatal(err)
	}
	var last *tokens.Session
	var failed error
	for range 10_000 {
		session := storetest.New(t, "bob")
		session.UserAgent = strings.Repeat("x", 256)
		if failed = s.Create(t.Context(), session, 0); failed != nil {
			if _, err := s.Lookup(t.Context(), session.Hash); !errors.Is(err, tokens.ErrUnknown) {
				t.Errorf("the session that was not stored: %v", err)
			}
			break
		}
		last = session
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &unlimited); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(failed, tokens.ErrUnavailable) {
		t.Fatalf("a full disk: %v", failed)
	}
	for _, session := range []*tokens.Session{before, last} {
		if session == nil {
			continue
		}
		if _, err := s.Lookup(t.Context(), session.Hash); err != nil {
			t.Errorf("an earlier session: %v", err)
		}
	}
	create(t, s, "carl")
}

func TestSlowWriteRespectsDeadline(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	session := create(t, s, "ann")
	stuck, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.update(context.Background(), "being slow", func(*change) error { close(stuck); <-release; return nil })
	})
	<-stuck
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Revoke(ctx, session.Hash); !errors.Is(err, tokens.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("revoking during a slow write: %v", err)
	}
	if _, err := s.Lookup(t.Context(), session.Hash); err != nil {
		t.Errorf("looking up during a slow write: %v", err)
	}
	close(release)
	wg.Wait()
}

func TestExpiredSessionsAreDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.TempDir(), Config{SweepEvery: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		kept := storetest.NewLasting(t, "ann", 24*time.Hour)
		if err := s.Create(t.Context(), kept, 0); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		for i := range 3 {
			short, err := tokens.NewSession(storetest.NewHash(t), fmt.Sprint("user", i), nil, now, time.Hour, 2*time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Create(t.Context(), short, 0); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				// An exchanged token is kept until its session ends.
				next := short.Renewed(storetest.NewHash(t), now, 90*time.Minute)
				if err := rotate(s, short.Hash, next); err != nil {
					t.Fatal(err)
				}
				if err := s.Touch(t.Context(), next.Principal(), now, "192.0.2.1"); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, step := range []struct {
			after time.Duration
			want  [4]int
		}{
			{0, [4]int{5, 4, 4, 1}},
			{time.Hour + 2*time.Minute, [4]int{3, 2, 2, 1}},
			{time.Hour, [4]int{1, 1, 1, 0}},
		} {
			time.Sleep(step.after)
			synctest.Wait()
			if got := entries(s); got != step.want {
				t.Errorf("%v after the logins the file has %v entries, want %v", time.Since(now), got, step.want)
			}
		}
		if _, err := s.Lookup(t.Context(), kept.Hash); err != nil {
			t.Errorf("a live session was swept: %v", err)
		}
	})
}

// entries returns the number of tokens, users, ids and last uses.
func entries(s *Store) (n [4]int) {
	_ = s.db.View(func(tx *bbolt.Tx) error {
		for i, name := range [][]byte{tokensBucket, usersBucket, idsBucket, seenBucket} {
			n[i] = tx.Bucket(name).Stats().KeyN
		}
		return nil
	})
	return n
}

// After its grace a token is kept to detect reuse, without its sealed successor.
func TestSealedSuccessorIsDeletedAfterGrace(t *testing.T) {
	s, err := Open(t.TempDir(), Config{SweepEvery: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	old := create(t, s, "ann")
	next := storetest.Successor(old.Renewed(storetest.NewHash(t), time.Now(), time.Hour))
	if _, err := s.Rotate(t.Context(), old.Hash, next, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Millisecond) {
		var record *tokens.Record
		entries := 0
		err := s.view("reading", func(tx *bbolt.Tx) (err error) {
			entries = len(tokensOf(tx, "ann"))
			record, err = read(tx, old.Hash)
			return err
		})
		if err != nil || !record.Retired {
			t.Fatalf("the old record is %+v, %v", record, err)
		}
		if record.Successor == nil && entries == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("in the file: %+v, and %d entries", record, entries)
		}
	}
	if _, err := s.Lookup(t.Context(), next.Session.Hash); err != nil {
		t.Errorf("the successor: %v", err)
	}
	if err := rotate(s, old.Hash, old.Renewed(storetest.NewHash(t), time.Now(), time.Hour)); !errors.Is(err, tokens.ErrReused) {
		t.Errorf("refreshing the old token: %v", err)
	}
}

// fill adds n sessions in few transactions, in the order of their keys.
func fill(t testing.TB, s *Store, n int) []tokens.Hash {
	t.Helper()
	all := make([]tokens.Hash, n)
	for i := range all {
		all[i] = storetest.NewHash(t)
	}
	slices.SortFunc(all, func(a, b tokens.Hash) int { return bytes.Compare(a[:], b[:]) })
	now := time.Now()
	for part := range slices.Chunk(all, 10_000) {
		err := s.commit(func(c *change) error {
			for _, h := range part {
				session, err := tokens.NewSession(h, h.Hex()[:12], nil, now, time.Hour, time.Hour)
				if err != nil {
					return err
				}
				session.UserAgent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
				record, err := tokens.EncodeRecord(session)
				if err != nil {
					return err
				}
				if err := c.put(session, record); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestMemoryOfManySessions(t *testing.T) {
	testrun.Plain(t)
	if testing.Short() {
		t.Skip("100,000 sessions take seconds: run without -short")
	}
	s := mustOpen(t, t.TempDir())
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	all := fill(t, s, 100_000)
	for _, h := range all {
		if _, err := s.Lookup(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	if grown > 20<<20 {
		t.Errorf("100,000 sessions use %d bytes of heap", grown)
	}
	t.Logf("100,000 sessions: %.1f MiB of heap", float64(grown)/(1<<20))
	runtime.KeepAlive(all)

	if runtime.GOOS != "linux" {
		return
	}
	mapped := residentFile(t)
	if err := release(s.db); err != nil {
		t.Fatal(err)
	}
	if now := residentFile(t); now > mapped-(20<<20) {
		t.Errorf("%d bytes of the file were resident, and %d after the release", mapped, now)
	}
	if _, err := s.Lookup(t.Context(), all[4711]); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// residentFile returns the number of resident bytes of mapped files.
func residentFile(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(status), "RssFile:")
	if !ok {
		t.Skip("this kernel does not report RssFile (Linux 4.5 or newer does)")
	}
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

func BenchmarkLookup(b *testing.B) {
	s := mustOpen(b, b.TempDir())
	all := fill(b, s, 100_000)
	ctx := context.Background()
	b.Run("one token", func(b *testing.B) {
		h := all[0]
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Lookup(ctx, h); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("many tokens", func(b *testing.B) {
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			h := all[n%len(all)]
			if _, err := s.Lookup(ctx, h); err != nil {
				b.Fatal(err)
			}
			n += 7919
		}
	})
	b.Run("unknown", func(b *testing.B) {
		h := storetest.NewHash(b)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Lookup(ctx, h); !errors.Is(err, tokens.ErrUnknown) {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCreateAndRevoke(b *testing.B) {
	s := mustOpen(b, b.TempDir())
	fill(b, s, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		session := create(b, s, "ann")
		if err := s.Revoke(b.Context(), session.Hash); err != nil {
			b.Fatal(err)
		}
	}
}
