package store

import "syscall"

// Rest gives back what the work so far has mapped of the index: opening it and looking for damage read all of it, and
// requests read a few pages. What is asked for again comes from the page cache. It is for times when nobody asks.
func (s *Store) Rest() error {
	return s.view(func(t *tx) error { // while it lasts the map stays where it is
		size := uintptr(t.Size())
		if size == 0 {
			return nil
		}
		if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, t.DB().Info().Data, size, syscall.MADV_DONTNEED); errno != 0 {
			return errno
		}
		return nil
	})
}
