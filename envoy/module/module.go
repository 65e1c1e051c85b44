// Package module decides which module Envoy can load to check tokens in-process, and installs it.
//
// The module is written in C in this folder. table.h describes the table of decisions that it
// reads, module.c is the filter, and driver.c runs it without Envoy for tests. tools/module
// compiles it into build, from which it is embedded. Go does not compile the C files (they have a
// build constraint), so a build without a C compiler succeeds and has no module. Package
// tokens/cache/table writes the table.
package module

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"gatepost/atomicfile"
)

//go:embed all:build
var built embed.FS

// What the module in build must have been compiled from.
var (
	//go:embed module.c
	moduleC []byte
	//go:embed table.h
	tableH []byte
)

// errNotBuilt means that the program was built without a module for this machine.
var errNotBuilt = errors.New("this program was built without the module for " + runtime.GOOS + "/" + runtime.GOARCH +
	" (make build needs a C compiler)")

// errStale means that the program was built with a module that was compiled from other sources. Its table may have
// another layout, so it is not used.
var errStale = errors.New("this program was built with a module of other sources (run make build, which compiles it)")

// library returns the module for this machine.
func library() ([]byte, error) {
	raw, err := built.ReadFile("build/libgatepost_" + runtime.GOARCH + ".so")
	if runtime.GOOS != "linux" || errors.Is(err, fs.ErrNotExist) {
		return nil, errNotBuilt
	}
	if err != nil {
		return nil, err
	}
	return raw, checkSource(raw)
}

// checkSource returns errStale unless raw was compiled from the sources that are embedded.
func checkSource(raw []byte) error {
	if !bytes.Contains(raw, sourceHash()) {
		return errStale
	}
	return nil
}

// sourceHash is the hash of the sources. tools/module makes it the build id of the library.
func sourceHash() []byte {
	sum := sha256.Sum256(slices.Concat(moduleC, tableH))
	return sum[:]
}

// tested is the Envoy series that the module is tested with. Envoy's ABI promises that it also
// works with the next series, which is not tested.
var tested = [2]int{1, 40}

// CheckVersion returns the reason that an Envoy of this version must not use the module, or "".
func CheckVersion(version string) string {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d.", &major, &minor); err != nil || [2]int{major, minor} != tested {
		return fmt.Sprintf("the module is tested with Envoy %d.%d, and this one is %s", tested[0], tested[1], version)
	}
	return ""
}

// Install writes the module to dir and returns its path. The name contains a hash of the content,
// because Envoy does not reload a path that it has loaded. The file is renamed into place, because
// changing a mapped file would crash the process.
func Install(dir string) (path string, err error) {
	raw, err := library()
	if err != nil {
		return "", err
	}
	return install(dir, raw)
}

func install(dir string, raw []byte) (path string, err error) {
	sum := sha256.Sum256(raw)
	path = filepath.Join(dir, "libgatepost-"+hex.EncodeToString(sum[:8])+".so")
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, raw) {
		return path, nil
	}
	if err := atomicfile.Write(path, raw, 0o755); err != nil {
		return "", fmt.Errorf("installing the module for Envoy: %w", err)
	}
	return path, nil
}
