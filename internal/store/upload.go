package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Sessions have no rows: POST and PATCH write a file and nothing else, and the size of the file is the offset. The
// sidecar says whose it is. Neither is synced before the commit, so a power cut may end a session; a kill does not.
const (
	sidecarSuffix = ".json"
	tempPrefix    = "manifest-"
	maxSessions   = 10_000  // that this process knows of
	roomInterval  = 4 << 20 // bytes between two looks at the free space
)

// sidecar is the file beside an upload.
type sidecar struct {
	Repository string    `json:"repository"`
	Principal  string    `json:"principal"`
	StartedAt  time.Time `json:"startedAt"`
}

// session is an upload that this process has seen: the hash of what was written lives on between requests.
type session struct {
	id      string
	owner   sidecar
	hash    *running
	busy    bool
	used    time.Duration // uptime of the end of the last use
	checked int64         // bytes up to which there was room
}

// upload is one use of a session.
type upload struct {
	s    *Store
	ses  *session
	mu   sync.Mutex
	file File // nil after the end of this use
	size int64

	begun    int64 // bytes that the disk was told to begin with
	expected int64 // size at the end of the body that is being read; 0 where its length is not known
	reserved int64 // bytes that have blocks; 0 where none were taken for what comes
}

var errUploadClosed = errors.New("store: use of an upload after its end")

func (s *Store) uploadPath(id string) string { return s.path(dirUploads, id) }

// StartUpload implements registry.Writer.
func (s *Store) StartUpload(ctx context.Context, repo string) (registry.Upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.room(0); err != nil {
		return nil, err
	}
	ses := &session{
		id: s.randomID(), hash: newRunning("sha256"), busy: true,
		owner: sidecar{Repository: repo, Principal: registry.PrincipalFrom(ctx).Name, StartedAt: s.clock.Now().UTC()},
	}
	s.uploadsMu.Lock()
	full := len(s.uploads) >= maxSessions
	if !full {
		s.uploads[ses.id] = ses
	}
	s.uploadsMu.Unlock()
	if full {
		return nil, registry.ErrTooManyRequests.WithMessage("%d uploads are open: finish or cancel some", maxSessions).WithRetryAfter(time.Minute)
	}
	f, err := s.createUpload(ses)
	if err != nil {
		s.forget(ses.id)
		return nil, diskError(err)
	}
	return &upload{s: s, ses: ses, file: f}, nil
}

// createUpload makes the sidecar and then the file, so that a file without one is never a session.
func (s *Store) createUpload(ses *session) (File, error) {
	body, err := json.Marshal(ses.owner)
	if err != nil {
		return nil, err
	}
	side, err := s.fs.Create(s.uploadPath(ses.id) + sidecarSuffix)
	if err != nil {
		return nil, err
	}
	_, err = writeFull(side, body, 0)
	if err = errors.Join(err, side.Close()); err != nil {
		return nil, err
	}
	return s.fs.Create(s.uploadPath(ses.id))
}

// forget ends a session: its files go.
func (s *Store) forget(id string) {
	for _, path := range []string{s.uploadPath(id), s.uploadPath(id) + sidecarSuffix} {
		if err := s.fs.Remove(path); err != nil && !isAbsent(err) {
			s.log.Warn("a file of an upload was not removed", "error", err)
		}
	}
	s.uploadsMu.Lock()
	defer s.uploadsMu.Unlock()
	delete(s.uploads, id)
}

// isID reports whether a text is an id that randomID makes; it becomes a file name.
func isID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 16 && strings.ToLower(id) == id
}

// ResumeUpload implements registry.Writer.
func (s *Store) ResumeUpload(ctx context.Context, repo, id string) (registry.Upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !isID(id) {
		return nil, registry.ErrBlobUploadUnknown
	}
	s.uploadsMu.Lock()
	ses, ok := s.uploads[id]
	if !ok {
		var err error
		if ses, err = s.loadSession(id); err != nil {
			s.uploadsMu.Unlock()
			return nil, err
		}
	}
	switch {
	case ses.owner.Repository != repo || ses.owner.Principal != registry.PrincipalFrom(ctx).Name:
		s.uploadsMu.Unlock()
		return nil, registry.ErrBlobUploadUnknown
	case ses.busy:
		s.uploadsMu.Unlock()
		return nil, registry.ErrBlobUploadInvalid.WithMessage("another request uses this upload").WithRetryAfter(time.Second)
	}
	ses.busy = true
	s.uploads[id] = ses
	s.uploadsMu.Unlock()

	f, err := s.fs.Open(s.uploadPath(id), true)
	if err == nil {
		info, statErr := f.Stat()
		if statErr == nil {
			if !ok {
				_ = f.Truncate(info.Size()) // a process that was killed did not give back what it had reserved
			}
			return &upload{s: s, ses: ses, file: f, size: info.Size(), begun: info.Size()}, nil
		}
		err = errors.Join(statErr, f.Close())
	}
	s.release(ses)
	if isAbsent(err) {
		s.forget(id)
		return nil, registry.ErrBlobUploadUnknown
	}
	return nil, diskError(err)
}

// loadSession reads the sidecar of a session of an earlier process.
func (s *Store) loadSession(id string) (*session, error) {
	owner, err := s.readSidecar(id)
	if err != nil {
		if isAbsent(err) || errors.Is(err, errDamaged) {
			return nil, registry.ErrBlobUploadUnknown
		}
		return nil, diskError(err)
	}
	return &session{id: id, owner: owner, hash: newRunning("sha256")}, nil
}

func (s *Store) readSidecar(id string) (owner sidecar, err error) {
	f, err := s.fs.Open(s.uploadPath(id)+sidecarSuffix, false)
	if err != nil {
		return owner, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return owner, err
	}
	if json.Unmarshal(body, &owner) != nil || owner.Repository == "" {
		return owner, errDamaged
	}
	return owner, nil
}

