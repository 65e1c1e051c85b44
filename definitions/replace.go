package definitions

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gatepost/atomicfile"
)

// ErrFolder reports that definitions are files in a folder.
var ErrFolder = errors.New("the definitions are a folder of files")

// Replace replaces the definitions file at path atomically, and keeps its mode. If path is a symbolic link, the file
// that it leads to is replaced. The error is ErrFolder if path is a folder.
func Replace(path string, text []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("replacing the definitions: %w", err)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("replacing the definitions: %w", err)
	case info.IsDir():
		return fmt.Errorf("replacing the definitions: %w", ErrFolder)
	}
	if err := atomicfile.Write(path, text, info.Mode().Perm()); err != nil {
		return fmt.Errorf("replacing the definitions: %w", err)
	}
	return nil
}
