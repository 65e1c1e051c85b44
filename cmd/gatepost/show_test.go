package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/tokens/redistest"
)

// command runs a command with a Redis and checks its exit code.
func command(t *testing.T, redis string, code int, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if got := gatepost(t.Context(), append(args, "--redis", redis), &stdout, &stderr); got != code {
		t.Fatalf("gatepost %v: exit code %d, want %d:\n%s%s", args, got, code, &stdout, &stderr)
	}
	return stdout.String() + stderr.String()
}

// Errors refer to lines of a revision, so the file must be printed byte for byte.
func TestShowPrintsARevisionByteForByte(t *testing.T) {
	redis := redistest.Start(t).URL()
	if got := command(t, redis, 1, "show"); !strings.Contains(got, "there is no such revision") {
		t.Errorf("show of an empty Redis: %s", got)
	}
	file := filepath.Join(t.TempDir(), "gatepost.yaml")
	texts := []string{"# first\r\nservices: []\r\n", "# second, without a line end\n\nservices:  []"}
	for _, text := range texts {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, redis, 0, "apply", file)
	}
	for args, want := range map[string]string{"show": texts[1], "show 1": texts[0], "show 2": texts[1]} {
		if got := command(t, redis, 0, strings.Fields(args)...); got != want {
			t.Errorf("%s: got %q, want %q", args, got, want)
		}
	}
	if got := command(t, redis, 1, "show", "3"); !strings.Contains(got, "reading revision 3 in "+redis+": there is no such revision") {
		t.Errorf("show of a revision that there is not: %s", got)
	}
}
