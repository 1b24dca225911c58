//go:build interop

package apiproxy

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	mebibyte = 1 << 20
	uploads  = "/v2/acme/app/blobs/uploads/"
)

// bytesOf are so many, the same for the same name.
func bytesOf(name string, n int) []byte {
	var seed [32]byte
	copy(seed[:], name)
	body := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(body) // it has no error
	return body
}

// blob says whether a registry holds exactly these bytes.
func (s *site) blob(l *stratum, want []byte) {
	s.t.Helper()
	resp, body := s.send(l, writer, "GET", "/v2/acme/app/blobs/"+sha(want), http.NoBody, nil)
	if resp.StatusCode != http.StatusOK || !bytes.Equal(body, want) {
		s.t.Errorf("%s: the blob that was pushed: %s, %d bytes of %d", l.name, resp.Status, len(body), len(want))
	}
}

// session starts an upload and returns where it goes on.
func (s *site) session(l *stratum) string {
	s.t.Helper()
	resp, body := s.send(l, writer, "POST", uploads, http.NoBody, nil)
	location := resp.Header.Get("Location")
	if resp.StatusCode != http.StatusAccepted || !strings.HasPrefix(location, uploads) {
		s.t.Fatalf("%s: an upload is started: %s, Location %q %s", l.name, resp.Status, location, body)
	}
	return location
}

// TestPushWhole: where the registry is behind the proxy, bodies have any size, in one request or in chunks.
func TestPushWhole(t *testing.T) {
	s := newSite(t, true, true, true)
	s.start()
	one, two, three := bytesOf("one", 5*mebibyte), bytesOf("two", 5*mebibyte), bytesOf("three", 5*mebibyte)
	resp, body := s.send(s.top(), writer, "POST", uploads+"?digest="+sha(one), bytes.NewReader(one), nil)
	if resp.StatusCode != http.StatusCreated || resp.Header.Get("Location") != "/v2/acme/app/blobs/"+sha(one) {
		t.Errorf("POST of a whole blob: %s, Location %q %s", resp.Status, resp.Header.Get("Location"), body)
	}
	at := s.session(s.top())
	resp, body = s.send(s.top(), writer, "PUT", at+"?digest="+sha(two), bytes.NewReader(two), nil)
	if resp.StatusCode != http.StatusCreated {
		t.Errorf("PUT of a whole blob: %s %s", resp.Status, body)
	}
	at = s.session(s.top())
	for i := range 2 { // a stream of unknown length, as the Docker engine sends it, and a chunk
		part := three[i*mebibyte*2 : (i+1)*mebibyte*2]
		header := map[string]string{}
		reader := io.Reader(bytes.NewReader(part))
		if i == 0 {
			reader = struct{ io.Reader }{reader}
		} else {
			header["Content-Range"] = fmt.Sprintf("%d-%d", 2*mebibyte, 4*mebibyte-1)
		}
		resp, body = s.send(s.top(), writer, "PATCH", at, reader, header)
		if resp.StatusCode != http.StatusAccepted || resp.Header.Get("Range") != fmt.Sprintf("0-%d", (i+1)*2*mebibyte-1) {
			t.Fatalf("PATCH: %s, Range %q %s", resp.Status, resp.Header.Get("Range"), body)
		}
		at = resp.Header.Get("Location")
	}
	resp, body = s.send(s.top(), writer, "PUT", at+"?digest="+sha(three), bytes.NewReader(three[4*mebibyte:]), nil)
	if resp.StatusCode != http.StatusCreated {
		t.Errorf("the last chunk: %s %s", resp.Status, body)
	}
	for _, want := range [][]byte{one, two, three} {
		s.blob(s.top(), want)
	}
	for _, l := range []*stratum{s.middle(), s.bottom()} { // they are ReadOnly
		if resp, body := s.send(l, writer, "POST", uploads, http.NoBody, nil); resp.StatusCode/100 != 4 || !strings.Contains(string(body), "This operation is not allowed on this registry") {
			t.Errorf("%s: an upload is started: %s %s", l.name, resp.Status, body)
		}
	}
}

// TestPushForwarded: a proxy without a registry takes 1 MiB at a time. What it refuses never reaches the registry, so
// that an upload goes on in smaller chunks where it stood.
func TestPushForwarded(t *testing.T) {
	s := newSite(t, true, false, true)
	s.start()
	want := bytesOf("forwarded", 3*mebibyte+12345)
	resp, _ := s.send(s.middle(), writer, "POST", uploads+"?digest="+sha(want), bytes.NewReader(want), nil)
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("POST of a whole blob: %s, want 413", resp.Status)
	}
	at, refused := s.session(s.middle()), 0
	for size, done := 2*mebibyte, 0; done < len(want); {
		part := want[done:min(done+size, len(want))]
		resp, body := s.send(s.middle(), writer, "PATCH", at, bytes.NewReader(part), map[string]string{"Content-Range": fmt.Sprintf("%d-%d", done, done+len(part)-1)})
		switch resp.StatusCode {
		case http.StatusRequestEntityTooLarge:
			if refused++; size <= mebibyte {
				t.Fatalf("a chunk of %d bytes is refused", size)
			}
			size /= 2
			resp, _ = s.send(s.middle(), writer, "GET", at, http.NoBody, nil)
			if resp.StatusCode != http.StatusNoContent || resp.Header.Get("Range") != fmt.Sprintf("0-%d", max(done-1, 0)) {
				t.Fatalf("the upload after a chunk that was refused: %s, Range %q", resp.Status, resp.Header.Get("Range"))
			}
		case http.StatusAccepted:
			done += len(part)
		default:
			t.Fatalf("PATCH of %d bytes: %s %s", len(part), resp.Status, body)
		}
	}
	if refused != 1 {
		t.Errorf("%d chunks were refused, want the one of 2 MiB", refused)
	}
	resp, body := s.send(s.middle(), writer, "PUT", at+"?digest="+sha(want), http.NoBody, nil)
	if resp.StatusCode != http.StatusCreated || resp.Header.Get("Location") != "/v2/acme/app/blobs/"+sha(want) {
		t.Errorf("PUT: %s, Location %q %s", resp.Status, resp.Header.Get("Location"), body)
	}
	s.blob(s.middle(), want)
	at = s.session(s.middle())
	if resp, _ := s.send(s.middle(), writer, "DELETE", at, http.NoBody, nil); resp.StatusCode != http.StatusNoContent {
		t.Errorf("an upload is given up: %s", resp.Status)
	}
}

