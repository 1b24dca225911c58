package distribution

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// getManifest answers end-3. The Accept header is not looked at: there is one manifest with one type.
func (s *server) getManifest(w http.ResponseWriter, r *http.Request, req Request) error {
	m, err := s.reg.GetManifest(r.Context(), req.Repo, req.Reference)
	if err != nil {
		return err
	}
	m.Size = int64(len(m.Bytes))
	if !describe(w, r, m.Descriptor) {
		return nil
	}
	out := s.send(w, r)
	if _, err := out.Write(m.Bytes); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// headManifest answers end-3 without reading the manifest.
func (s *server) headManifest(w http.ResponseWriter, r *http.Request, req Request) error {
	d, err := s.reg.ResolveManifest(r.Context(), req.Repo, req.Reference)
	if err != nil {
		return err
	}
	describe(w, r, d)
	return nil
}

// describe writes status and headers of a manifest, and reports whether the client wants the bytes too.
func describe(w http.ResponseWriter, r *http.Request, d registry.Descriptor) bool {
	h := w.Header()
	setContent(h, d, d.MediaType)
	if has(r.Header["If-None-Match"], h["Etag"][0]) {
		delete(h, "Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return false
	}
	h["Content-Length"] = []string{strconv.FormatInt(d.Size, 10)}
	w.WriteHeader(http.StatusOK)
	return r.Method != http.MethodHead
}

// has reports whether lists of entity tags contain the one, or any (RFC 9110, 13.1.2: weak comparison).
func has(lists []string, etag string) bool {
	for _, list := range lists {
		for tag := range strings.SplitSeq(list, ",") {
			if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// putManifest answers end-7.
func (s *server) putManifest(w http.ResponseWriter, r *http.Request, req Request) error {
	body, err := s.readManifest(w, r)
	if err != nil {
		return err
	}
	mediaType, err := contentType(r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	d, err := s.reg.PutManifest(conditional(r), req.Repo, req.Reference, registry.Manifest{
		Descriptor: registry.Descriptor{MediaType: mediaType}, Bytes: body,
	})
	if err != nil {
		return err
	}
	h := w.Header()
	if refs, err := registry.ParseManifest(mediaType, body); err == nil && refs.Subject != nil {
		h.Set("Oci-Subject", refs.Subject.Digest.String())
	}
	return created(w, "/v2/"+req.Repo+"/manifests/"+d.Digest.String(), d.Digest)
}

// conditional is the context of a request that changes a tag, with its precondition.
func conditional(r *http.Request) context.Context {
	p := registry.Precondition{Match: strings.Join(r.Header["If-Match"], ","), NoneMatch: strings.Join(r.Header["If-None-Match"], ",")}
	if p == (registry.Precondition{}) {
		return r.Context()
	}
	return registry.WithPrecondition(r.Context(), p)
}

// readManifest reads a body of at most registry.MaxManifestSize bytes.
func (s *server) readManifest(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := registry.ErrManifestInvalid.WithMessage("manifest of more than %d bytes", registry.MaxManifestSize)
	tooLarge.Status = http.StatusRequestEntityTooLarge
	if r.ContentLength > registry.MaxManifestSize {
		return nil, tooLarge
	}
	in := s.receive(w, r.Body)
	body, err := io.ReadAll(http.MaxBytesReader(w, io.NopCloser(in), registry.MaxManifestSize))
	if err == nil {
		return body, nil
	}
	if tooMany := (*http.MaxBytesError)(nil); errors.As(err, &tooMany) {
		return nil, tooLarge
	}
	return nil, in.failed(err)
}

// contentType returns the media type without parameters.
func contentType(header string) (string, error) {
	mediaType, _, err := mime.ParseMediaType(header)
	if err != nil {
		return "", registry.ErrManifestInvalid.WithMessage("Content-Type %q: want the media type of the manifest", clip(header))
	}
	return mediaType, nil
}

// created answers what was stored.
func created(w http.ResponseWriter, location string, d registry.Digest) error {
	h := w.Header()
	h.Set("Location", location)
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

// deleteManifest answers end-9 for a digest.
func (s *server) deleteManifest(w http.ResponseWriter, r *http.Request, req Request) error {
	return accepted(w, s.reg.DeleteManifest(r.Context(), req.Repo, req.Reference.Digest))
}
