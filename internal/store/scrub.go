package store

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// scrubDocument is how far the scrub is.
	scrubDocument = "scrub"
	// scrubKeep is how often that is kept while it runs: an idle device writes its flash once in this time at most.
	scrubKeep = 10 * time.Minute
	// scrubBatch is how many rows are read at a time.
	scrubBatch = 200

	defaultScrubEvery = 14 * 24 * time.Hour
	defaultScrubRate  = 4 << 20
)

// ScrubOptions configures a scrub. The zero value works.
type ScrubOptions struct {
	Every          time.Duration // from the end of one pass to the start of the next; 0 is 14 days
	BytesPerSecond int64         // that are read at most; 0 is 4 MiB
}

// ScrubResult is what one call did.
type ScrubResult struct {
	Blobs   int   // that were hashed
	Bytes   int64 // of these
	Damaged int   // that are missing or have other bytes; Damaged of the store lists what is needed of them
	Done    bool  // the pass is complete, or none was due
}

// scrubState is the document.
type scrubState struct {
	Cursor   registry.Digest `json:"cursor,omitempty"` // last content that was hashed; empty between two passes
	Finished time.Time       `json:"finished,omitzero"`
}

// Scrub reads all content again and sets aside what has other bytes than its name says. It goes on where an earlier call
// stopped, does nothing until the next pass is due, and ends with the pass or with ctx. It yields to everything else:
// its reads have the idle class of the disk, and wait in between.
//
// Errors: UNAVAILABLE while the index is being rebuilt, DiskError when its progress cannot be kept, ctx's.
func (s *Store) Scrub(ctx context.Context, o ScrubOptions) (res ScrubResult, err error) {
	if o.Every <= 0 {
		o.Every = defaultScrubEvery
	}
	if o.BytesPerSecond <= 0 {
		o.BytesPerSecond = defaultScrubRate
	}
	if s.recovering.Load() {
		return res, registry.ErrUnavailable.WithMessage("nothing is scrubbed while the index is being rebuilt").WithRetryAfter(time.Minute)
	}
	var state scrubState
	raw, err := s.Document(ctx, scrubDocument)
	if err != nil {
		return res, err
	}
	if json.Unmarshal(raw, &state) != nil {
		state = scrubState{}
	}
	now := s.clock.Now()
	if age := now.Sub(state.Finished); state.Cursor == "" && !state.Finished.IsZero() && age < o.Every && age > -o.Every {
		res.Done = true
		return res, nil
	}
	// The goroutine ends with its thread, and so does the thread's priority.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		lowPriority()
		err = s.scrub(ctx, &state, o.BytesPerSecond, &res)
	}()
	<-done
	if res.Done {
		state = scrubState{Finished: s.clock.Now().UTC()}
	}
	return res, errors.Join(err, s.keepScrub(context.WithoutCancel(ctx), state))
}

func (s *Store) keepScrub(ctx context.Context, state scrubState) error {
	body, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return s.PutDocument(ctx, scrubDocument, body)
}

// scrub hashes everything after the cursor.
func (s *Store) scrub(ctx context.Context, state *scrubState, rate int64, res *ScrubResult) error {
	kept := s.uptime()
	for {
		list, err := s.blobsAfter(state.Cursor)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			res.Done = true
			return nil
		}
		for _, b := range list {
			bad, err := s.scrubBlob(ctx, b.digest, b.size, rate)
			if err != nil {
				return err
			}
			res.Blobs++
			res.Bytes += b.size
			if bad {
				res.Damaged++
			}
			state.Cursor = b.digest
			if now := s.uptime(); now-kept >= scrubKeep {
				kept = now
				if err := s.keepScrub(ctx, *state); err != nil {
					return err
				}
			}
		}
	}
}

// blobsAfter lists the next rows in the order of digests.
func (s *Store) blobsAfter(after registry.Digest) (list []target, err error) {
	err = s.view(func(t *tx) error {
		c := t.Bucket(bucketBlobs).Cursor()
		k, v := c.First()
		if after != "" {
			key := digestKey(after)
			if k, v = c.Seek(key); k != nil && string(k) == string(key) {
				k, v = c.Next()
			}
		}
		for ; k != nil && len(list) < scrubBatch; k, v = c.Next() {
			d, ok := keyDigest(k)
			row, err := decodeBlob(v)
			if ok && err == nil {
				list = append(list, target{d, row.size})
			}
		}
		return nil
	})
	return list, err
}

// scrubBlob hashes one file, a second time when the first finds fault: what memory or a cable did wrong once is not on
// the disk.
func (s *Store) scrubBlob(ctx context.Context, d registry.Digest, size, rate int64) (bad bool, err error) {
	if s.kept.bytes(d) != nil { // its file is to be written again
		return false, nil
	}
	var file File
	for range 2 {
		f, info, err := openStat(s.fs, s.contentPath(d), false)
		if err != nil {
			break
		}
		if !info.Mode().IsRegular() || info.Size() != size {
			_ = f.Close()
			break
		}
		alg := d.Algorithm().String()
		got, err := newRunning(alg).sum(ctx, &paced{ReaderAt: f, ctx: ctx, rate: rate}, alg, size)
		if ctx.Err() != nil || err == nil && got == d {
			return false, errors.Join(ctx.Err(), f.Close())
		}
		if file != nil {
			_ = file.Close()
		}
		file = f
	}
	if file != nil {
		defer file.Close()
	}
	known := false
	if err := s.view(func(t *tx) error { _, known = t.blob(d); return nil }); err != nil || !known {
		return false, err // it was collected meanwhile
	}
	if s.stat(d, size) && file != nil {
		s.quarantine(file, d, errOtherBytes)
	}
	return true, nil
}

// paced reads no more than so many bytes in a second.
type paced struct {
	io.ReaderAt
	ctx  context.Context
	rate int64
}

func (p *paced) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	if ended := clock.Wait(p.ctx, time.Duration(int64(n)*int64(time.Second)/p.rate)); ended != nil {
		return 0, ended
	}
	return n, err
}