// TestPushComesDown: an image that a client pushes to the top, or to a proxy that forwards there, is at the bottom
// within seconds; removed, it is gone there.
func TestPushComesDown(t *testing.T) {
	chains(t, func(t *testing.T, s *site) {
		s.start()
		at, size := s.top(), 2*mebibyte
		if s.middle().registry == nil {
			at, size = s.middle(), mebibyte/2
		}
		img := image(t, "pushed", size)
		want, err := img.Digest()
		must(t, err)
		must(t, remote.Write(s.ref(at, "acme/app:1"), img, s.as(writer)...))
		must(t, remote.Write(s.ref(at, "acme/app:2"), img, s.as(writer)...))
		began := time.Now()
		s.synced(s.bottom(), 2)
		t.Logf("2 tags and %d KiB were at the bottom after %v", size>>10, time.Since(began).Round(time.Millisecond))
		if got := s.digest(s.bottom(), "acme/app:2"); got != want.String() {
			t.Errorf("at the bottom it is %q, pushed %s", got, want)
		}
		must(t, remote.Delete(s.ref(at, "acme/app:2"), s.as(writer)...))
		s.synced(s.bottom(), 1)
		must(t, remote.Delete(s.ref(at, "acme/app@"+want.String()), s.as(writer)...))
		s.synced(s.bottom(), 0)
		for _, l := range s.layers {
			if resp, _ := s.send(l, reader, "GET", "/v2/acme/app/manifests/"+want.String(), http.NoBody, nil); resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s: the manifest that was removed: %s", l.name, resp.Status)
			}
		}
	})
}

// TestTrap: a repository with twins/ in its name is not served by a proxy with a registry, which takes it for edgeHub's.
// It says so in the status, and keeps nothing else.
func TestTrap(t *testing.T) {
	s := newSite(t, true, true, true)
	s.top().registry.doc["repositories"] = map[string]string{"all": "acme/*"}
	s.top().registry.doc["parent"] = map[string]any{} // pushed to, and nothing else
	s.start()
	push := func(repo string, img v1.Image) {
		ref := s.ref(s.top(), "acme/app:1")
		must(t, remote.Write(ref.Context().Registry.Repo(repo).Tag("1"), img, s.as(writer)...))
	}
	resp, _ := s.send(s.top(), writer, "POST", "/v2/acme/twins/line/blobs/uploads/", http.NoBody, nil)
	if resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("an upload through the proxy: %s, want 500", resp.Status)
	}
	for _, repo := range []string{"acme/first", "acme/twin", "acme/twinset/line", "acme/zulu"} {
		push(repo, image(t, repo, 1000))
	}
	s.synced(s.bottom(), 4)
	s.pushAside("acme/twins/line", bytesOf("manifest", 10))
	push("acme/after", image(t, "after", 1000))
	s.until("what comes after it is at the bottom", func() bool { return s.digest(s.bottom(), "acme/after:1") != "" })
	st := s.middle().registry.until("it names the repository", func(st registry.Status) bool {
		for _, r := range st.Repositories {
			if r.Repository == "acme/twins/line" && len(r.Behind) == 1 && r.Behind[0].Error != "" {
				return true
			}
		}
		return false
	})
	t.Logf("middle: %s, %+v", st.ConnectionState, st.Repositories)
}

// pushAside pushes an artifact to the top registry past its proxy.
func (s *site) pushAside(repo string, content []byte) {
	s.t.Helper()
	send := func(method, path, mediaType string, body []byte) {
		req, err := http.NewRequestWithContext(s.ctx, method, "http://"+s.top().registry.addr+path, bytes.NewReader(body))
		must(s.t, err)
		req.SetBasicAuth(writer, s.secret[writer])
		if mediaType != "" {
			req.Header.Set("Content-Type", mediaType)
		}
		resp, err := http.DefaultClient.Do(req)
		must(s.t, err)
		must(s.t, resp.Body.Close())
		if resp.StatusCode != http.StatusCreated {
			s.t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	send("POST", "/v2/"+repo+"/blobs/uploads/?digest="+sha(content), "", content)
	const kind = "application/vnd.oci.image.manifest.v1+json"
	layer := fmt.Sprintf(`{"mediaType":"application/octet-stream","digest":"%s","size":%d}`, sha(content), len(content))
	send("PUT", "/v2/"+repo+"/manifests/1", kind, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%[2]s]}`, kind, layer))
}
