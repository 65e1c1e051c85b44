package main

import (
	"os"
	"path/filepath"
	"testing"
)

// A folder whose group is given to what is made in it is shared with another user's Envoy; any other is not.
func TestTheGroupMayConnectToASocketInASharedFolder(t *testing.T) {
	for name, c := range map[string]struct{ folder, socket os.FileMode }{
		"a private folder": {0o700, 0o600},
		"an open folder":   {0o777, 0o600},
		"a shared folder":  {os.ModeSetgid | 0o750, 0o660},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, c.folder); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "grpc.sock")
			listener, err := listen("unix:" + path)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != c.socket {
				t.Errorf("the socket has mode %v, want %v", got, c.socket)
			}
		})
	}
}
