//go:build interop

package apiproxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
)

// image is one of linux/amd64 with a layer of so many bytes.
func image(t *testing.T, name string, size int) v1.Image {
	t.Helper()
	l, err := cloud.Layer(name, size)
	must(t, err)
	img, err := cloud.Image(l)
	must(t, err)
	return img
}

// send is one request by who signs in with a token; an empty token is anonymous.
func (s *site) send(l *stratum, token, method, path string, body io.Reader, header map[string]string) (*http.Response, []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.ctx, method, "https://"+l.proxy.Addr()+path, body)
	must(s.t, err)
	if token != "" {
		req.SetBasicAuth(token, s.secret[token])
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	client := newClient(s.root, nil)
	resp, err := client.Do(req)
	must(s.t, err)
	answer, err := io.ReadAll(resp.Body)
	must(s.t, err)
	must(s.t, resp.Body.Close())
	return resp, answer
}

// TestPull syncs to the bottom and uses there, through its proxy, everything that reads.
func TestPull(t *testing.T) {
	chains(t, func(t *testing.T, s *site) {
		app := image(t, "app", 3<<20)
		must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/app:1", app))
		for _, tag := range []string{"2", "3"} {
			must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/app:"+tag, image(t, tag, 1000)))
		}
		must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/tools/probe:1", image(t, "probe", 1000)))
		signature, err := cloud.Artifact(app, "application/vnd.example.signature", "signed")
		must(t, err)
		subject, err := app.Digest()
		must(t, err)
		signed, err := signature.Digest()
		must(t, err)
		must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/app@"+signed.String(), signature))
		s.start()
		s.synced(s.bottom(), 4)

		got, err := remote.Image(s.ref(s.bottom(), "acme/app:1"), s.as(reader)...)
		must(t, err)
		must(t, validate.Image(got))
		if d, err := got.Digest(); err != nil || d != subject {
			t.Errorf("pulled %v, %v, pushed %v", d, err, subject)
		}
		tags, err := remote.List(s.ref(s.bottom(), "acme/app:1").Context(), append(s.as(reader), remote.WithPageSize(2))...)
		if err != nil || !slices.Equal(tags, []string{"1", "2", "3"}) {
			t.Errorf("tags %q, %v", tags, err)
		}
		host, err := name.NewRegistry(s.bottom().proxy.Addr())
		must(t, err)
		repos, err := remote.Catalog(s.ctx, host, append(s.as(reader), remote.WithPageSize(1))...)
		if err != nil || !slices.Equal(repos, []string{"acme/app", "acme/tools/probe"}) {
			t.Errorf("catalog %q, %v", repos, err)
		}
		index, err := remote.Referrers(s.ref(s.bottom(), "acme/app@"+subject.String()).(name.Digest), s.as(reader)...)
		must(t, err)
		m, err := index.IndexManifest()
		if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest != signed {
			t.Errorf("referrers %+v, %v", m, err)
		}
		s.ranges(s.bottom(), app)
		s.links(s.bottom())
	})
}

// ranges reads parts of a layer.
func (s *site) ranges(l *stratum, img v1.Image) {
	s.t.Helper()
	layers, err := img.Layers()
	must(s.t, err)
	digest, err := layers[0].Digest()
	must(s.t, err)
	file, err := layers[0].Compressed()
	must(s.t, err)
	whole, err := io.ReadAll(file)
	must(s.t, err)
	size := len(whole)
	for text, want := range map[string][]byte{
		"bytes=0-0":                            whole[:1],
		"bytes=1000000-1999999":                whole[1_000_000:2_000_000],
		fmt.Sprintf("bytes=%d-", size-10):      whole[size-10:],
		"bytes=-7":                             whole[size-7:],
		fmt.Sprintf("bytes=%d-%d", 5, 2*size):  whole[5:],
		fmt.Sprintf("bytes=%d-", size):         nil,
		fmt.Sprintf("bytes=%d-%d", size, size): nil,
	} {
		resp, body := s.send(l, reader, "GET", "/v2/acme/app/blobs/"+digest.String(), http.NoBody, map[string]string{"Range": text})
		if want == nil {
			if resp.StatusCode != http.StatusRequestedRangeNotSatisfiable || resp.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) {
				s.t.Errorf("%s: %s, Content-Range %q", text, resp.Status, resp.Header.Get("Content-Range"))
			}
			continue
		}
		if resp.StatusCode != http.StatusPartialContent || !bytes.Equal(body, want) || !strings.HasSuffix(resp.Header.Get("Content-Range"), fmt.Sprintf("/%d", size)) {
			s.t.Errorf("%s: %s, %d bytes, Content-Range %q", text, resp.Status, len(body), resp.Header.Get("Content-Range"))
		}
	}
}

