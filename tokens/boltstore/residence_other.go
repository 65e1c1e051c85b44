//go:build !linux

package boltstore

import "go.etcd.io/bbolt"

// release does nothing here: it is a courtesy.
func release(*bbolt.DB) error { return nil }
