package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	currentName = "audit.log"
	olderPrefix = "audit-" // and the number of the first record in it, so that names sort as they were written
	olderSuffix = ".log"
	// maxRecover bounds what is read of a file at the start, in bytes; ours are smaller.
	maxRecover = 64 << 20
)

// file is what the writer needs of an *os.File.
type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
}

func openFile(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// writer is the files of the log. It is used by one goroutine. Positions are those in the stream of all lines.
//
// What a failed fsync leaves in a file nobody can tell, and a second one that succeeds says nothing of it: the kernel
// may have dropped what it could not write. So the lines since the last good one are the caller's again, for another
// file.
type writer struct {
	dir  string
	o    AuditOptions
	f    file
	size int64 // of the file
	good int64 // of the file, what is durable
	bad  bool  // a sync of the file failed: nothing is written to it any more

	written int64 // how far the stream is in files
	synced  int64 // how far it is durable
}

// write appends whole lines, which follow what is written.
func (w *writer) write(lines []byte) error {
	for len(lines) > 0 {
		if err := w.ready(); err != nil {
			return err
		}
		// As many lines as fit into this file, and at least one.
		n := len(lines)
		if room := w.o.MaxBytes - w.size; int64(n) > room {
			n = bytes.LastIndexByte(lines[:max(room, 0)], '\n') + 1
			if n == 0 && w.size > 0 {
				if err := w.rotate(); err != nil {
					return err
				}
				continue
			}
			if n == 0 {
				n = bytes.IndexByte(lines, '\n') + 1
			}
		}
		if _, err := w.f.Write(lines[:n]); err != nil {
			// Half a line must not stay; where that fails too, it goes when the file is opened again.
			return errors.Join(err, w.f.Truncate(w.size), w.close())
		}
		w.size += int64(n)
		w.written += int64(n)
		lines = lines[n:]
	}
	return nil
}

// ready opens the file that is written to.
func (w *writer) ready() error {
	if w.f != nil {
		return nil
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(filepath.Dir(w.dir)); err != nil {
		return err
	}
	if err := w.setAside(); err != nil {
		return err
	}
	if _, err := recoverDir(w.dir); err != nil {
		return err
	}
	path := filepath.Join(w.dir, currentName)
	f, err := w.o.open(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err == nil {
		err = syncDir(w.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	// What an earlier process wrote is durable with the first sync of this one, and not taken away before.
	w.f, w.size, w.good = f, info.Size(), info.Size()
	return nil
}

// sync makes what is written durable.
func (w *writer) sync() error {
	if w.f == nil || w.written == w.synced {
		return nil
	}
	if !omitSync {
		if err := w.f.Sync(); err != nil {
			f := w.f
			w.f, w.bad, w.written = nil, true, w.synced
			return errors.Join(err, f.Close(), w.setAside())
		}
	}
	w.good, w.synced = w.size, w.written
	return nil
}

func (w *writer) close() error {
	err := w.sync()
	if w.f == nil {
		return err
	}
	f := w.f
	w.f = nil
	return errors.Join(err, f.Close())
}

// setAside takes a file whose sync failed out of use, and out of it what is written again elsewhere.
func (w *writer) setAside() error {
	if !w.bad {
		return nil
	}
	path := filepath.Join(w.dir, currentName)
	err := os.Truncate(path, w.good)
	switch {
	case errors.Is(err, fs.ErrNotExist): // an operator took it away
	case err != nil:
		return err
	case w.good == 0:
		err = os.Remove(path)
	default:
		err = w.archive()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w.bad = false
	return nil
}

// rotate ends a file that is full.
func (w *writer) rotate() error {
	if err := w.close(); err != nil {
		return err
	}
	return w.archive()
}

// archive sets the current file aside and drops the oldest.
func (w *writer) archive() error {
	path := filepath.Join(w.dir, currentName)
	first, err := firstSeq(path)
	if err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(w.dir, fmt.Sprintf("%s%020d%s", olderPrefix, first, olderSuffix))); err != nil {
		return err
	}
	older, err := olderFiles(w.dir)
	if err != nil {
		return err
	}
	for len(older) > w.o.Keep {
		if err := os.Remove(filepath.Join(w.dir, older[0])); err != nil {
			return err
		}
		older = older[1:]
	}
	return syncDir(w.dir)
}

// olderFiles lists the files that were set aside, the oldest first.
func olderFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), olderPrefix) && strings.HasSuffix(e.Name(), olderSuffix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// recoverDir takes away the end of the file that a power cut left torn, and returns the number of the last record.
func recoverDir(dir string) (last uint64, err error) {
	path := filepath.Join(dir, currentName)
	last, good, size, err := readTail(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, err
	case good < size:
		if err := os.Truncate(path, good); err != nil {
			return 0, err
		}
	}
	if last > 0 {
		return last, nil
	}
	older, err := olderFiles(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil || len(older) == 0 {
		return 0, err
	}
	newest := older[len(older)-1]
	if last, _, _, err = readTail(filepath.Join(dir, newest)); err != nil {
		return 0, err
	}
	if last == 0 { // unreadable: its name says at least where it began
		last, _ = strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(newest, olderPrefix), olderSuffix), 10, 64)
	}
	return last, nil
}

// readTail returns the number of the last whole record of a file, where that record ends, and the file's size.
func readTail(path string) (last uint64, good, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { _ = f.Close() }() // opened for reading
	raw, err := io.ReadAll(io.LimitReader(f, maxRecover))
	if err != nil {
		return 0, 0, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, 0, 0, err
	}
	rest := raw
	for {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		if seq, ok := seqOf(rest[:i]); ok {
			last = max(last, seq)
			good = int64(len(raw) - len(rest) + i + 1)
		} else if len(rest) <= maxQueue && bytes.IndexByte(rest[:i], 0) >= 0 {
			break // a hole that a power cut left: what stands behind it was on its way in the same batch
		}
		rest = rest[i+1:]
	}
	return last, good, info.Size(), nil
}

func seqOf(line []byte) (uint64, bool) {
	var r struct {
		Seq uint64 `json:"seq"`
	}
	err := json.Unmarshal(line, &r)
	return r.Seq, err == nil && r.Seq > 0
}

// firstSeq returns the number of the first record of a file.
func firstSeq(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // opened for reading
	var r struct {
		Seq uint64 `json:"seq"`
	}
	if json.NewDecoder(io.LimitReader(f, maxRecover)).Decode(&r) == nil {
		return r.Seq, nil
	}
	last, _, _, err := readTail(path) // its first line is damaged
	return last, err
}

func syncDir(dir string) error {
	if omitDirSync {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
