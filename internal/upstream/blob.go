package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/descriptor"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// ResolveBlob implements registry.Reader with a HEAD.
func (p *Parent) ResolveBlob(ctx context.Context, repo string, d registry.Digest) (registry.Descriptor, error) {
	if err := registry.ValidateRepository(repo); err != nil {
		return registry.Descriptor{}, err
	}
	c := call{blob: true}
	err := p.run(ctx, &c, registry.ErrBlobUnknown, func(ctx context.Context, r *reg.Reg) error {
		b, err := r.BlobHead(ctx, p.ref(repo, registry.Reference{}), descriptor.Descriptor{Digest: d})
		if err != nil {
			return err
		}
		return b.Close()
	})
	if err != nil {
		return registry.Descriptor{}, err
	}
	size, err := strconv.ParseInt(c.header.Get("Content-Length"), 10, 64)
	if err != nil || size < 0 {
		return registry.Descriptor{}, registry.ErrUnavailable.WithMessage("%s does not say how large %s is", p.host, d)
	}
	return registry.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: size}, nil
}

// GetBlob implements registry.Reader. Nothing is asked before the first Read, which sends one GET from the offset on;
// so whether the blob exists is known only then. There is no retry inside: the caller knows what it has.
//
// Errors of Read: io.EOF at the end; BLOB_UNKNOWN, NAME_UNKNOWN; RANGE_INVALID for an answer with another range than was
// asked for; SIZE_INVALID for more bytes than were announced; UNAVAILABLE for a cut, with io.ErrUnexpectedEOF as a
// cause where the connection just ended, and for a stall.
func (p *Parent) GetBlob(ctx context.Context, repo string, d registry.Digest) (registry.BlobReader, error) {
	if err := registry.ValidateRepository(repo); err != nil {
		return nil, err
	}
	if _, err := registry.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	return &blobReader{p: p, ctx: ctx, repo: repo, digest: d, size: -1}, nil
}

// blobReader reads a blob from any offset. It is used by one goroutine.
type blobReader struct {
	p      *Parent
	ctx    context.Context // it bounds the reader's life, as registry.BlobReader says
	repo   string
	digest registry.Digest
	off    int64         // of the next byte
	size   int64         // -1 while unknown
	end    int64         // where the open body ends; -1 while unknown
	body   io.ReadCloser // nil while no request is open
	err    error         // sticks until Seek
}

// Descriptor implements registry.BlobReader.
func (b *blobReader) Descriptor() registry.Descriptor {
	return registry.Descriptor{MediaType: "application/octet-stream", Digest: b.digest, Size: max(b.size, 0)}
}

// Seek implements io.Seeker. An open request is given up when the offset changes; the end is asked for with a HEAD
// when it is not known yet.
func (b *blobReader) Seek(offset int64, whence int) (int64, error) {
	to := offset
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		to += b.off
	case io.SeekEnd:
		if b.size < 0 {
			d, err := b.p.ResolveBlob(b.ctx, b.repo, b.digest)
			if err != nil {
				return b.off, err
			}
			b.size = d.Size
		}
		to += b.size
	default:
		return b.off, fmt.Errorf("seek: whence %d", whence)
	}
	if to < 0 {
		return b.off, fmt.Errorf("seek: offset %d", to)
	}
	if to != b.off || b.err != nil {
		b.drop()
		b.err = nil
	}
	b.off = to
	return to, nil
}

func (b *blobReader) drop() {
	if b.body != nil {
		_ = b.body.Close()
		b.body = nil
	}
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	b.drop()
	b.err = errors.New("read of a closed blob")
	return nil
}

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.read(p)
	if err != nil {
		b.err = err
		b.drop()
	}
	return n, err
}