// links: pages go on at a relative address, as everything has to that is said to a client of an unknown proxy.
func (s *site) links(l *stratum) {
	s.t.Helper()
	for _, path := range []string{"/v2/_catalog?n=1", "/v2/acme/app/tags/list?n=1"} {
		resp, _ := s.send(l, reader, "GET", path, http.NoBody, nil)
		if link := resp.Header.Get("Link"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(link, "</v2/") {
			s.t.Errorf("%s: %s, Link %q", path, resp.Status, link)
		}
	}
}

// TestPullThrough: what is in scope and not here yet comes at once, through all hops, once for all who ask. The layers
// have a window that is not open.
func TestPullThrough(t *testing.T) {
	chains(t, func(t *testing.T, s *site) {
		for _, l := range s.layers {
			if l.registry != nil {
				parent := map[string]any{"syncProperties": map[string]string{"schedule": "0 0 29 2 *", "syncWindow": "PT1H"}}
				if l == s.top() {
					parent["gatewayEndpoint"], parent["protocol"] = s.cloud.Addr, "http"
				}
				l.registry.doc["parent"] = parent
			}
		}
		s.start()
		for _, l := range s.layers {
			if l.registry != nil {
				l.registry.until("it has looked for what it missed", func(st registry.Status) bool { return !st.Sync.NextSyncTime.IsZero() })
			}
		}
		img := image(t, "asked", 4<<20)
		want, err := img.Digest()
		must(t, err)
		must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/asked:1", img))
		before := len(s.log(s.top()))
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() {
				got, err := remote.Image(s.ref(s.bottom(), "acme/asked:1"), s.as(reader)...)
				if err == nil {
					err = validate.Image(got)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if d, err := got.Digest(); err != nil || d != want {
					t.Errorf("pulled %v, %v, want %v", d, err, want)
				}
			})
		}
		clients.Wait()
		var out int64
		for _, a := range s.log(s.top())[before:] {
			out += a.Out
		}
		if out > 5<<20 {
			t.Errorf("%d bytes came down for an image of 4 MiB", out)
		}
	})
}

// TestTokens: who may do what, by tokens of the registry behind the proxies; the challenge is Basic at every device.
func TestTokens(t *testing.T) {
	chains(t, func(t *testing.T, s *site) {
		must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/app:1", image(t, "app", 1000)))
		s.start()
		s.synced(s.bottom(), 1)
		for _, l := range s.layers {
			for token, status := range map[string]int{"": 401, "stranger": 401, reader: 200, writer: 200} {
				for _, path := range []string{"/v2/", "/v2/acme/app/manifests/1", "/v2/acme/app/tags/list"} {
					resp, _ := s.send(l, token, "GET", path, http.NoBody, nil)
					if challenge := resp.Header.Get("Www-Authenticate"); resp.StatusCode != status || (status == 401) != strings.HasPrefix(challenge, "Basic ") {
						t.Errorf("%s: %q GET %s: %s, challenge %q", l.name, token, path, resp.Status, challenge)
					}
				}
			}
			if resp, body := s.send(l, reader, "POST", "/v2/acme/app/blobs/uploads/", http.NoBody, nil); resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusMethodNotAllowed {
				t.Errorf("%s: a reader starts an upload: %s %s", l.name, resp.Status, body)
			}
		}
		for _, l := range s.layers {
			s.realm(l)
		}
		// The layer's own token reaches the registry above, whichever device that is on.
		for _, l := range s.layers[:2] {
			users := map[string]int{}
			for _, a := range s.log(l) {
				if strings.HasPrefix(a.Agent, "connected-registry") {
					users[a.User]++
				}
			}
			child := "layer3"
			if l == s.top() && s.middle().registry != nil {
				child = "layer4"
			}
			if users[child] == 0 || len(users) != 1 {
				t.Errorf("%s was asked by %v, want %s alone", l.name, users, child)
			}
		}
		// A token that is taken away is refused; given back, it works without a restart.
		above := s.top().registry
		if s.middle().registry != nil {
			above = s.middle().registry
		}
		answers := func(status int) {
			above.configure(nil)
			s.until("the token is changed", func() bool {
				resp, _ := s.send(s.middle(), "layer3", "GET", "/v2/", http.NoBody, nil)
				return resp.StatusCode == status
			})
		}
		tokens := above.doc["clientTokens"].(map[string]any)
		mine := tokens["layer3"].(map[string]string)
		mine["status"] = "disabled"
		answers(http.StatusUnauthorized)
		s.changeAbove("acme/app:2")
		st := s.bottom().registry.until("it says that the token is refused", func(st registry.Status) bool {
			return st.ConnectionState == registry.Unhealthy || st.Sync.SyncState == registry.SyncFailed
		})
		text, err := json.Marshal(st)
		must(t, err)
		if !strings.Contains(string(text), `refuses the credential of \"layer3\"`) || strings.Contains(string(text), s.secret["layer3"]) {
			t.Errorf("status %s", text)
		}
		mine["status"] = "enabled"
		answers(http.StatusOK)
		s.synced(s.bottom(), 2)
	})
}

