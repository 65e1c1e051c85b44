package envoy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
)

// validateTimeout limits one validation; a configuration of ten thousand services takes seconds.
const validateTimeout = 2 * time.Minute

// Validate runs the Envoy at path with --mode validate, which opens no port and resolves no name.
// It returns Envoy's error message, or "" if the configuration is valid. An error means that Envoy
// could not be run.
func Validate(ctx context.Context, path string, b *bootstrapv3.Bootstrap) (refused string, err error) {
	text, err := JSON(b) // Envoy parses JSON faster than YAML
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "gatepost-validate-")
	if err != nil {
		return "", fmt.Errorf("asking Envoy: %w", err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "bootstrap.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return "", fmt.Errorf("asking Envoy: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, validateTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--mode", "validate", "-c", file, "--log-level", "error", "--log-format", "%v")
	cmd.WaitDelay = time.Second // a killed program can leave a child that holds the pipe open
	out, err := cmd.CombinedOutput()
	var exited *exec.ExitError
	switch {
	case err == nil:
		return "", nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("asking Envoy: %w", ctx.Err())
	case !errors.As(err, &exited):
		return "", fmt.Errorf("asking Envoy: %w", err)
	}
	// Envoy's message can quote several lines of the configuration; this joins them.
	words := strings.ReplaceAll(string(out), file, "the configuration")
	refused = strings.Join(strings.Fields(words), " ")
	if refused == "" {
		refused = err.Error()
	}
	return refused, nil
}
