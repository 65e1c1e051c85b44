package rollout

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/envoy/module/moduletest"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/xds"
)

// withModule has the configuration use a library and a table.
func withModule(t *testing.T, library string) func(*Config) {
	return func(c *Config) {
		c.Options.Module = xds.Module{Library: library, Table: filepath.Join(t.TempDir(), "decisions")}
	}
}

// TestModuleThatEnvoyTakesIsReported: by the paths that Envoy uses.
func TestModuleThatEnvoyTakesIsReported(t *testing.T) {
	addr := envoytest.Addr(t)
	library := moduletest.Compile(t, "library")
	k := newKit(t, addr, t.TempDir(), withModule(t, library), func(c *Config) {
		c.ModuleVersion = func(version string) string {
			if !strings.HasPrefix(version, "1.") {
				return "not 1.x: " + version
			}
			return ""
		}
	})
	k.serves(define(t, addr, "60s", service("orders", taken)))
	if m := k.Message().GetModule(); m.GetLibrary() != library || m.GetReason() != "" {
		t.Errorf("the status is %v", m)
	}
}

// TestModuleThatEnvoyRejects takes nothing down: the same definitions are served without it, now and later.
func TestModuleThatEnvoyRejects(t *testing.T) {
	none := filepath.Join(t.TempDir(), "libgatepost.so")
	if err := os.WriteFile(none, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, library := range map[string]string{"absent": "/nowhere/libgatepost.so", "no library": none} {
		t.Run(name, func(t *testing.T) {
			addr := envoytest.Addr(t)
			k := newKit(t, addr, t.TempDir(), withModule(t, library))
			k.serves(define(t, addr, "60s", service("orders", taken)))
			k.isCurrent()
			if m := k.Message().GetModule(); m.GetLibrary() != "" || !strings.Contains(m.GetReason(), "Envoy refuses it") {
				t.Errorf("the status is %v", m)
			}
			k.serves(define(t, addr, "61s", service("orders", taken), service("items", taken)))
			k.isCurrent()
		})
	}
}

// TestModuleAndAServiceThatEnvoyRejects: the one does not hide the other.
func TestModuleAndAServiceThatEnvoyRejects(t *testing.T) {
	addr := envoytest.Addr(t)
	k := newKit(t, addr, t.TempDir(), withModule(t, "/nowhere/libgatepost.so"))
	k.apply(define(t, addr, "60s", service("orders", taken), service("broken", refused)))
	k.awaits("the other service", func(s *gatewayv1.Status) bool {
		return len(s.GetWithheld()) == 1 && s.GetWithheld()[0] == "broken" && s.GetModule().GetReason() != ""
	})
}

// TestModuleOfAnotherVersion is dropped when such an Envoy connects.
func TestModuleOfAnotherVersion(t *testing.T) {
	addr := envoytest.Addr(t)
	k := newKit(t, addr, t.TempDir(), withModule(t, moduletest.Compile(t, "library")), func(c *Config) {
		c.ModuleVersion = func(version string) string { return "not tested with " + version }
	})
	k.apply(define(t, addr, "60s", service("orders", taken)))
	k.awaits("the definitions without the module", func(s *gatewayv1.Status) bool {
		return strings.HasPrefix(s.GetModule().GetReason(), "not tested with 1.") && s.GetRejected() == ""
	})
	k.isCurrent()
}
