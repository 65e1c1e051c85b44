package definitions

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestReplaceKeepsModeAndLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file.yaml"), filepath.Join(dir, "link.yaml")
	if err := errors.Join(os.WriteFile(file, []byte("old"), 0o640), os.Symlink("file.yaml", link)); err != nil {
		t.Fatal(err)
	}
	if err := Replace(link, []byte("new")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	info, _ := os.Lstat(link)
	mode, _ := os.Stat(file)
	if err != nil || string(text) != "new" || info.Mode().Type() != os.ModeSymlink || mode.Mode().Perm() != 0o640 {
		t.Errorf("the file is %q (%v) with mode %v, its link %v", text, err, mode.Mode(), info.Mode())
	}
	if err := Replace(dir, nil); !errors.Is(err, ErrFolder) {
		t.Errorf("a folder: %v", err)
	}
	if err := Replace(filepath.Join(dir, "none"), nil); err == nil {
		t.Error("a file that is not there was made")
	}
}
