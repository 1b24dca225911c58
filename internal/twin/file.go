package twin

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// FileOptions are the options of a File. The zero value works.
type FileOptions struct {
	// Poll is how often the file is read without a sign of change: some file systems give none, and a symbolic link
	// may lead to a directory that is not watched. 0 is 10 seconds.
	Poll time.Duration
	// Settle is how long after a sign of change the file is read, since editors write in several steps. 0 is 100 ms.
	Settle time.Duration
	// PollOnly leaves out the notifications of the operating system.
	PollOnly bool
	// Max bounds the file, in bytes; 0 is MaxRaw.
	Max int64
	Log *slog.Logger
}

// File is the source outside IoT Edge: a file that is replaced, written in place, or swapped by a symbolic link as
// Kubernetes does with a ConfigMap.
type File struct {
	path string
	o    FileOptions
}

// NewFile returns the source that reads path. The file need not exist yet.
func NewFile(path string, o FileOptions) *File {
	if o.Poll <= 0 {
		o.Poll = 10 * time.Second
	}
	if o.Settle <= 0 {
		o.Settle = 100 * time.Millisecond
	}
	if o.Max <= 0 {
		o.Max = MaxRaw
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &File{path: path, o: o}
}

// Name returns "file".
func (f *File) Name() string { return "file" }

// Read returns what the file holds now.
func (f *File) Read() Document {
	raw, err := readRegular(f.path, f.o.Max)
	return Document{Raw: raw, Err: err}
}

// Watch implements Source.
func (f *File) Watch(ctx context.Context) <-chan Document {
	out := make(chan Document)
	go f.run(ctx, out)
	return out
}

func (f *File) run(ctx context.Context, out chan<- Document) {
	defer close(out)
	w := f.notifications()
	defer w.close()
	poll := time.NewTicker(f.o.Poll)
	defer poll.Stop()
	settle := time.NewTimer(0) // the first read
	defer settle.Stop()
	var last, pending Document
	known, settling := false, true
	var send chan<- Document // nil unless something is pending
	for {
		select {
		case <-ctx.Done():
			return
		case send <- pending:
			send = nil
		case e := <-w.events:
			if !settling && f.concerns(e) { // not later with each event: a busy directory would put it off for ever
				settle.Reset(f.o.Settle)
				settling = true
			}
		case err := <-w.errors:
			f.o.Log.Debug("configuration file notifications", "error", err)
		case <-poll.C:
			w.add()
			settle.Reset(0)
			settling = true
		case <-settle.C:
			settling = false
			d := f.Read()
			if known && same(d, last) {
				continue
			}
			known, last, pending, send = true, d, d, out
		}
	}
}

// concerns reports whether an event may have changed what the path leads to: any event of the file itself, and names
// that come or go, because one of them may be a link on the way. Writing to other files is the data volume's daily life.
func (f *File) concerns(e fsnotify.Event) bool {
	return filepath.Base(e.Name) == filepath.Base(f.path) || e.Has(fsnotify.Create) || e.Has(fsnotify.Rename) || e.Has(fsnotify.Remove)
}

// same reports whether two documents say the same, so that touching a file or failing again is no news.
func same(a, b Document) bool {
	if a.Err != nil || b.Err != nil {
		return a.Err != nil && b.Err != nil && a.Err.Error() == b.Err.Error()
	}
	return bytes.Equal(a.Raw, b.Raw) && a.Version == b.Version && a.Generation == b.Generation
}

// watcher is the notifications on the file's directory. The directory is watched and not the file, because a file
// that is replaced takes its watch with it. Without notifications the channels are nil and block for ever.
type watcher struct {
	inner     *fsnotify.Watcher
	directory string
	events    chan fsnotify.Event
	errors    chan error
	log       *slog.Logger
}

func (f *File) notifications() *watcher {
	w := &watcher{directory: filepath.Dir(f.path), log: f.o.Log}
	if f.o.PollOnly {
		return w
	}
	inner, err := fsnotify.NewWatcher()
	if err != nil { // out of inotify instances, for example
		f.o.Log.Warn("configuration file is polled only", "error", err)
		return w
	}
	w.inner, w.events, w.errors = inner, inner.Events, inner.Errors
	w.add()
	return w
}

// add watches the directory, again if it was deleted and made anew. Watching it twice is no error.
func (w *watcher) add() {
	if w.inner == nil {
		return
	}
	if err := w.inner.Add(w.directory); err != nil {
		w.log.Debug("configuration directory cannot be watched", "error", err)
	}
}

func (w *watcher) close() {
	if w.inner != nil {
		_ = w.inner.Close() // nothing to lose
	}
}
