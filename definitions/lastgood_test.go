package definitions

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestLastGoodGivesBackWhatItWasGiven(t *testing.T) {
	kept := LastGood{Dir: filepath.Join(t.TempDir(), "data")}
	for _, name := range []string{"shop.yaml", `a "file" with sha256=1 in \ it` + "\n", ""} {
		for _, text := range []string{shop("orders", "items"), "\n\n" + shop("orders"), "services: []"} {
			d, err := Parse(name, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if err := kept.Save(d); err != nil {
				t.Fatal(err)
			}
			got, err := kept.Load()
			if err != nil {
				t.Fatal(err)
			}
			if got.Name != name || !bytes.Equal(got.Text, d.Text) || !reflect.DeepEqual(got.Gateway, d.Gateway) || got.Hash() != d.Hash() {
				t.Errorf("got %q and %q back, want %q and %q", got.Name, got.Text, name, text)
			}
		}
	}
}

func TestLastGoodIsForItsOwnerAloneAndLeavesNothingBeside(t *testing.T) {
	kept := LastGood{Dir: filepath.Join(t.TempDir(), "data")}
	for range 2 {
		if err := kept.Save(mustParse(t, shop("orders"))); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(kept.Dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("files in the directory: %v, %v; want one", files, err)
	}
	for path, want := range map[string]fs.FileMode{kept.path(): 0o600, kept.Dir: 0o700 | fs.ModeDir} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestNothingKeptYetIsNoDamage(t *testing.T) {
	_, err := LastGood{Dir: t.TempDir()}.Load()
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

// TestDamageIsFound changes each byte of what is kept, and cuts it off after each: none of it may be served.
func TestDamageIsFound(t *testing.T) {
	kept := LastGood{Dir: t.TempDir()}
	if err := kept.Save(mustParse(t, shop("orders"))); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(kept.path())
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, i int, data []byte) {
		t.Helper()
		if err := os.WriteFile(kept.path(), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := kept.Load(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s at byte %d: got %v, %v; want ErrDamaged", what, i, d, err)
		}
	}
	for i := range whole {
		changed := bytes.Clone(whole)
		changed[i] ^= 0x20
		refused("changed", i, changed)
		refused("cut off", i, whole[:i])
	}
	refused("appended", len(whole), append(bytes.Clone(whole), '#'))
}

func TestLastGoodSaysWhenItCannotKeep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (LastGood{Dir: filepath.Join(file, "data")}).Save(mustParse(t, shop("orders"))); err == nil {
		t.Error("kept below a file")
	}
}
