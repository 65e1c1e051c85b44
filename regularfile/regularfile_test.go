//go:build unix

package regularfile

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A pipe without a writer blocks a process that opens it.
func TestOnlyRegularFilesAreOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, socket, link, file := filepath.Join(dir, "pipe"), filepath.Join(dir, "socket"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Symlink(pipe, link), os.WriteFile(file, []byte("text"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]string{pipe: "a pipe", link: "a pipe", socket: "a socket", "/dev/zero": "a device", dir: "a directory"} {
		if _, err := Read(path); err == nil || err.Error() != path+" is "+kind+", not a regular file; write its content to a file" {
			t.Errorf("Read(%s) = %v, want that it is %s", path, err, kind)
		}
	}
	if _, err := Read(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if err := errors.Join(os.Remove(link), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	if content, err := Read(link); err != nil || string(content) != "text" {
		t.Errorf("a link to a file: %q, %v", content, err)
	}
}

func TestALargeFileIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "large")
	for _, size := range []int{0, MaxSize, MaxSize + 1} {
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
		content, err := Read(path)
		if size <= MaxSize && (err != nil || len(content) != size) {
			t.Errorf("%d bytes: %d, %v", size, len(content), err)
		}
		if size > MaxSize && (err == nil || !strings.HasPrefix(err.Error(), path+" is larger than 4 MiB")) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if content, err := ReadUpTo(path, 3); err != nil || string(content) != "xxx" {
		t.Errorf("the first bytes: %q, %v", content, err)
	}
}
