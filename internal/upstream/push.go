package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

const (
	// defaultChunk keeps a body below the MiB that proxies between layers take.
	defaultChunk = 512 << 10
	// leastChunk is where halving ends, unless the parent asks for larger chunks.
	leastChunk = 16 << 10
	// quick is how fast a chunk has to be for the next to be larger again.
	quick = 5 * time.Second
	// fruitless is how often in a row a session is asked for its offset without having advanced.
	fruitless = 3
	// candidates bounds the repositories that are asked about before a large blob is sent.
	candidates = 4
)

// errThere ends a push of what the parent turned out to have.
var errThere = errors.New("the parent has it")

// SetChunk sets how large the chunks of an upload are at most, in KiB; 0 is 512.
func (p *Parent) SetChunk(kib int) {
	n := int64(kib) << 10
	if n <= 0 {
		n = defaultChunk
	}
	p.chunkMu.Lock()
	defer p.chunkMu.Unlock()
	if n != p.chunkWant {
		p.chunkWant, p.chunkMost, p.chunk = n, n, n
	}
}

// chunkSize is how large the next chunk is.
func (p *Parent) chunkSize() int64 {
	p.chunkMu.Lock()
	defer p.chunkMu.Unlock()
	return p.chunk
}

// tooLarge makes chunks smaller after one of n bytes was refused, or took too long. It reports whether there is a smaller
// size.
func (p *Parent) tooLarge(n int64, forGood bool) bool {
	p.chunkMu.Lock()
	defer p.chunkMu.Unlock()
	if n/2 < leastChunk {
		return false
	}
	p.chunk = min(p.chunk, n/2)
	if forGood {
		p.chunkMost = min(p.chunkMost, n/2)
	}
	return true
}

// went makes chunks larger again after a quick one.
func (p *Parent) went(n int64, took time.Duration) {
	p.chunkMu.Lock()
	defer p.chunkMu.Unlock()
	if took < quick && n >= p.chunk {
		p.chunk = min(2*p.chunk, p.chunkMost)
	}
}

// session is an upload at the parent.
type session struct {
	p    *Parent
	repo string
	loc  string // path and query where it goes on
	size int64  // bytes that the parent has
	min  int64  // least size of a chunk that is not the last
}

// begin starts a session, or has the parent take the blob from where it has it: then there is no session.
func (p *Parent) begin(ctx context.Context, repo string, d registry.Digest, from string) (*session, error) {
	path := "/v2/" + repo + "/blobs/uploads/"
	w := &write{method: http.MethodPost, target: path}
	if d != "" {
		q := url.Values{"mount": {d.String()}}
		if from != "" {
			q.Set("from", from)
		}
		w.target += "?" + q.Encode()
	}
	c, err := p.send(ctx, repo, w)
	if err != nil {
		return nil, err
	}
	if d != "" && c.status/100 == 4 && c.status != http.StatusTooManyRequests && c.status != http.StatusRequestTimeout {
		return p.begin(ctx, repo, "", "") // some know no mount, or not without a source
	}
	switch {
	case c.status == http.StatusCreated && d != "":
		if said := c.header.Get("Docker-Content-Digest"); said != "" && said != d.String() {
			return nil, p.lies(d, said)
		}
		return nil, nil
	case c.status != http.StatusAccepted:
		return nil, p.refuses(c)
	}
	s := &session{p: p, repo: repo}
	s.min, _ = strconv.ParseInt(c.header.Get("Oci-Chunk-Min-Length"), 10, 64)
	if s.loc = c.header.Get("Location"); s.loc == "" {
		return nil, registry.ErrUnavailable.WithMessage("%s starts an upload without a Location", p.host)
	}
	s.loc, err = target(s.loc)
	return s, err
}

// sync asks the parent where the session goes on.
//
// Errors: BLOB_UPLOAD_UNKNOWN when it has ended.
func (s *session) sync(ctx context.Context) error {
	c, err := s.p.send(ctx, s.repo, &write{method: http.MethodGet, target: s.loc})
	if err != nil {
		return err
	}
	switch {
	case c.status == http.StatusNoContent || c.status == http.StatusOK || c.status == http.StatusAccepted:
		s.size = 0
		return s.advance(c)
	case isAway(c.status):
		return s.p.refuses(c)
	case c.status == http.StatusForbidden:
		return s.p.refuses(c)
	}
	return registry.ErrBlobUploadUnknown.WithMessage("%s has ended the upload: HTTP %d", s.p.host, c.status)
}

// advance takes offset and Location of an answer.
func (s *session) advance(c *call) error {
	if n, ok := parseOffset(c.header.Get("Range")); ok {
		s.size = n
	}
	if to := c.header.Get("Location"); to != "" {
		loc, err := target(to)
		if err != nil {
			return err
		}
		s.loc = loc
	}
	return nil
}

