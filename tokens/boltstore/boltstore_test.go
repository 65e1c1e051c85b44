package boltstore

import (
	"testing"

	"gatepost/tokens"
	"gatepost/tokens/storetest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := childFolder(); dir != "" {
		victim(dir)
	}
	goleak.VerifyTestMain(m)
}

func mustOpen(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestTheFileIsATokenStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) tokens.Store { return mustOpen(t, t.TempDir()) })
}
