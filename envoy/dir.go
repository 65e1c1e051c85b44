package envoy

import (
	"fmt"
	"os"
	"path/filepath"
)

// Dir is a folder with access for this user only. It has the Unix sockets between Gatepost and its
// Envoy.
type Dir string

// PrivateDir creates a Dir in the system's folder for temporary files. Remove deletes it.
func PrivateDir() (Dir, error) {
	// MkdirTemp sets mode 0700. The name is short because the path of a socket is limited to about
	// 100 bytes.
	dir, err := os.MkdirTemp("", "gatepost-")
	if err != nil {
		return "", fmt.Errorf("making a private folder for Envoy: %w", err)
	}
	if _, err := parseAddress("unix:" + Dir(dir).adminPath()); err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("making a private folder for Envoy: %w (set TMPDIR to a shorter path)", err)
	}
	return Dir(dir), nil
}

// GRPC returns the address of Gatepost's gRPC server as unix:/path.
func (d Dir) GRPC() string { return "unix:" + filepath.Join(string(d), "grpc.sock") }

// HTTP returns the address of Gatepost's token handler as unix:/path.
func (d Dir) HTTP() string { return "unix:" + filepath.Join(string(d), "http.sock") }

// Admin returns the address of the admin interface of a Runner's Envoy as unix:/path.
func (d Dir) Admin() string { return "unix:" + d.adminPath() }

func (d Dir) adminPath() string { return filepath.Join(string(d), "admin.sock") }

// Remove deletes the folder and its content.
func (d Dir) Remove() error { return os.RemoveAll(string(d)) }
