package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
)

func TestADataFolderIsLockedForOneGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
		first, err := lockData(t.Context(), dir, quiet)
		if first == nil || err != nil {
			t.Fatalf("lockData = %v, %v", first, err)
		}
		if _, err := lockData(t.Context(), dir, quiet); err == nil || !strings.Contains(err.Error(), "another gateway uses it") {
			t.Errorf("locked twice: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := lockData(ctx, dir, quiet); !errors.Is(err, context.Canceled) {
			t.Errorf("waiting beyond the context: %v", err)
		}
		released := make(chan *os.File)
		go func() {
			second, err := lockData(t.Context(), dir, quiet)
			if err != nil {
				t.Error(err)
			}
			released <- second
		}()
		synctest.Wait() // it waits for the first
		first.Close()
		(<-released).Close()
	})
}

func TestADataFolderThatCannotBeLockedIsLoggedAndUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a-file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	lock, err := lockData(t.Context(), file, slog.New(slog.NewTextHandler(&log, nil)))
	if lock != nil || err != nil {
		t.Errorf("lockData = %v, %v", lock, err)
	}
	if !strings.Contains(log.String(), "locking --data failed") {
		t.Errorf("the log is %q", log.String())
	}
}
