//go:build !linux

package boltstore

import "go.etcd.io/bbolt"

// release is only implemented on Linux. It does nothing here.
func release(*bbolt.DB) error { return nil }
