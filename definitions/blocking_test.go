//go:build unix

package definitions

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A pipe without a writer blocks whoever opens it for reading.
func TestAFileReplacedByAPipeIsReportedAndStillFollowed(t *testing.T) {
	f := started(t, byPoll)
	must(t, os.Remove(f.path))
	must(t, syscall.Mkfifo(f.path, 0o600))
	f.wants("bad reading definitions: " + f.path + " is a pipe, not a regular file")
	f.watcher.Reload(t.Context())
	f.wants("bad reading definitions: " + f.path + " is a pipe")
	writeFile(t, f.path+"~", shop("items"))
	must(t, os.Rename(f.path+"~", f.path))
	f.wants("good items")
}

func TestWhatIsNoRegularFileIsNeverOpened(t *testing.T) {
	dir := t.TempDir()
	pipe, socket, link := filepath.Join(dir, "pipe"), filepath.Join(dir, "socket"), filepath.Join(dir, "link")
	must(t, syscall.Mkfifo(pipe, 0o600))
	listener, err := net.Listen("unix", socket)
	must(t, err)
	defer listener.Close()
	must(t, os.Symlink(pipe, link))
	for path, kind := range map[string]string{pipe: "a pipe", link: "a pipe", socket: "a socket", "/dev/zero": "a device"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path+" is "+kind+", not a regular file; write") {
			t.Errorf("Load(%s) = %v, want that it is %s", path, err, kind)
		}
	}
}

func TestAHangingFileSystemDoesNotOutliveTheContext(t *testing.T) {
	hangs := make(chan struct{})
	defer close(hangs)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := await(ctx, func() error { <-hangs; return nil }); ok {
		t.Error("a call that hangs has returned")
	}
	gone := errors.New("gone")
	if err, ok := await(t.Context(), func() error { return gone }); !ok || !errors.Is(err, gone) {
		t.Errorf("await = %v, %v; want the result of the call", err, ok)
	}
}

// docs/operations.md names both times: 0.1 s and 5 s.
func TestTheDebounceIsBoundedByDefault(t *testing.T) {
	c := newWatcher(t, WatcherConfig{Path: "shop.yaml"}).config
	if c.Debounce != 100*time.Millisecond || c.MaxWait != 5*time.Second {
		t.Errorf("a file counts as changed after %v, and after %v at most", c.Debounce, c.MaxWait)
	}
}

func TestAFileThatChangesAllTheTimeIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.yaml")
	writeFile(t, path, shop("orders"))
	f := followWith(t, WatcherConfig{
		Path: path, Current: mustParse(t, shop("orders")), Poll: byPoll, Debounce: time.Hour, MaxWait: byPoll, // it never settles
	})
	for i := 0; ; i++ {
		writeFile(t, path+"~", shop(fmt.Sprintf("items-%d", i)))
		must(t, os.Rename(path+"~", path))
		select {
		case got := <-f.reports:
			if !strings.HasPrefix(got, "good items-") {
				t.Errorf("reported %q", got)
			}
			return
		default:
		}
	}
}
