package store

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// inParts gives so many bytes at a time, and then an error.
type inParts struct {
	from  []byte
	parts []int
	err   error
}

func (r *inParts) Read(p []byte) (int, error) {
	if len(r.from) == 0 {
		return 0, r.err
	}
	n := len(r.from)
	if len(r.parts) > 0 {
		n, r.parts = min(n, r.parts[0]), r.parts[1:]
	}
	n = copy(p, r.from[:n])
	r.from = r.from[n:]
	return n, nil
}

// TestBodiesAreHashedAsTheyCome: whatever parts a body comes in, in however many requests and with whatever end, what was
// read is in the file when the request is over, and its hash is ready: nothing is read again.
func TestBodiesAreHashedAsTheyCome(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	blob := registrytest.NewBlob(1, 3*pieceSize+1000)
	cut := errors.New("cut")
	ctx, fail := t.Context(), t.Fatal
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{0, 1, pieceSize - 1, pieceSize, pieceSize + 1, 2 * pieceSize, 3*pieceSize + 999}).Draw(t, "size")
		content := blob.Bytes[:size]
		started, err := s.StartUpload(ctx, testRepo)
		if err != nil {
			fail(err)
		}
		u := started.(*upload)
		for at := 0; at < size || size == 0; {
			end := rapid.SampledFrom([]int{1, pieceSize, pieceSize + 7, 4 * pieceSize}).Draw(t, "request")
			end = min(at+end, size)
			parts := rapid.SliceOfN(rapid.SampledFrom([]int{1, 1000, 16 << 10, 64 << 10, pieceSize - 1, pieceSize, 4 * pieceSize}), 0, 6).Draw(t, "parts")
			last, isCut := io.EOF, rapid.Bool().Draw(t, "cut")
			if isCut {
				last = cut
			}
			n, err := u.ReadFrom(&inParts{content[at:end], parts, last})
			if n != int64(end-at) || isCut != errors.Is(err, cut) || !isCut && err != nil {
				t.Fatalf("%d bytes of %d: %v", n, end-at, err)
			}
			if at = end; u.Size() != int64(at) || u.ses.hash.n != int64(at) {
				t.Fatalf("%d bytes are here, %d hashed, after %d", u.Size(), u.ses.hash.n, at)
			}
			if size == 0 {
				break
			}
		}
		got := make([]byte, size)
		if _, err := u.file.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, content) {
			t.Fatalf("not what was sent: %v", err)
		}
		if d, err := u.Commit(ctx, registrytest.BlobOf("", content).Digest); err != nil || d.Size != int64(size) {
			t.Fatalf("%+v, %v", d, err)
		}
	})
}

// TestFailedWriteWhileABodyComes: the request ends with the reason, and no goroutine hashes on.
func TestFailedWriteWhileABodyComes(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	u, err := s.StartUpload(t.Context(), testRepo)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.(*upload).file.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := u.(*upload).ReadFrom(bytes.NewReader(make([]byte, 2*pieceSize))); n != 0 || err == nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// reservingFS notes what is reserved.
type reservingFS struct {
	OSFS
	asked []int64
	err   error
	free  int64 // 0: what there is
}

func (x *reservingFS) Reserve(f File, size int64) error {
	x.asked = append(x.asked, size)
	return errors.Join(x.err, x.OSFS.Reserve(f, size))
}

func (x *reservingFS) Free(path string) (int64, error) {
	if x.free > 0 {
		return x.free, nil
	}
	return x.OSFS.Free(path)
}

// TestBlocksAreReservedForWhatComes: never more than what came already and never beyond the body; what was reserved for
// a rest that does not come is given back, and where nothing can be reserved the body comes all the same.
func TestBlocksAreReservedForWhatComes(t *testing.T) {
	const came, keep = 13 << 20, 1 << 20
	body := make([]byte, came)
	for _, c := range []struct {
		name      string
		announced int64 // 0: no length
		free      int64
		fails     error
		first     int64 // what is reserved first; 0: nothing ever is
		once      bool
	}{
		{name: "all of it comes", announced: came, first: 8 << 20},
		{name: "it is cut", announced: came + 50<<20, first: 8 << 20},
		{name: "the length is not known"},
		{name: "it is small", announced: reserveLeast},
		{name: "nothing can be reserved", announced: came, fails: syscall.ENOSPC, first: 8 << 20, once: true},
		{name: "room is about to end", announced: came, free: keep + reserveLeast + roomInterval - 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := &reservingFS{}
			s := openStore(t, t.TempDir(), Options{FS: x, ReserveBytes: keep})
			started, err := s.StartUpload(t.Context(), testRepo)
			if err != nil {
				t.Fatal(err)
			}
			u := started.(*upload)
			defer func() { _ = u.Cancel(t.Context()) }()
			x.asked, x.err, x.free = nil, c.fails, c.free
			var r io.Reader = bytes.NewReader(body)
			want := int64(came)
			if c.announced > 0 {
				r, want = io.LimitReader(r, c.announced), min(want, c.announced)
			}
			if n, err := u.ReadFrom(r); n != want || err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
			if (len(x.asked) > 0) != (c.first > 0) || c.first > 0 && x.asked[0] != c.first || c.once && len(x.asked) > 1 {
				t.Errorf("reserved up to %d", x.asked)
			}
			for n, size := range x.asked {
				if size > c.announced || n > 0 && size > 2*x.asked[n-1] {
					t.Errorf("reserved up to %d of %d", x.asked, c.announced)
				}
			}
			if size, used := room(t, u); size != want || used > want+1<<20 {
				t.Errorf("%d bytes take %d, want %d", size, used, want)
			}
		})
	}
}

// room is the size of an upload and what its blocks take, in bytes.
func room(t *testing.T, u *upload) (size, used int64) {
	t.Helper()
	info, err := u.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size(), info.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestKilledUploadGivesBackWhatWasReserved when a later process goes on with it.
func TestKilledUploadGivesBackWhatWasReserved(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	started, err := s.StartUpload(t.Context(), testRepo)
	if err != nil {
		t.Fatal(err)
	}
	killed := started.(*upload)
	if _, err := killed.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := s.fs.Reserve(killed.file, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(killed.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	resumed, err := openStore(t, dir, Options{}).ResumeUpload(t.Context(), testRepo, killed.ID())
	if err != nil {
		t.Fatal(err)
	}
	if size, used := room(t, resumed.(*upload)); size != 1000 || used > 1<<20 {
		t.Errorf("%d bytes take %d", size, used)
	}
	if err := resumed.Close(); err != nil {
		t.Error(err)
	}
}
