package module

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	if errors.Is(err, errNotBuilt) {
		t.Skip(err)
	}
	if errors.Is(err, errStale) {
		t.Skip(err)
	}
	if err != nil || string(raw[:4]) != "\x7fELF" {
		t.Errorf("%d bytes: %v", len(raw), err)
	}
	if other := bytes.Replace(raw, sourceHash(), make([]byte, sha256.Size), 1); !errors.Is(checkSource(other), errStale) {
		t.Error("a module of other sources is accepted")
	}
}

// TestLibraryIsHardened reads the flags of tools/module from the library: no executable stack, read-only relocations,
// stack protection. The library exports no other symbols than Envoy's hooks.
func TestLibraryIsHardened(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		raw, err := built.ReadFile("build/libgatepost_" + arch + ".so")
		if err != nil {
			t.Logf("%s: %v", arch, err)
			continue
		}
		file, err := elf.NewFile(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		relro, stack := false, elf.PF_X
		for _, p := range file.Progs {
			switch p.Type {
			case elf.PT_GNU_RELRO:
				relro = true
			case elf.PT_GNU_STACK:
				stack = p.Flags
			}
			if p.Flags&elf.PF_W != 0 && p.Flags&elf.PF_X != 0 {
				t.Errorf("%s: a segment is writable and executable", arch)
			}
		}
		if !relro || stack&elf.PF_X != 0 {
			t.Errorf("%s: read-only relocations: %v, the stack is %v", arch, relro, stack)
		}
		if flags, err := file.DynValue(elf.DT_FLAGS); err != nil || len(flags) == 0 || flags[0]&uint64(elf.DF_BIND_NOW) == 0 {
			t.Errorf("%s: symbols are bound later: %v %v", arch, flags, err)
		}
		symbols, err := file.DynamicSymbols()
		if err != nil {
			t.Fatal(err)
		}
		isProtection := func(s elf.Symbol) bool { return s.Name == "__stack_chk_fail" }
		if !slices.ContainsFunc(symbols, isProtection) {
			t.Errorf("%s: the stack is not protected", arch)
		}
		for _, s := range symbols {
			if s.Section != elf.SHN_UNDEF && elf.ST_BIND(s.Info) == elf.STB_GLOBAL && !strings.HasPrefix(s.Name, "envoy_dynamic_module_on_") {
				t.Errorf("%s: %s is exported", arch, s.Name)
			}
		}
	}
}

// TestSourceIsShort: it runs inside Envoy, so a reviewer must be able to read all of it.
func TestSourceIsShort(t *testing.T) {
	if lines := bytes.Count(moduleC, []byte("\n")); lines >= 400 {
		t.Errorf("module.c has %d lines", lines)
	}
}

func TestOnlyTheTestedEnvoyUsesTheModule(t *testing.T) {
	for version, used := range map[string]bool{
		"1.40.0": true, "1.40.7-dev": true, "1.41.0": false, "1.39.9": false, "2.40.0": false, "1.4.0": false, "": false, "main": false,
	} {
		if why := CheckVersion(version); (why == "") != used {
			t.Errorf("Envoy %q: %q", version, why)
		}
	}
}