// parseOffset reads the Range of a session, "0-<last>": how many bytes are there. Of none it is "0-0" as well as of one;
// taken for none, the one byte is refused and the session begun anew, which is rare and costs nothing.
func parseOffset(text string) (int64, bool) {
	_, last, ok := strings.Cut(strings.TrimPrefix(text, "bytes="), "-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(last, 10, 64)
	switch {
	case last == "-1":
		return 0, true
	case err != nil || n < 0:
		return 0, false
	case n == 0:
		return 0, true
	}
	return n + 1, true
}

// patch sends one chunk.
func (s *session) patch(ctx context.Context, n int64, body func() (io.ReadCloser, error)) error {
	c, err := s.p.send(ctx, s.repo, &write{
		method: http.MethodPatch, target: s.loc, length: n, body: body,
		header: http.Header{"Content-Type": {"application/octet-stream"}, "Content-Range": {fmt.Sprintf("%d-%d", s.size, s.size+n-1)}},
	})
	if err != nil {
		return err
	}
	if c.status == http.StatusNotFound {
		return registry.ErrBlobUploadUnknown.WithMessage("%s has ended the upload", s.p.host)
	}
	if c.status != http.StatusAccepted && c.status != http.StatusNoContent && c.status != http.StatusCreated {
		return s.p.refuses(c)
	}
	s.size += n
	return s.advance(c)
}

// finish ends the session with its last n bytes.
func (s *session) finish(ctx context.Context, d registry.Digest, n int64, body func() (io.ReadCloser, error)) error {
	to, err := url.Parse(s.loc)
	if err != nil {
		return err
	}
	if to.RawQuery != "" {
		to.RawQuery += "&"
	}
	to.RawQuery += "digest=" + url.QueryEscape(d.String())
	c, err := s.p.send(ctx, s.repo, &write{
		method: http.MethodPut, target: to.String(), length: n, body: body, header: http.Header{"Content-Type": {"application/octet-stream"}},
	})
	switch {
	case err != nil:
		return err
	case c.status == http.StatusNotFound:
		return registry.ErrBlobUploadUnknown.WithMessage("%s has ended the upload", s.p.host)
	case c.status != http.StatusCreated && c.status != http.StatusNoContent:
		return s.p.refuses(c)
	}
	s.size += n
	said := c.header.Get("Docker-Content-Digest")
	if said == "" {
		_, err = s.p.ResolveBlob(ctx, s.repo, d)
	} else if said != d.String() {
		err = s.p.lies(d, said)
	}
	return err
}

// cancel ends the session at the parent.
func (s *session) cancel(ctx context.Context) error {
	err := s.p.delete(ctx, s.repo, s.loc, registry.ErrBlobUploadUnknown, nil)
	if errors.Is(err, registry.ErrBlobUploadUnknown) {
		return nil
	}
	return err
}

// PushBlob makes a blob one of a repository at the parent and sends as little of it as it can: nothing when the parent has
// it, what is missing when an earlier session holds a part. It goes on after cuts for as long as it advances.
//
// Errors: UNAVAILABLE, UNAUTHORIZED and those of Open may pass, and what the parent has stays for the next call; the rest
// is the parent's no, in its words.
func (p *Parent) PushBlob(ctx context.Context, b registry.BlobPush) error {
	if b.Note == nil {
		b.Note = func(string) {}
	}
	if b.Moved == nil {
		b.Moved = func(int64) {}
	}
	u := &pushing{p: p, b: b}
	for anew := 0; ; anew++ {
		err := u.run(ctx)
		if err == nil || anew == fruitless || !isEnded(err) {
			return err
		}
		u.b.Session = "" // what the parent had of it is gone
		b.Note("")
	}
}

// isEnded reports whether an error says that the session is of no use any more.
func isEnded(err error) bool {
	for _, e := range []error{registry.ErrBlobUploadUnknown, registry.ErrBlobUploadInvalid, registry.ErrRangeInvalid, registry.ErrDigestInvalid} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pushing is one blob on its way.
type pushing struct {
	p *Parent
	b registry.BlobPush
	s *session
}

// run goes from finding out what the parent has to the end of the session.
func (u *pushing) run(ctx context.Context) error {
	done, err := u.open(ctx)
	if done || err != nil {
		return err
	}
	u.b.Moved(u.s.size)
	err = u.fill(ctx)
	if errors.Is(err, errThere) {
		err = nil
	}
	if err == nil {
		u.b.Moved(u.b.Size)
		u.b.Note("")
	}
	return err
}

// open goes on with the session of before, or finds out whether the parent has the blob, and begins one if not.
func (u *pushing) open(ctx context.Context) (done bool, err error) {
	if u.b.Session != "" {
		u.s = &session{p: u.p, repo: u.b.Repository, loc: u.b.Session}
		err := u.s.sync(ctx)
		if err == nil && u.s.size <= u.b.Size {
			return false, nil
		}
		if err != nil && !isEnded(err) {
			return false, err
		}
		u.b.Note("")
	}
	from, there, err := u.look(ctx)
	if there || err != nil {
		return there, err
	}
	u.s, err = u.p.begin(ctx, u.b.Repository, u.b.Digest, from)
	return u.s == nil, err
}

// look finds out whether the repository has the blob at the parent already, and another one to take it from. A connected
// registry answers both when the session begins.
func (u *pushing) look(ctx context.Context) (from string, there bool, err error) {
	u.p.mu.Lock()
	kind := u.p.kind
	u.p.mu.Unlock()
	if kind == registry.KindConnected {
		return "", false, nil
	}
	if there, err := u.holds(ctx, u.b.Repository); there || err != nil {
		return "", there, err
	}
	list := u.b.From[:min(len(u.b.From), candidates)]
	if len(list) == 0 {
		return "", false, nil
	}
	if len(list) > 1 && u.b.Size >= defaultChunk {
		for _, repo := range list {
			if there, _ := u.holds(ctx, repo); there { // one that may not be asked is none
				return repo, false, nil
			}
		}
	}
	return list[0], false, nil // a wrong one costs nothing: it begins a session all the same
}

// holds reports whether a repository has the blob at the parent.
func (u *pushing) holds(ctx context.Context, repo string) (bool, error) {
	d, err := u.p.ResolveBlob(ctx, repo, u.b.Digest)
	if errors.Is(err, registry.ErrBlobUnknown) || errors.Is(err, registry.ErrNameUnknown) {
		return false, nil
	}
	return err == nil && d.Size == u.b.Size, err
}

// fill sends what is missing and ends the session.
func (u *pushing) fill(ctx context.Context) error {
	noted := false
	for stuck := 0; ; {
		before := u.s.size
		left := u.b.Size - before
		n := max(u.p.chunkSize(), u.s.min)
		whole := before == 0 && left <= n
		if !whole && !noted {
			u.b.Note(u.s.loc)
			noted = true
		}
		began := u.p.clock.Now()
		err := u.step(ctx, min(n, left), whole)
		if err == nil && (left == 0 || whole) {
			return nil
		}
		if err == nil && u.s.size > before {
			u.p.went(u.s.size-before, u.p.clock.Now().Sub(began))
			u.b.Moved(u.s.size)
			u.b.Note(u.s.loc)
			stuck = 0
			continue
		}
		if stuck++; stuck > fruitless {
			return cmp.Or(err, error(registry.ErrUnavailable.WithMessage("%s stands at %d of %d bytes of %s", u.p.host, u.s.size, u.b.Size, u.b.Digest)))
		}
		if err := u.mend(ctx, err, min(n, left)); err != nil {
			return err
		}
		if u.s.size > before {
			stuck = 0
		}
	}
}

// step sends the next chunk, or ends the session after the last. A blob of one chunk goes with the end.
func (u *pushing) step(ctx context.Context, n int64, whole bool) error {
	at := u.s.size
	body := func() (io.ReadCloser, error) { return section(ctx, u.b.Open, at, n) }
	if n == 0 || whole {
		return u.s.finish(ctx, u.b.Digest, n, body)
	}
	return u.s.patch(ctx, n, body)
}

// mend finds out after a failure where to go on. An error ends this run.
func (u *pushing) mend(ctx context.Context, failed error, n int64) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(failed, registry.ErrSizeInvalid) && n > 0:
		if n/2 < u.s.min || !u.p.tooLarge(n, true) {
			return failed
		}
		u.p.log.Info("a proxy or the parent refuses chunks of this size; they become smaller", "parent", u.p.host, "bytes", n)
	case errors.Is(failed, transport.ErrNoAnswer) || errors.Is(failed, transport.ErrTooSlow):
		u.p.tooLarge(max(n, 2*u.s.min), false)
	case failed != nil && !errors.Is(failed, registry.ErrUnavailable) && !errors.Is(failed, registry.ErrRangeInvalid):
		if there, err := u.holds(ctx, u.b.Repository); there && err == nil && isEnded(failed) {
			return errThere // it was complete, and its answer was lost
		}
		return failed
	}
	before := u.s.size
	err := u.s.sync(ctx)
	if isEnded(err) {
		if there, herr := u.holds(ctx, u.b.Repository); there && herr == nil {
			return errThere
		}
	}
	if err == nil && u.s.size == before && errors.Is(failed, registry.ErrRangeInvalid) {
		return failed // it says where to go on and does not take it
	}
	return err
}

// section opens n bytes of content from an offset on.
func section(ctx context.Context, open func(context.Context) (registry.BlobReader, error), at, n int64) (io.ReadCloser, error) {
	r, err := open(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := r.Seek(at, io.SeekStart); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, n), r}, nil
}
