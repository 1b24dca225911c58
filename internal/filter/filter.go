// Package filter holds policy as decorators of a registry: what a mode or a permission takes away from it.
//
// A decorator that refuses embeds registry.Unsupported and lets operations through one by one, so that an operation
// added to the interfaces later is refused until somebody has decided about it.
package filter

import (
	"context"
	"io"
	"net/http"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// denied refuses every change with the text of ACR's connected registry, and whatever it does not know.
type denied struct{ registry.Unsupported }

func (denied) StartUpload(context.Context, string) (registry.Upload, error) {
	return nil, registry.ErrDenied
}

func (denied) ResumeUpload(context.Context, string, string) (registry.Upload, error) {
	return nil, registry.ErrDenied
}

func (denied) MountBlob(context.Context, string, string, registry.Digest) (registry.Descriptor, error) {
	return registry.Descriptor{}, registry.ErrDenied
}

func (denied) PutManifest(context.Context, string, registry.Reference, registry.Manifest) (registry.Descriptor, error) {
	return registry.Descriptor{}, registry.ErrDenied
}

// errNoDelete has ACR's code and text with the status that the specification wants of a registry that does not delete
// (OCI distribution spec, "Content Management": 400 or 405).
var errNoDelete = func() *registry.Error {
	e := *registry.ErrDenied
	e.Status = http.StatusMethodNotAllowed
	return &e
}()

func (denied) DeleteManifest(context.Context, string, registry.Digest) error { return errNoDelete }

func (denied) DeleteTag(context.Context, string, string) error { return errNoDelete }

func (denied) DeleteBlob(context.Context, string, registry.Digest) error { return errNoDelete }

// readOnly takes its reads from Reader and Lister, which lie shallower than those of denied.
type readOnly struct {
	registry.Reader
	registry.Lister
	denied
}

// ReadOnly lets reads through and answers every change with DENIED.
func ReadOnly(inner registry.Registry) registry.Registry {
	return readOnly{Reader: inner, Lister: inner}
}

// switched is readOnly or not, asked anew for each change.
type switched struct {
	readOnly
	mode func() registry.Mode
	open registry.Registry
}

// Switch is inner while mode returns ReadWrite, and ReadOnly(inner) at all other times. The mode may change while
// requests are under way: an upload that was started before is not committed any more.
func Switch(mode func() registry.Mode, inner registry.Registry) registry.Registry {
	return switched{readOnly: readOnly{Reader: inner, Lister: inner}, mode: mode, open: inner}
}

// changes returns what changes go to now.
func (s switched) changes() interface {
	registry.Writer
	registry.Deleter
} {
	if s.mode() == registry.ReadWrite {
		return s.open
	}
	return s.denied
}

func (s switched) StartUpload(ctx context.Context, repo string) (registry.Upload, error) {
	u, err := s.changes().StartUpload(ctx, repo)
	return s.guard(u, err)
}

func (s switched) ResumeUpload(ctx context.Context, repo, id string) (registry.Upload, error) {
	u, err := s.changes().ResumeUpload(ctx, repo, id)
	return s.guard(u, err)
}

func (s switched) MountBlob(ctx context.Context, repo, from string, d registry.Digest) (registry.Descriptor, error) {
	return s.changes().MountBlob(ctx, repo, from, d)
}

func (s switched) PutManifest(ctx context.Context, repo string, ref registry.Reference, m registry.Manifest) (registry.Descriptor, error) {
	return s.changes().PutManifest(ctx, repo, ref, m)
}

func (s switched) DeleteManifest(ctx context.Context, repo string, d registry.Digest) error {
	return s.changes().DeleteManifest(ctx, repo, d)
}

func (s switched) DeleteTag(ctx context.Context, repo, tag string) error {
	return s.changes().DeleteTag(ctx, repo, tag)
}

func (s switched) DeleteBlob(ctx context.Context, repo string, d registry.Digest) error {
	return s.changes().DeleteBlob(ctx, repo, d)
}

// guard makes an upload look at the mode once more when it ends.
func (s switched) guard(u registry.Upload, err error) (registry.Upload, error) {
	if err != nil {
		return nil, err
	}
	return guardedUpload{Upload: u, mode: s.mode}, nil
}

type guardedUpload struct {
	registry.Upload
	mode func() registry.Mode
}

// ReadFrom leaves it to the upload how it takes a body.
func (u guardedUpload) ReadFrom(r io.Reader) (int64, error) { return io.Copy(u.Upload, r) }

// Commit keeps the session for the case that the mode changes back.
func (u guardedUpload) Commit(ctx context.Context, d registry.Digest) (registry.Descriptor, error) {
	if u.mode() != registry.ReadWrite {
		return registry.Descriptor{}, registry.ErrDenied
	}
	return u.Upload.Commit(ctx, d)
}

// scoped filters the catalog; whoever names a repository is judged by the permission for the request.
type scoped struct {
	registry.Registry
	allow func(ctx context.Context, repo string) bool
}

// Scoped shows in the list of repositories only those for which allow is true for the context of the request. All
// other operations go to inner as they are.
func Scoped(inner registry.Registry, allow func(ctx context.Context, repo string) bool) registry.Registry {
	return scoped{Registry: inner, allow: allow}
}

// Repositories asks inner for as many pages as it takes to fill one, so that a short page still means the end.
func (s scoped) Repositories(ctx context.Context, after string, limit int) ([]string, error) {
	return visible(ctx, after, limit, func(repo string) bool { return s.allow(ctx, repo) },
		func(after string, limit int) ([]string, error) { return s.Registry.Repositories(ctx, after, limit) })
}

// visible fills one page of what is shown from as many pages of list as it takes.
func visible(ctx context.Context, after string, limit int, show func(string) bool, list func(after string, limit int) ([]string, error)) ([]string, error) {
	shown := []string{}
	for {
		got, err := list(after, registry.MaxPage)
		if err != nil {
			return nil, err
		}
		for _, name := range got {
			if !show(name) {
				continue
			}
			if shown = append(shown, name); len(shown) >= limit {
				return shown, nil
			}
		}
		if len(got) < registry.MaxPage {
			return shown, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		after = got[len(got)-1]
	}
}
