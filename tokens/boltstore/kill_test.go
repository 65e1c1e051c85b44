package boltstore

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/storetest"
)

// childEnv names the folder in which a child process of the test opens, revokes and refreshes sessions until it is
// killed. It tells each acknowledged step on standard output.
const childEnv = "GATEPOST_TEST_BOLTSTORE_CHILD"

func childFolder() string { return os.Getenv(childEnv) }

// victim works on the store in dir until it is killed.
func victim(dir string) {
	s, err := Open(dir, Options{SweepEvery: time.Millisecond})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for {
		for worker := range 5 {
			if err := step(s, worker); err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
		}
	}
}

// step opens one session and ends or refreshes another, and says so when the store has acknowledged it.
func step(s *Store, worker int) error {
	ctx := context.Background()
	open := func() (*tokens.Session, error) {
		token, err := tokens.Mint(tokens.FormatUUID)
		if err != nil {
			return nil, err
		}
		session, err := tokens.NewSession(token.Hash(), fmt.Sprintf("user%d of %d", worker, os.Getpid()), nil, time.Now(), time.Hour, time.Hour)
		if err != nil {
			return nil, err
		}
		return session, s.Create(ctx, session, 0)
	}
	kept, err := open()
	if err != nil {
		return err
	}
	fmt.Println("live", kept.Hash.Hex())
	gone, err := open()
	if err != nil {
		return err
	}
	switch worker {
	case 0:
		err = s.Revoke(ctx, gone.Hash)
	case 1:
		err = s.RevokeSession(ctx, "", gone.ID)
	case 2:
		token, _ := tokens.Mint(tokens.FormatUUID)
		next := gone.Renewed(token.Hash(), time.Now(), time.Hour)
		if err = rotate(s, gone.Hash, next); err == nil {
			fmt.Println("live", next.Hash.Hex())
		}
	case 3:
		// The kept one goes as well: the child says so before it begins, and it is in no case live afterwards.
		fmt.Println("doubtful", kept.Hash.Hex())
		if _, err = s.RevokeUser(ctx, gone.User); err == nil {
			fmt.Println("gone", kept.Hash.Hex())
		}
	case 4:
		// Whether the child lives to say what it got or not, the token that it holds can be refreshed again.
		fmt.Println("refreshing", gone.Hash.Hex())
		token, _ := tokens.Mint(tokens.FormatUUID)
		next := storetest.Successor(gone.Renewed(token.Hash(), time.Now(), time.Hour))
		if _, err = s.Rotate(ctx, gone.Hash, next, time.Hour); err == nil {
			fmt.Println("live", next.Session.Hash.Hex())
		}
		return err
	}
	if err == nil {
		fmt.Println("gone", gone.Hash.Hex())
	}
	return err
}

func TestKilledAtAnyMomentItKeepsWhatItAcknowledged(t *testing.T) {
	dir := t.TempDir()
	told := map[string]string{} // token hash -> what was said of it last
	for round := range 6 {
		killedChild(t, dir, 20+round*37, told)
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatalf("opening after the kill: %v", err)
		}
		if aside, err := filepath.Glob(filepath.Join(dir, FileName+".damaged-*")); len(aside) > 0 || err != nil {
			t.Errorf("a kill has damaged the file: %v, %v", aside, err)
		}
		live, gone := 0, 0
		for text, state := range told {
			_, err := s.Lookup(t.Context(), hashOf(t, text))
			switch state {
			case "live":
				live++
				if err != nil {
					t.Errorf("an acknowledged session was lost: %v", err)
				}
			case "gone":
				gone++
				if !errors.Is(err, tokens.ErrUnknown) {
					t.Errorf("a revoked token came back: %v", err)
				}
			case "refreshing":
				refreshedAgain(t, s, hashOf(t, text), told)
			}
		}
		if live == 0 || gone == 0 {
			t.Errorf("round %d proves nothing: %d live, %d gone", round, live, gone)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// refreshedAgain fails the test unless a token that was being refreshed gets a successor that lives.
func refreshedAgain(t *testing.T, s *Store, h tokens.Hash, told map[string]string) {
	t.Helper()
	old, err := s.Lookup(t.Context(), h)
	if err != nil {
		t.Errorf("a token in its grace: %v", err)
		return
	}
	given, err := s.Rotate(t.Context(), h, storetest.Successor(old.Renewed(storetest.NewHash(t), time.Now(), time.Hour)), time.Hour)
	if err != nil {
		t.Errorf("refreshing again: %v", err)
		return
	}
	if _, err := s.Lookup(t.Context(), given.Session.Hash); err != nil {
		t.Errorf("the successor: %v", err)
	}
	told[given.Session.Hash.Hex()] = "live"
}

// killedChild lets a child work until it has told so many steps, and kills it in the midst of the next.
func killedChild(t *testing.T, dir string, steps int, told map[string]string) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		state, hash, _ := strings.Cut(lines.Text(), " ")
		if state == "error" {
			t.Errorf("the child failed: %s", hash)
		}
		told[hash] = state
		if n == steps {
			_ = child.Process.Kill() // what it had told before it died is read to the end
		}
	}
	if err := child.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
}

func hashOf(t *testing.T, text string) (h tokens.Hash) {
	t.Helper()
	if n, err := hex.Decode(h[:], []byte(text)); err != nil || n != len(h) {
		t.Fatalf("the child told %q", text)
	}
	return h
}