// realm is the way of Azure's tools: where a registry is behind the proxy, its challenge names a token endpoint at the
// address that the client came by, and the token from there works; a device that forwards has no such paths at all, so
// that it names none that could not be reached.
func (s *site) realm(l *stratum) {
	s.t.Helper()
	resp, _ := s.send(l, "", "GET", "/acr/v1/_catalog", http.NoBody, nil)
	challenge := resp.Header.Get("Www-Authenticate")
	if l.registry == nil {
		if resp.StatusCode != http.StatusNotFound || challenge != "" {
			s.t.Errorf("%s forwards: %s, challenge %q", l.name, resp.Status, challenge)
		}
		return
	}
	at, ok := strings.CutPrefix(challenge, `Bearer realm="https://`+l.proxy.Addr())
	at, _, _ = strings.Cut(at, `"`)
	if resp.StatusCode != http.StatusUnauthorized || !ok {
		s.t.Errorf("%s: %s, challenge %q, want one at %s", l.name, resp.Status, challenge, l.proxy.Addr())
		return
	}
	resp, body := s.send(l, reader, "GET", at+"?service="+l.proxy.Addr()+"&scope=registry:catalog:*", http.NoBody, nil)
	var token struct {
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &token); err != nil || token.Access == "" {
		s.t.Errorf("%s: %s at the realm: %s", l.name, resp.Status, body)
	}
	if resp, body = s.send(l, "", "GET", "/acr/v1/_catalog", http.NoBody, map[string]string{"Authorization": "Bearer " + token.Access}); resp.StatusCode != http.StatusOK {
		s.t.Errorf("%s: %s with the token from the realm: %s", l.name, resp.Status, body)
	}
}

// changeAbove pushes a small image to the top registry and returns its digest.
func (s *site) changeAbove(text string) string {
	s.t.Helper()
	img := image(s.t, text+time.Now().String(), 1000)
	must(s.t, remote.Write(s.ref(s.top(), text), img, s.as(writer)...))
	d, err := img.Digest()
	must(s.t, err)
	return d.String()
}

// TestLongPoll: what happens at the top is known at the bottom within seconds, with every hop of nginx in between.
func TestLongPoll(t *testing.T) {
	chains(t, func(t *testing.T, s *site) {
		s.start()
		s.synced(s.bottom(), 0)
		var times []time.Duration
		for i := range 5 {
			ref := fmt.Sprintf("acme/app:%d", i%2)
			want := s.changeAbove(ref)
			began := time.Now()
			for s.digest(s.bottom(), ref) != want {
				if time.Since(began) > 10*time.Second {
					t.Fatalf("round %d: not at the bottom after %v", i, time.Since(began))
				}
				must(t, s.pause(10*time.Millisecond))
			}
			times = append(times, time.Since(began).Round(time.Millisecond))
		}
		began := time.Now()
		must(t, remote.Delete(s.ref(s.top(), "acme/app:0"), s.as(writer)...))
		for slices.Contains(s.tags(s.bottom(), "acme/app"), "0") {
			if time.Since(began) > 10*time.Second {
				t.Fatal("a tag that was removed is at the bottom after 10 s")
			}
			must(t, s.pause(10*time.Millisecond))
		}
		t.Logf("tags that moved were at the bottom after %v, one that went after %v", times, time.Since(began).Round(time.Millisecond))
	})
}

