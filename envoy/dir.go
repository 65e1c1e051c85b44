package envoy

import (
	"fmt"
	"os"
	"path/filepath"
)

// Dir is a folder that only this user can enter, for the unix sockets over which Gatepost and its Envoy talk.
type Dir string

// PrivateDir makes a Dir in the system's folder for temporary files. Remove removes it.
func PrivateDir() (Dir, error) {
	// MkdirTemp makes it 0700. The name is short: a socket's path may be no longer than some hundred bytes.
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

// GRPC is the address for Gatepost's gRPC server, in the form unix:/path.
func (d Dir) GRPC() string { return "unix:" + filepath.Join(string(d), "grpc.sock") }

// HTTP is the address for Gatepost's token handler, in the form unix:/path.
func (d Dir) HTTP() string { return "unix:" + filepath.Join(string(d), "http.sock") }

// Admin is the address of the admin interface of a Runner's Envoy, in the form unix:/path.
func (d Dir) Admin() string { return "unix:" + d.adminPath() }

func (d Dir) adminPath() string { return filepath.Join(string(d), "admin.sock") }

// Remove removes the folder and what is in it.
func (d Dir) Remove() error { return os.RemoveAll(string(d)) }
