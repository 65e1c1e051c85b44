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

// validateTimeout bounds one check; a configuration of ten thousand services takes seconds.
const validateTimeout = 2 * time.Minute

// Validate has the Envoy at path look at a configuration (--mode validate), without a port or a name being
// touched. It returns what Envoy finds wrong, in its words, or "". An error says that Envoy could not be asked.
func Validate(ctx context.Context, path string, b *bootstrapv3.Bootstrap) (refused string, err error) {
	text, err := JSON(b) // which Envoy reads faster than YAML
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
	cmd.WaitDelay = time.Second // a child of the program may hold the pipe open after it was killed
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
	// One line: what Envoy quotes of the configuration may have several.
	words := strings.ReplaceAll(string(out), file, "the configuration")
	refused = strings.Join(strings.Fields(words), " ")
	if refused == "" {
		refused = err.Error()
	}
	return refused, nil
}