// release lets another request use the session.
func (s *Store) release(ses *session) {
	s.uploadsMu.Lock()
	defer s.uploadsMu.Unlock()
	ses.busy, ses.used = false, s.uptime()
}

func (u *upload) ID() string { return u.ses.id }

func (u *upload) Size() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

func (u *upload) Write(p []byte) (int, error) {
	n, at, err := u.append(p)
	u.ses.hash.wrote(p[:n], at)
	return n, err
}

// append writes and leaves the hash to the caller. It returns where it began.
func (u *upload) append(p []byte) (n int, at int64, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	at = u.size
	if u.file == nil {
		return 0, at, errUploadClosed
	}
	if end := u.size + int64(len(p)); end > u.ses.checked {
		if err := u.s.room(int64(len(p))); err != nil {
			u.drop()
			return 0, at, err
		}
		u.ses.checked = end + roomInterval
	}
	u.reserve()
	n, err = writeFull(u.file, p, u.size)
	if err != nil {
		// The bytes that were written stay out of the hash and of the size that the client is told only if they are gone.
		if terr := u.file.Truncate(u.size); terr == nil {
			n = 0
		}
	}
	u.size += int64(n)
	if u.size-u.begun >= writebackStep {
		startWriteback(u.file, u.begun, u.size-u.begun)
		u.begun = u.size
	}
	if isFull(err) || errors.Is(err, syscall.EFBIG) {
		u.drop()
	}
	return n, at, diskError(err)
}

// drop ends a session for which there is no room: the client begins anew, and until then others need what it took.
func (u *upload) drop() {
	_ = u.file.Close()
	u.file = nil
	u.s.forget(u.ses.id)
}

// end takes the file for the last step of this use; nil when the use is over.
func (u *upload) end() File {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.file
	u.file = nil
	return f
}

func (u *upload) Close() error {
	f := u.end()
	if f == nil {
		return nil
	}
	err := f.Close()
	u.s.release(u.ses)
	return diskError(err)
}

func (u *upload) Cancel(context.Context) error {
	if f := u.end(); f != nil {
		_ = f.Close()
		u.s.forget(u.ses.id)
	}
	return nil
}

func (u *upload) Commit(ctx context.Context, d registry.Digest) (registry.Descriptor, error) {
	f := u.end()
	if f == nil {
		return registry.Descriptor{}, errUploadClosed
	}
	s, ses := u.s, u.ses
	got, err := ses.hash.sum(ctx, f, d.Algorithm().String(), u.size)
	if err != nil {
		_ = f.Close()
		s.release(ses)
		return registry.Descriptor{}, err
	}
	if got != d {
		_ = f.Close()
		s.forget(ses.id)
		return registry.Descriptor{}, registry.ErrDigestInvalid.WithMessage("the content has the digest %s, not %s", got, d).
			WithDetail(map[string]string{"digest": d.String()})
	}
	back, err := s.publish(ctx, f, s.uploadPath(ses.id), d, blobRow{size: u.size}, func(t *tx) error {
		r, err := t.makeRepo(ses.owner.Repository)
		if err != nil {
			return err
		}
		return r.link(d, true)
	})
	if back && !isFull(err) && !errors.Is(err, errNoRoom) {
		s.release(ses)
		return registry.Descriptor{}, err
	}
	s.forget(ses.id)
	if err != nil {
		return registry.Descriptor{}, err
	}
	return registry.Descriptor{MediaType: mediaTypeBlob, Digest: d, Size: u.size}, nil
}

// sweepUploads removes sessions that nobody used for idle, files without a session, and what a killed process left of
// manifests, and counts the bytes of what it removes.
func (s *Store) sweepUploads(idle time.Duration, dryRun bool) (removed int, bytes int64, err error) {
	list, err := s.fs.ReadDir(s.path(dirUploads), 0)
	if err != nil {
		return 0, 0, diskError(err)
	}
	now := s.clock.Now()
	for _, e := range list {
		if s.closed.Load() {
			break
		}
		info, err := s.fs.Lstat(s.uploadPath(e.Name()))
		if err != nil {
			continue
		}
		age := now.Sub(info.ModTime())
		id := strings.TrimSuffix(e.Name(), sidecarSuffix)
		if data, err := s.fs.Lstat(s.uploadPath(id)); err == nil {
			age = now.Sub(data.ModTime()) // the sidecar is as old as its file
		}
		ttl := idle
		if !isID(id) {
			ttl = time.Hour // a manifest on its way takes seconds
		}
		if age < ttl || strings.HasPrefix(e.Name(), s.tempPrefix) || s.usedLately(id, idle) {
			continue
		}
		removed++
		bytes += info.Size()
		if !dryRun {
			s.expire(id, e.Name())
		}
	}
	return removed, bytes, nil
}

// usedLately reports whether this process used a session: on a device whose clock is set after the boot, the times of
// files may seem years old.
func (s *Store) usedLately(id string, idle time.Duration) bool {
	s.uploadsMu.Lock()
	defer s.uploadsMu.Unlock()
	ses := s.uploads[id]
	return ses != nil && (ses.busy || s.uptime()-ses.used < idle)
}

// expire removes one entry of the uploads unless it is in use.
func (s *Store) expire(id, name string) {
	s.uploadsMu.Lock()
	ses := s.uploads[id]
	busy := ses != nil && ses.busy
	if ses != nil {
		ses.busy = true
	}
	s.uploadsMu.Unlock()
	if busy {
		return
	}
	if isID(id) {
		s.forget(id)
		return
	}
	_ = s.fs.Remove(s.uploadPath(name))
}
