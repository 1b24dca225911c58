package twin_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/connected-registry/connected-registry/internal/twin"
)

const patience = 20 * time.Second // how long a test waits for what must come

type watched struct {
	t  *testing.T
	ch <-chan twin.Document
}

// watch starts a source and stops it with the test. Without polling, only a notification can bring a change; with it,
// only polling.
func watch(t *testing.T, path string, poll bool) watched {
	t.Helper()
	o := twin.FileOptions{Poll: time.Hour, Settle: 5 * time.Millisecond}
	if poll {
		o.Poll, o.PollOnly = 5*time.Millisecond, true
	}
	ctx, cancel := context.WithCancel(t.Context())
	ch := twin.NewFile(path, o).Watch(ctx)
	t.Cleanup(func() {
		cancel()
		for range ch { // until it is closed
		}
	})
	return watched{t, ch}
}

// next waits for a document; want is its content, or what its error holds behind a "!".
func (w watched) next(want string) {
	w.t.Helper()
	select {
	case d := <-w.ch:
		text, isErr := strings.CutPrefix(want, "!")
		if isErr && (d.Err == nil || d.Raw != nil || !strings.Contains(d.Err.Error(), text)) || !isErr && (d.Err != nil || string(d.Raw) != want) {
			w.t.Fatalf("got %q, %v, want %q", d.Raw, d.Err, want)
		}
	case <-time.After(patience):
		w.t.Fatalf("nothing came, want %q", want)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace writes a file as careful editors do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	do(t, os.Rename(path+".new", path))
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFileFollowsChanges(t *testing.T) {
	for _, poll := range []bool{false, true} {
		t.Run(map[bool]string{false: "notified", true: "polled"}[poll], func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			w := watch(t, path, poll)
			w.next("!no such file")
			replace(t, path, "one")
			w.next("one")
			replace(t, path, "two")
			w.next("two")
			do(t, os.Remove(path))
			w.next("!no such file")
			replace(t, path, "three")
			w.next("three")
			do(t, os.Remove(path))
			do(t, os.Mkdir(path, 0o700))
			w.next("!") // gone for a moment, or a directory
		})
	}
}

func TestFileWrittenInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	write(t, path, "one")
	w := watch(t, path, false)
	w.next("one")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	do(t, err)
	_, err = f.WriteString(" and a half")
	do(t, err)
	do(t, f.Close())
	w.next("one and a half")
}

// A directory in which something happens all the time must not keep the document from being read.
func TestFileInABusyDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.json")
	write(t, path, "one")
	ctx, cancel := context.WithCancel(t.Context())
	ch := twin.NewFile(path, twin.FileOptions{Poll: time.Hour, Settle: 50 * time.Millisecond}).Watch(ctx)
	w := watched{t, ch}
	w.next("one")
	done := make(chan struct{})
	go func() {
		defer close(done)
		other := filepath.Join(dir, "other")
		for ctx.Err() == nil {
			_ = os.WriteFile(other, []byte("x"), 0o600)
			_ = os.Remove(other)
		}
	}()
	defer func() {
		cancel()
		<-done
		for range ch { // until it is closed
		}
	}()
	replace(t, path, "two")
	w.next("two")
}

// Kubernetes mounts a ConfigMap as config.json -> ..data/config.json and ..data -> a directory that it swaps.
func TestFileBehindConfigMapLinks(t *testing.T) {
	dir := t.TempDir()
	swap := func(name, text string) {
		do(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		write(t, filepath.Join(dir, name, "config.json"), text)
		do(t, os.Symlink(name, filepath.Join(dir, "..tmp")))
		do(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
	}
	swap("..1", "one")
	path := filepath.Join(dir, "config.json")
	do(t, os.Symlink(filepath.Join("..data", "config.json"), path))
	w := watch(t, path, false)
	w.next("one")
	swap("..2", "two")
	w.next("two")
}

func TestFileSaysNothingNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	write(t, path, "one")
	synctest.Test(t, func(t *testing.T) {
		ch := twin.NewFile(path, twin.FileOptions{PollOnly: true}).Watch(t.Context())
		quiet := func(when string) {
			t.Helper()
			time.Sleep(time.Hour) // the bubble's time
			synctest.Wait()
			select {
			case d := <-ch:
				t.Errorf("%s: %q, %v", when, d.Raw, d.Err)
			default:
			}
		}
		if d := <-ch; string(d.Raw) != "one" {
			t.Fatalf("got %q, %v", d.Raw, d.Err)
		}
		quiet("nothing happened")
		replace(t, path, "one")
		do(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
		quiet("the same content")
		do(t, os.Remove(path))
		if d := <-ch; d.Err == nil {
			t.Fatalf("got %q", d.Raw)
		}
		quiet("still gone")
		replace(t, path, "one")
		if d := <-ch; string(d.Raw) != "one" {
			t.Fatalf("got %q, %v", d.Raw, d.Err)
		}
	})
}

func TestSlowReceiverGetsTheNewest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	write(t, path, "one")
	w := watch(t, path, true)
	for range 3 {
		replace(t, path, "old")
		replace(t, path, "new")
	}
	deadline := time.After(patience)
	for got := ""; got != "new"; {
		select {
		case d := <-w.ch:
			got = string(d.Raw)
		case <-deadline:
			t.Fatal("the newest document did not come")
		}
	}
}

func TestFileInADirectoryThatComesAndGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mount")
	path := filepath.Join(dir, "config.json")
	w := watch(t, path, true)
	w.next("!no such file")
	do(t, os.Mkdir(dir, 0o700))
	replace(t, path, "one")
	w.next("one")
	do(t, os.RemoveAll(dir))
	w.next("!no such file")
}

func TestFileReadsOnlySmallRegularFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "big"), strings.Repeat("x", twin.MaxRaw+1))
	for path, want := range map[string]string{dir: "not a regular file", "/dev/zero": "not a regular file", filepath.Join(dir, "big"): "more than 98304 bytes"} {
		if d := twin.NewFile(path, twin.FileOptions{}).Read(); d.Err == nil || d.Raw != nil || !strings.Contains(d.Err.Error(), want) {
			t.Errorf("Read(%s) = %d bytes, %v, want %q", path, len(d.Raw), d.Err, want)
		}
	}
	var source twin.Source = twin.NewFile("x", twin.FileOptions{})
	if source.Name() != "file" {
		t.Errorf("Name() = %q", source.Name())
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ch := twin.NewFile(filepath.Join(t.TempDir(), "gone"), twin.FileOptions{}).Watch(ctx)
	cancel()
	for deadline := time.After(patience); ; {
		select {
		case _, ok := <-ch:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("the channel stays open")
		}
	}
}
