package store

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// TestMark: an index that a process left as it is now is not looked through again, and one byte that is another one has it
// looked through, whatever the mark says.
func TestMark(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	o := fill(t, s, 20)
	closeChecked(t, s)

	reopen := func(why string, marked bool) {
		t.Helper()
		s, err := Open(t.Context(), dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.marked.size > 0; got != marked {
			t.Errorf("%s: found by its mark: %v, want %v", why, got, marked)
		}
		s.worker.Wait()
		o.holds(t, s)
		closeChecked(t, s)
	}
	reopen("as it was left", true)
	reopen("as it was left by a process that changed nothing", true)

	sound, err := os.ReadFile(indexPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	m, ok := s.readMark()
	if !ok {
		t.Fatal("there is no mark")
	}
	rapid.Check(t, func(t *rapid.T) {
		b := bytes.Clone(sound)
		b[rapid.Int64Range(0, m.size-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		if sum, err := sumBytes(bytes.NewReader(b), m.size); err != nil || sum == m.sum {
			t.Fatalf("another byte has the same sum: %v", err)
		}
		if sum, err := sumBytes(bytes.NewReader(sound[:m.size-1]), m.size); err == nil {
			t.Fatalf("a file that ends early has the sum %x", sum)
		}
		e := m.encode()
		e[rapid.IntRange(0, len(e)-1).Draw(t, "in the mark")] ^= 1
		if got, ok := decodeMark(e[:rapid.IntRange(0, len(e)).Draw(t, "length")]); ok {
			t.Fatalf("a mark that rotted is %+v", got)
		}
	})
	path := filepath.Join(dir, markName)
	rewrite(t, path, func(b []byte) []byte { b[len(markMagic)+20] ^= 1; return b })
	reopen("with a mark that rotted", false)
	reopen("after that", true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	reopen("without a mark", false)
	rewrite(t, indexPath(dir), func(b []byte) []byte { clear(b[8192:m.size]); return b })
	reopen("with an index that lost its pages", false)
}