func (b *blobReader) read(p []byte) (int, error) {
	if b.body == nil {
		if b.size >= 0 && b.off >= b.size {
			return 0, io.EOF
		}
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	left := b.end - b.off
	if b.end >= 0 && left < int64(len(p)) {
		p = p[:left+1] // one more, to see a body that does not end
	}
	n, err := b.body.Read(p)
	if b.end >= 0 && int64(n) > left {
		b.off = b.end
		return int(left), registry.ErrSizeInvalid.WithMessage("%s sends more than the %d bytes it announced for %s", b.p.host, b.end, b.digest)
	}
	b.off += int64(n)
	if err != io.EOF {
		return n, err
	}
	if b.size < 0 && b.end < 0 {
		b.size = b.off // the end of a body without a length is the end of the blob
	}
	if b.size >= 0 && b.off == b.size {
		return n, io.EOF
	}
	return n, b.short()
}

// short is the error of a body that ended before the blob did.
func (b *blobReader) short() error {
	return registry.ErrUnavailable.WithMessage("%s ended %s at byte %d", b.p.host, b.digest, b.off).Wrap(io.ErrUnexpectedEOF)
}

// open sends the request for the rest of the blob.
func (b *blobReader) open() error {
	c := call{blob: true, offset: b.off}
	err := b.p.run(b.ctx, &c, registry.ErrBlobUnknown, func(ctx context.Context, r *reg.Reg) error {
		// regclient authorises and follows redirects; the body is in c.response, and what it returns is empty.
		stand, err := r.BlobGet(ctx, b.p.ref(b.repo, registry.Reference{}), descriptor.Descriptor{Digest: b.digest})
		if err != nil {
			return err
		}
		return stand.Close()
	})
	if err == nil && c.response == nil {
		err = registry.ErrUnavailable.WithMessage("%s answers HTTP %d for %s", b.p.host, c.status, b.digest)
	}
	if err != nil {
		if c.response != nil {
			_ = c.response.Body.Close()
		}
		return err
	}
	b.body, b.end = c.response.Body, -1
	switch c.response.StatusCode {
	case http.StatusPartialContent:
		return b.partial(c.response)
	case http.StatusRequestedRangeNotSatisfiable:
		return b.beyond(c.response)
	}
	return b.whole(c.response)
}

// learn takes the size that the parent announces; it must stay what it was.
func (b *blobReader) learn(size int64) error {
	if size < 0 {
		return nil
	}
	if b.size >= 0 && b.size != size {
		return registry.ErrSizeInvalid.WithMessage("%s announces %d bytes for %s, and %d before", b.p.host, size, b.digest, b.size)
	}
	b.size = size
	return nil
}

// partial checks that an answer 206 is the range that was asked for.
func (b *blobReader) partial(resp *http.Response) error {
	text := resp.Header.Get("Content-Range")
	first, last, total, ok := parseContentRange(text)
	if !ok || first != b.off || (total >= 0 && last >= total) || (resp.ContentLength >= 0 && resp.ContentLength != last-first+1) {
		return registry.ErrRangeInvalid.WithMessage("%s answers bytes=%d- of %s with Content-Range %q and %d bytes", b.p.host, b.off, b.digest, text, resp.ContentLength)
	}
	b.end = last + 1
	return b.learn(total)
}

// whole skips what is here already in an answer that starts at the beginning.
func (b *blobReader) whole(resp *http.Response) error {
	if err := b.learn(resp.ContentLength); err != nil {
		return err
	}
	b.end = resp.ContentLength
	if b.off == 0 {
		return nil
	}
	b.p.rangeless.Do(func() {
		b.p.log.Warn("the parent ignores ranges: what is here already of a blob is received again after each cut", "parent", b.p.host)
	})
	if b.end >= 0 && b.end < b.off {
		return registry.ErrSizeInvalid.WithMessage("%s sends %d bytes of %s, and %d are here", b.p.host, b.end, b.digest, b.off)
	}
	n, err := io.CopyN(io.Discard, b.body, b.off)
	if errors.Is(err, io.EOF) {
		err = registry.ErrUnavailable.WithMessage("%s ended %s at byte %d", b.p.host, b.digest, n).Wrap(io.ErrUnexpectedEOF)
	}
	return err
}

// beyond reads an answer 416: with the offset at the very end there is nothing left to send.
func (b *blobReader) beyond(resp *http.Response) error {
	size := int64(-1)
	if text, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), "bytes */"); ok {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
			size = n
		}
	}
	if size < 0 {
		d, err := b.p.ResolveBlob(b.ctx, b.repo, b.digest)
		if err != nil {
			return err
		}
		size = d.Size
	}
	if err := b.learn(size); err != nil {
		return err
	}
	if b.off == size {
		return io.EOF
	}
	return registry.ErrRangeInvalid.WithMessage("%s has %d bytes of %s, asked for from %d on", b.p.host, size, b.digest, b.off)
}

// parseContentRange reads "bytes first-last/total", with total -1 for "*" (RFC 9110, section 14.4).
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	span, of, _ := strings.Cut(s, "/")
	a, z, _ := strings.Cut(span, "-")
	total = -1
	var errs [3]error
	first, errs[0] = strconv.ParseInt(a, 10, 64)
	last, errs[1] = strconv.ParseInt(z, 10, 64)
	if of != "*" {
		total, errs[2] = strconv.ParseInt(of, 10, 64)
	}
	return first, last, total, errors.Join(errs[:]...) == nil && first >= 0 && last >= first
}
