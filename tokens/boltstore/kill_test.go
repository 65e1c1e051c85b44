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

// childEnv names the folder in which a child process of the test opens, revokes and refreshes
// sessions until it is killed. The child prints each acknowledged step.
const childEnv = "GATEPOST_TEST_BOLTSTORE_CHILD"

func childFolder() string { return os.Getenv(childEnv) }

// runChild uses the store in dir until it is killed.
func runChild(dir string) {
	s, err := Open(dir, Config{SweepEvery: time.Millisecond})
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

// step opens one session and ends or refreshes another. It prints each step that the store
// acknowledged.
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
		// The kept session ends too. It is doubtful from the call on, and gone after it.
		fmt.Println("doubtful", kept.Hash.Hex())
		if _, err = s.RevokeUser(ctx, gone.User); err == nil {
			fmt.Println("gone", kept.Hash.Hex())
		}
	case 4:
		// Even if the child dies before it prints the successor, the old token can be refreshed
		// again.
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

func TestKillLosesNoAcknowledgedChange(t *testing.T) {
	dir := t.TempDir()
	states := map[string]string{} // token hash -> its last printed state
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		runAndKillChild(t, dir, 20+round*37, states)
		s, err := Open(dir, Config{})
		if err != nil {
			t.Fatalf("opening after the kill: %v", err)
		}
		if aside, err := filepath.Glob(filepath.Join(dir, fileName+".damaged-*")); len(aside) > 0 || err != nil {
			t.Errorf("a kill has damaged the file: %v, %v", aside, err)
		}
		live, gone := 0, 0
		for text, state := range states {
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
					t.Errorf("a revoked token is live: %v", err)
				}
			case "refreshing":
				requireRefresh(t, s, hashOf(t, text), states)
			}
		}
		if live == 0 || gone == 0 {
			t.Errorf("round %d has no result: %d live, %d gone", round, live, gone)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// requireRefresh fails the test unless a token in a refresh gets a live successor.
func requireRefresh(t *testing.T, s *Store, h tokens.Hash, states map[string]string) {
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
	states[given.Session.Hash.Hex()] = "live"
}

// runAndKillChild runs a child and kills it after it has printed the given number of steps.
func runAndKillChild(t *testing.T, dir string, steps int, states map[string]string) {
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
		states[hash] = state
		if n == steps {
			_ = child.Process.Kill() // everything that it printed is read
		}
	}
	if err := child.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
}

func hashOf(t *testing.T, text string) (h tokens.Hash) {
	t.Helper()
	if n, err := hex.Decode(h[:], []byte(text)); err != nil || n != len(h) {
		t.Fatalf("the child printed %q", text)
	}
	return h
}
