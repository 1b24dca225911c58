package registrytest

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// session is an upload; its fields are guarded by the memory's lock.
type session struct {
	id, repo  string
	principal registry.Principal
	content   []byte
	open      bool
	use       int // counts ResumeUpload, so that a stale handle cannot write
}

// upload is one use of a session.
type upload struct {
	m   *memory
	s   *session
	use int
}

var errClosed = errors.New("upload: use after Close, Commit or Cancel")

func (m *memory) StartUpload(ctx context.Context, repo string) (registry.Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &session{id: rand.Text(), repo: repo, principal: registry.PrincipalFrom(ctx), open: true}
	m.uploads[s.id] = s
	return &upload{m: m, s: s}, nil
}

func (m *memory) ResumeUpload(ctx context.Context, repo, id string) (registry.Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.uploads[id]
	if !ok || s.repo != repo || s.principal != registry.PrincipalFrom(ctx) {
		return nil, registry.ErrBlobUploadUnknown
	}
	if s.open {
		return nil, registry.ErrBlobUploadInvalid.WithMessage("another request uses this upload")
	}
	s.open = true
	s.use++
	return &upload{m: m, s: s, use: s.use}, nil
}

func (u *upload) ID() string { return u.s.id }

func (u *upload) Size() int64 {
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	return int64(len(u.s.content))
}

// usable reports, under the lock, whether this is the session's current use.
func (u *upload) usable() bool { return u.s.open && u.s.use == u.use }

func (u *upload) Write(p []byte) (int, error) {
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	if !u.usable() {
		return 0, errClosed
	}
	u.s.content = append(u.s.content, p...)
	return len(p), nil
}

func (u *upload) Close() error {
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	if u.usable() {
		u.s.open = false
	}
	return nil
}

func (u *upload) Commit(_ context.Context, d registry.Digest) (registry.Descriptor, error) {
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	if !u.usable() {
		return registry.Descriptor{}, errClosed
	}
	u.s.open = false
	delete(u.m.uploads, u.s.id)
	if d.Algorithm().FromBytes(u.s.content) != d {
		return registry.Descriptor{}, registry.ErrDigestInvalid
	}
	u.m.makeRepo(u.s.repo).blobs[d] = slices.Clip(u.s.content)
	return registry.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(u.s.content))}, nil
}

func (u *upload) Cancel(context.Context) error {
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	if u.usable() {
		u.s.open = false
		delete(u.m.uploads, u.s.id)
	}
	return nil
}
