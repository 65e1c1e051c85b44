package gateway

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/tokens/cache/table"
	"gatepost/xds"
)

// The module repeats a decision for MinLifetime or longer. Each check after that must count as a use of the token.
func TestEachCheckOfAWarmTokenIsAUse(t *testing.T) {
	t.Parallel()
	if every := (&envoyModule{table: new(table.Table)}).sampleEvery(); every <= 0 || every >= table.MinLifetime {
		t.Errorf("with the module: every %v, and Envoy asks after %v at the earliest", every, table.MinLifetime)
	}
	if every := (&envoyModule{}).sampleEvery(); every != 0 {
		t.Errorf("without the module: every %v, want the default", every)
	}
}

// No other Envoy can be had here, so a script reports the version of one.
func TestTheModuleIsNotTriedWithAnUntestedEnvoy(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "envoy")
	script := "#!/bin/sh\necho 'envoy  version: 0000000000000000000000000000000000000000/1.99.0/Clean/RELEASE/BoringSSL'\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	err := tryModule(t.Context(), path, xds.Module{})
	if err == nil || !strings.Contains(err.Error(), "1.99.0") {
		t.Errorf("got %v, want the reason with the version", err)
	}
}
