package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// maxQueue bounds the lines that are not durable yet, in bytes: those that wait for a disk that does not take them,
	// and those that are written and may have to be written again.
	maxQueue = 1 << 20
	// fullBatch is how many bytes of written lines are synced without waiting for the end of the batch.
	fullBatch = maxQueue / 4
	// batch is the shortest time between two syncs of the file: what a power cut can take is what was written since the
	// last one.
	batch = 250 * time.Millisecond
	// retryPause is the pause after the disk did not take a batch.
	retryPause = 5 * time.Second
)

// AuditOptions of a log; the zero value works.
type AuditOptions struct {
	Now      func() time.Time // of the records; nil leaves the time out
	Logger   *slog.Logger
	MaxBytes int64 // of one file; 0 is 4 MiB
	Keep     int   // files that are kept beside the one that is written; 0 is 7

	open func(path string) (file, error) // tests
}

// AuditLog writes records as JSON lines with sequence numbers, into files that are rotated and bounded. Audit never waits
// for the disk: a goroutine writes at once and syncs in batches. It is safe for concurrent use, and a nil *AuditLog
// keeps nothing.
type AuditLog struct {
	o    AuditOptions
	log  *slog.Logger
	wake chan struct{}

	mu      sync.Mutex
	enabled bool
	live    bool // sequence numbers are known
	seq     uint64
	queue   bytes.Buffer // the lines that are not durable
	settled int64        // where in the stream of lines the queue begins
	lost    uint64       // not in the queue because it was full
	failure error        // of the last batch
	synced  uint64       // number of the last record that a power cut leaves
}

// NewAuditLog returns a log that keeps nothing until Enable, and writes nothing until Run.
func NewAuditLog(o AuditOptions) *AuditLog {
	if o.Now == nil {
		o.Now = func() time.Time { return time.Time{} }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 4 << 20
	}
	if o.Keep <= 0 {
		o.Keep = 7
	}
	if o.open == nil {
		o.open = openFile
	}
	return &AuditLog{o: o, log: o.Logger, wake: make(chan struct{}, 1)}
}

// Enable switches the log; both are written to it, so that the log says when it was off.
func (a *AuditLog) Enable(ctx context.Context, on bool) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.enabled == on {
		return
	}
	operation := map[bool]string{true: "enabled", false: "disabled"}[on]
	a.enabled = true
	a.record(ctx, registry.AuditRecord{Category: registry.AuditLog, Operation: operation, Result: registry.AuditSuccess})
	a.enabled = on
}

// Audit implements registry.Auditor.
func (a *AuditLog) Audit(ctx context.Context, r registry.AuditRecord) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record(ctx, r)
}

// record is Audit. The caller holds the lock.
func (a *AuditLog) record(ctx context.Context, r registry.AuditRecord) {
	if !a.enabled {
		return
	}
	if !a.live {
		a.lost++
		return
	}
	if r.Principal == "" {
		r.Principal = registry.PrincipalFrom(ctx).Name
	}
	if r.From == "" {
		r.From = registry.OriginFrom(ctx)
	}
	a.add(r)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// add queues a record. The caller holds the lock.
func (a *AuditLog) add(r registry.AuditRecord) {
	a.seq++
	r.Seq, r.Time = a.seq, a.o.Now().UTC()
	line, err := json.Marshal(r)
	if err != nil || a.queue.Len()+len(line) >= maxQueue {
		a.lost++
		return
	}
	a.queue.Write(line)
	a.queue.WriteByte('\n')
}

// Trouble returns why the log cannot be written now, and how many records were lost by that; nil when all is well.
func (a *AuditLog) Trouble() (lost uint64, err error) {
	if a == nil {
		return 0, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lost, a.failure
}

// Reached returns the number of the last record, and that of the last one that is on the disk for good.
func (a *AuditLog) Reached() (last, synced uint64) {
	if a == nil {
		return 0, 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seq, a.synced
}

// Open reads where an earlier process ended, so that records get numbers from now on. Run tries again where it fails.
func (a *AuditLog) Open(dir string) error {
	seq, err := recoverDir(dir)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failure = err
	if err == nil && !a.live {
		a.live, a.seq = true, seq
	}
	return err
}

// Run writes to files in dir until ctx ends, and then what is left. Lines are written at once, so that they survive the
// process, and synced in batches, so that all but the last batch survive a power cut.
func (a *AuditLog) Run(ctx context.Context, dir string) {
	w := &writer{dir: dir, o: a.o}
	timer := time.NewTimer(0) // the first round opens what Open could not
	defer timer.Stop()
	for pending := true; ; {
		select {
		case <-ctx.Done():
			err := a.flush(w, dir)
			if err != nil {
				err = a.flush(w, dir) // into another file
			}
			a.note(errors.Join(err, w.close()))
			return
		case <-a.wake:
			err := a.write(w, dir)
			if err == nil && w.written-w.synced >= fullBatch {
				err = a.sync(w)
			}
			if err != nil {
				a.note(err)
				timer.Reset(retryPause)
				pending = true
			} else if !pending {
				timer.Reset(batch)
				pending = true
			}
		case <-timer.C:
			pending = false
			err := a.flush(w, dir)
			a.note(err)
			if err != nil {
				timer.Reset(retryPause)
				pending = true
			}
		}
	}
}

// flush makes all that is queued durable.
func (a *AuditLog) flush(w *writer, dir string) error {
	if err := a.write(w, dir); err != nil {
		return err
	}
	return a.sync(w)
}

// write takes what is not in a file there.
func (a *AuditLog) write(w *writer, dir string) error {
	a.mu.Lock()
	live := a.live
	a.mu.Unlock()
	if !live {
		if err := a.Open(dir); err != nil {
			return err
		}
	}
	a.mu.Lock()
	if a.lost > 0 && a.failure == nil {
		lost := a.lost
		a.lost = 0
		a.add(registry.AuditRecord{Category: registry.AuditLog, Operation: "lost", Result: registry.AuditFailed, Count: lost})
	}
	lines := bytes.Clone(a.queue.Bytes()[w.written-a.settled:])
	a.mu.Unlock()
	err := w.write(lines)
	a.settle(w)
	return err
}

// sync makes what is in the file last.
func (a *AuditLog) sync(w *writer) error {
	err := w.sync()
	a.settle(w)
	return err
}

// settle takes what is durable out of the queue.
func (a *AuditLog) settle(w *writer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lines := a.queue.Next(int(w.synced - a.settled))
	a.settled = w.synced
	if len(lines) > 0 {
		last := bytes.LastIndexByte(lines[:len(lines)-1], '\n') + 1
		if seq, ok := seqOf(lines[last:]); ok {
			a.synced = seq
		}
	}
}

// note keeps how the last round ended, and logs when that changes.
func (a *AuditLog) note(err error) {
	a.mu.Lock()
	was := a.failure
	a.failure = err
	a.mu.Unlock()
	switch {
	case err != nil && was == nil:
		a.log.Error("the audit log cannot be written; records wait", "error", err)
	case err == nil && was != nil:
		a.log.Info("the audit log is written again")
	}
}
