package distribution

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxRanges is how many ranges of one request are looked at; with more, the whole content is sent (RFC 9110, 14.2).
const maxRanges = 16

const octetStream = "application/octet-stream"

// getBlob answers end-2. Content that is still arriving here goes the same way as a file: its reader blocks.
func (s *server) getBlob(w http.ResponseWriter, r *http.Request, req Request) error {
	b, err := s.reg.GetBlob(r.Context(), req.Repo, req.Digest)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }() // it was only read
	// Seek to the end finds out the size, and whether the content can be had, before anything is promised.
	size, err := b.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return s.serveContent(w, r, registry.Descriptor{Digest: req.Digest}, contentOf(b, size))
}

// contentOf returns the file of a blob that has one, for sendfile(2). A file that has not the size of the blob is
// damaged: the reader, which ends early, then ends the connection.
func contentOf(b registry.BlobReader, size int64) io.ReadSeeker {
	f, ok := b.(interface{ File() *os.File })
	if !ok {
		return b
	}
	file := f.File()
	if file == nil {
		return b
	}
	if n, err := file.Seek(0, io.SeekEnd); err != nil || n != size {
		return b
	}
	return file
}

// headBlob answers end-2 without opening the content.
func (s *server) headBlob(w http.ResponseWriter, r *http.Request, req Request) error {
	d, err := s.reg.ResolveBlob(r.Context(), req.Repo, req.Digest)
	if err != nil {
		return err
	}
	return s.serveContent(w, r, registry.Descriptor{Digest: req.Digest}, io.NewSectionReader(nothing{}, 0, d.Size))
}

// nothing has a size, for HEAD, and is never read.
type nothing struct{}

func (nothing) ReadAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }

// serveContent leaves ranges and conditions to net/http.
func (s *server) serveContent(w http.ResponseWriter, r *http.Request, d registry.Descriptor, content io.ReadSeeker) error {
	setContent(w.Header(), d, octetStream)
	if spec := r.Header.Get("Range"); !strings.HasPrefix(spec, "bytes=") || strings.Count(spec, ",") >= maxRanges {
		r.Header.Del("Range") // an unknown unit has to be ignored
	}
	out := s.send(w, r)
	http.ServeContent(out, r, "", time.Time{}, content)
	switch out.refused {
	case 0:
	case http.StatusRequestedRangeNotSatisfiable:
		e := registry.ErrSizeInvalid.WithMessage("Range %q: not within the content", clip(r.Header.Get("Range")))
		e.Status = out.refused
		return e
	default:
		return registry.ErrInternal.Wrap(fmt.Errorf("the content cannot be served: net/http answers %d", out.refused))
	}
	if out.err != nil {
		s.logger.Info("a body was cut", "path", r.URL.Path, "error", out.err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// clip bounds a client's text before it goes into a message.
func clip(s string) string {
	const limit = 80
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}

// deleteBlob answers end-10.
func (s *server) deleteBlob(w http.ResponseWriter, r *http.Request, req Request) error {
	return accepted(w, s.reg.DeleteBlob(r.Context(), req.Repo, req.Digest))
}

// accepted answers what was deleted.
func accepted(w http.ResponseWriter, err error) error {
	if err != nil {
		return err
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusAccepted)
	return nil
}
