package module

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	one, err := install(dir, []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(one)
	again, err := install(dir, []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(again); !os.SameFile(before, after) {
		t.Error("the same module was written again, and Envoys may have it mapped")
	}
	other, err := install(dir, []byte("other"))
	if err != nil || other == one {
		t.Errorf("another module: %s, %v", other, err)
	}
	if err := os.WriteFile(one, []byte("spoilt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := install(dir, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if raw, _ := os.ReadFile(one); string(raw) != "one" {
		t.Errorf("a spoilt file was kept: %q", raw)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("%d files are in the folder", len(left))
	}
	if _, err := install(filepath.Join(dir, "absent"), []byte("one")); err == nil {
		t.Error("no error for a folder that is not there")
	}
}

// TestLibrary covers both kinds of build: with the module, and without it (an error).
func TestLibrary(t *testing.T) {
	raw, err := library()
	if errors.Is(err, ErrNotBuilt) {
		t.Skip(err)
	}
	if errors.Is(err, ErrStale) {
		t.Skip(err)
	}
	if err != nil || string(raw[:4]) != "\x7fELF" {
		t.Errorf("%d bytes: %v", len(raw), err)
	}
	if other := bytes.Replace(raw, sourceHash(), make([]byte, sha256.Size), 1); !errors.Is(checkSource(other), ErrStale) {
		t.Error("a module of other sources is accepted")
	}
}