func (s *site) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *site) tags(l *stratum, repo string) []string {
	s.t.Helper()
	tags, err := remote.List(s.ref(l, repo+":x").Context(), s.as(reader)...)
	if err != nil {
		return nil
	}
	return tags
}

// polls splits what a proxy saw into the questions for changes and the reports of a child.
func polls(log []Access) (asked, told []Access) {
	for _, a := range log {
		if a.Method == http.MethodPut && a.URI == registry.LayerPath+"status" {
			told = append(told, a)
			continue
		}
		asked = append(asked, a)
	}
	return asked, told
}

// TestUnchanged measures what it costs to stay in step with a parent where nothing happens: one request a minute. A child
// tells of itself when there is news of it: once, after it has caught up.
func TestUnchanged(t *testing.T) {
	t.Parallel()
	chains(t, func(t *testing.T, s *site) {
		t.Parallel()
		for i := range 20 {
			must(t, cloud.Push(s.ctx, s.cloud.Addr, fmt.Sprintf("acme/app:%d", i), image(t, fmt.Sprint(i), 1000)))
		}
		s.start()
		s.synced(s.bottom(), 20)
		before := len(s.log(s.middle()))
		s.until("a poll has ended", func() bool {
			asked, _ := polls(s.log(s.middle())[before:])
			return len(asked) > 0
		})
		asked, told := polls(s.log(s.middle())[before:])
		for _, a := range told {
			t.Logf("%s %s: %d, %d bytes up, %d down", a.Method, a.URI, a.Status, a.In, a.Out)
		}
		if len(told) > 1 || len(told) == 1 && (told[0].Status != http.StatusNoContent || told[0].In+told[0].Out > 1600) {
			t.Errorf("during an unchanged poll the child told of itself: %+v", told)
		}
		for _, a := range asked {
			t.Logf("%s %s: %d after %.0f s, %d bytes up, %d down", a.Method, a.URI, a.Status, a.Seconds, a.In, a.Out)
			if a.Status != http.StatusNotModified || a.Seconds < 45 || a.In+a.Out > 1600 {
				t.Errorf("an unchanged poll: %+v", a)
			}
		}
		// Asked for by hand, it is the same question, answered at once.
		before = len(s.log(s.middle()))
		s.bottom().registry.sync()
		s.until("the poll that was interrupted and the question are in the log", func() bool {
			asked, _ = polls(s.log(s.middle())[before:])
			return len(asked) >= 2
		})
		for _, a := range asked {
			t.Logf("by hand: %s %s: %d after %.2f s, %d bytes up, %d down", a.Method, a.URI, a.Status, a.Seconds, a.In, a.Out)
			if a.Status != 499 && (a.Status != http.StatusNotModified || a.In+a.Out > 1600) {
				t.Errorf("an unchanged question: %+v", a)
			}
		}
	})
}

// TestManyRules: however many repositories a layer wants, its question is one that nginx takes (8 KiB of a line).
func TestManyRules(t *testing.T) {
	s := newSite(t, true, false, true)
	s.start()
	s.synced(s.bottom(), 0)
	tags := 0
	for _, n := range []int{160, 400} {
		groups := map[string]string{}
		for i := range n {
			groups[fmt.Sprintf("g%d", i/50)] += fmt.Sprintf("acme/line-%03d/module ", i)
		}
		s.bottom().registry.configure(map[string]any{"repositories": groups})
		repo := fmt.Sprintf("acme/line-%03d/module", n-1)
		must(t, remote.Write(s.ref(s.top(), repo+":1"), image(t, repo, 1000), s.as(writer)...))
		s.until("it is at the bottom", func() bool { return s.digest(s.bottom(), repo+":1") != "" })
		tags++
	}
	s.synced(s.bottom(), tags)
	longest := 0
	for _, a := range s.log(s.top()) {
		longest = max(longest, len(a.URI))
	}
	if t.Logf("the longest question has %d bytes", longest); longest < 5000 {
		t.Error("no question was near the limit: the test does not test it")
	}
}

func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	for !ok() {
		if s.pause(20*time.Millisecond) != nil {
			s.t.Fatalf("waiting until %s took too long", what)
		}
	}
}

// sha is the digest of bytes.
func sha(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha256:" + hex.EncodeToString(sum[:])
}
