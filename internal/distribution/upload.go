package distribution

import (
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// startUpload answers end-4a (a session), end-4b (all in one request) and end-11 (a mount).
func (s *server) startUpload(w http.ResponseWriter, r *http.Request, req Request) error {
	if req.Mount != "" {
		d, err := s.mount(r, req)
		if err == nil {
			return created(w, blobPath(req.Repo, d.Digest), d.Digest)
		}
		if !errors.Is(err, registry.ErrBlobUnknown) && !errors.Is(err, registry.ErrNameUnknown) {
			return err
		}
	}
	u, err := s.reg.StartUpload(r.Context(), req.Repo)
	if err != nil {
		return err
	}
	if req.Digest != "" {
		err := s.complete(w, r, req, u, r.ContentLength)
		if err != nil {
			_ = u.Cancel(r.Context()) // nobody knows its id
		}
		return err
	}
	if err := u.Close(); err != nil {
		return err
	}
	progress(w.Header(), req.Repo, u.ID(), u.Size())
	w.Header().Set("Oci-Chunk-Min-Length", "1") // end-4a: chunks of any size are taken
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// maxHolders bounds the repositories that a mount without a source is tried from.
const maxHolders = 100

// mount takes a blob from a repository that the client may read, the named one or whichever has it. What it may not read
// looks as if it were not there.
func (s *server) mount(r *http.Request, req Request) (registry.Descriptor, error) {
	if req.From == "" {
		return s.mountFromAny(r, req)
	}
	if err := s.access.Check(r.Context(), req.From, registry.ContentRead); err != nil {
		return registry.Descriptor{}, registry.ErrBlobUnknown.Wrap(err)
	}
	return s.reg.MountBlob(r.Context(), req.Repo, req.From, req.Mount)
}

// mountFromAny is the automatic content discovery of end-11.
func (s *server) mountFromAny(r *http.Request, req Request) (registry.Descriptor, error) {
	if s.from == nil {
		return registry.Descriptor{}, registry.ErrBlobUnknown
	}
	holders, err := s.from(r.Context(), req.Mount, maxHolders)
	if err != nil {
		return registry.Descriptor{}, err
	}
	for _, req.From = range holders {
		d, err := s.mount(r, req)
		if !errors.Is(err, registry.ErrBlobUnknown) {
			return d, err
		}
	}
	return registry.Descriptor{}, registry.ErrBlobUnknown
}

// uploadStatus answers end-13.
func (s *server) uploadStatus(w http.ResponseWriter, r *http.Request, req Request) error {
	u, err := s.reg.ResumeUpload(r.Context(), req.Repo, req.UploadID)
	if err != nil {
		return err
	}
	if err := u.Close(); err != nil {
		return err
	}
	progress(w.Header(), req.Repo, u.ID(), u.Size())
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// patchUpload answers end-5: a chunk with its range, or a stream without one.
func (s *server) patchUpload(w http.ResponseWriter, r *http.Request, req Request) error {
	u, err := s.reg.ResumeUpload(r.Context(), req.Repo, req.UploadID)
	if err != nil {
		return err
	}
	defer func() { _ = u.Close() }() // after an error: the session stays
	length, err := s.chunk(w, r, req, u)
	if err != nil {
		return err
	}
	if err := s.append(w, r, u, length); err != nil {
		return err
	}
	if err := u.Close(); err != nil {
		return err
	}
	progress(w.Header(), req.Repo, u.ID(), u.Size())
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// putUpload answers end-6: the end of a session, with or without a last chunk.
func (s *server) putUpload(w http.ResponseWriter, r *http.Request, req Request) error {
	u, err := s.reg.ResumeUpload(r.Context(), req.Repo, req.UploadID)
	if err != nil {
		return err
	}
	defer func() { _ = u.Close() }() // after an error: the session stays, unless Commit ended it
	length, err := s.chunk(w, r, req, u)
	if err != nil {
		return err
	}
	return s.complete(w, r, req, u, length)
}

// cancelUpload answers end-14.
func (s *server) cancelUpload(w http.ResponseWriter, r *http.Request, req Request) error {
	u, err := s.reg.ResumeUpload(r.Context(), req.Repo, req.UploadID)
	if err != nil {
		return err
	}
	if err := u.Cancel(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// complete appends the body and makes the upload a blob.
func (s *server) complete(w http.ResponseWriter, r *http.Request, req Request, u registry.Upload, length int64) error {
	if err := s.append(w, r, u, length); err != nil {
		return err
	}
	d, err := u.Commit(r.Context(), req.Digest)
	if err != nil {
		return err
	}
	return created(w, blobPath(req.Repo, d.Digest), d.Digest)
}

// append copies the body to the upload; a length of 0 or more must be met.
func (s *server) append(w http.ResponseWriter, r *http.Request, u registry.Upload, length int64) error {
	in := s.receive(w, r.Body)
	var body io.Reader = in
	if length >= 0 {
		body = io.LimitReader(in, length)
	}
	n, err := io.Copy(u, body)
	if err != nil {
		return in.failed(err)
	}
	if length >= 0 {
		if more, _ := io.CopyN(io.Discard, in, 1); n < length || more > 0 {
			return registry.ErrSizeInvalid.WithMessage("the body has not the %d bytes that were announced", length)
		}
		if in.err != nil {
			return in.failed(in.err)
		}
	}
	return nil
}

// rangePattern is the Content-Range of the specification, which is not that of HTTP; clients send both.
var rangePattern = registry.Pattern(`^(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:\*|[0-9]{1,18}))?$`)

// chunk checks the Content-Range against what is here and returns the length of the body, -1 when it is unknown.
// Where the chunk does not follow the last one, the answer 416 says where to go on.
func (s *server) chunk(w http.ResponseWriter, r *http.Request, req Request, u registry.Upload) (int64, error) {
	header := r.Header.Get("Content-Range")
	if header == "" {
		return r.ContentLength, nil
	}
	refuse := func(e *registry.Error) (int64, error) {
		progress(w.Header(), req.Repo, u.ID(), u.Size())
		return 0, e
	}
	m := rangePattern().FindStringSubmatch(header)
	if m == nil {
		return refuse(registry.ErrRangeInvalid.WithMessage("Content-Range %q: want <first>-<last>", clip(header)))
	}
	first, _ := strconv.ParseInt(m[1], 10, 64) // at most 18 digits
	last, _ := strconv.ParseInt(m[2], 10, 64)
	if first != u.Size() || last < first {
		return refuse(registry.ErrRangeInvalid.WithMessage("Content-Range %q: the next byte is %d", clip(header), u.Size()))
	}
	length := last - first + 1
	if r.ContentLength >= 0 && r.ContentLength != length {
		return refuse(registry.ErrSizeInvalid.WithMessage("Content-Range %q has %d bytes, Content-Length says %d", clip(header), length, r.ContentLength))
	}
	return length, nil
}

// progress adds the headers of a session: where it goes on, and what is here. Of no bytes the range is 0-0 all the
// same, because it cannot be empty.
func progress(h http.Header, repo, id string, size int64) {
	h.Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
	h.Set("Docker-Upload-Uuid", id)
	h.Set("Range", "0-"+strconv.FormatInt(max(size-1, 0), 10))
}

func blobPath(repo string, d registry.Digest) string {
	return "/v2/" + repo + "/blobs/" + d.String()
}
