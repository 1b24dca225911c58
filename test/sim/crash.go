package sim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// copyTo copies what survives. A loss of power takes all that was not synced, or, as often, some of it.
func (v *volume) copyTo(old string, c crash) error {
	strict := v.chance.IntN(2) == 0
	survives := func() bool { return c == crashKill || !strict && v.chance.IntN(2) == 0 }
	var dirs []string
	err := filepath.WalkDir(old, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
			rel, _ := filepath.Rel(old, path)
			return os.MkdirAll(filepath.Join(v.dir, rel), 0o700)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := copyIndex(filepath.Join(old, "meta.db"), filepath.Join(v.dir, "meta.db")); err != nil {
		return err
	}
	for _, dir := range dirs { // in lexical order
		rel, _ := filepath.Rel(old, dir)
		live, durable := v.live[dir], v.durable[dir]
		var all []string
		for name := range live {
			all = append(all, name)
		}
		for name := range durable {
			if live[name] == nil {
				all = append(all, name)
			}
		}
		slices.Sort(all)
		for _, name := range all {
			ino := durable[name]
			if live[name] != ino && survives() {
				ino = live[name]
			}
			if ino == nil {
				continue
			}
			body, err := v.surviving(ino, survives)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(v.dir, rel, name), body, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// surviving are the bytes of a file after the crash: all, what was synced, or all of its length with other bytes in it.
func (v *volume) surviving(ino *inode, survives func() bool) ([]byte, error) {
	if ino.path == "" {
		return ino.durable, nil
	}
	body, err := os.ReadFile(ino.path)
	if err != nil || ino.clean || survives() {
		return body, err
	}
	old := ino.before(body)
	if v.chance.IntN(3) == 0 && len(body) > len(old) {
		old = append(old, make([]byte, len(body)-len(old))...)
	}
	return old, nil
}

// copyIndex copies the index of a bbolt that may be in a commit: both of its meta pages must be the same before and
// after, then what was written meanwhile is in no page that they lead to.
func copyIndex(from, to string) error {
	for {
		before, err := os.ReadFile(from)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		after, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		head := min(len(before), 2*os.Getpagesize())
		if len(after) >= head && slices.Equal(before[:head], after[:head]) {
			return os.WriteFile(to, before, 0o600)
		}
	}
}
