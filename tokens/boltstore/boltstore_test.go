package boltstore

import (
	"context"
	"testing"

	"gatepost/tokens"
	"gatepost/tokens/storetest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := childFolder(); dir != "" {
		runChild(dir)
	}
	goleak.VerifyTestMain(m)
}

func mustOpen(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// rotate exchanges a token without a grace.
func rotate(s *Store, old tokens.Hash, next *tokens.Session) error {
	_, err := s.Rotate(context.Background(), old, storetest.Successor(next), 0)
	return err
}

func TestFileIsATokenStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) tokens.Store { return mustOpen(t, t.TempDir()) })
}
