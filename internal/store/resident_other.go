//go:build !linux

package store

// Rest does nothing; only Linux is told.
func (s *Store) Rest() error { return nil }
