package syncer_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
	"github.com/connected-registry/connected-registry/internal/transport"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

const (
	canary = "canary-of-the-credential"
	// mostBytes and mostTime bound what any hostile parent may cost in one iteration.
	mostBytes = 64 << 20
	mostTime  = 20 * time.Second
)

// anyone lets everybody in.
type anyone struct{}

func (anyone) Enter(r *http.Request) (context.Context, error)       { return r.Context(), nil }
func (anyone) Check(context.Context, string, registry.Action) error { return nil }

// ChallengeFor is never asked: everybody is in.
func (anyone) ChallengeFor(http.Header, *http.Request, string, registry.Action) {}

// hostile answers a question in place of the parent; evil is a host that nobody may be led to.
type hostile func(w http.ResponseWriter, r *http.Request, evil string)

// question tells what a request asks, as the tables of the tests name it.
func question(r *http.Request) string {
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, registry.LayerPath):
		return "layer"
	case path == "/v2/":
		return "ping"
	case strings.HasPrefix(path, "/acr/"):
		return "acr"
	case path == "/v2/_catalog":
		return "catalog"
	case strings.HasPrefix(path, "/v2/good/"):
		return "good" // is never answered falsely
	case strings.HasSuffix(path, "/tags/list"):
		return "tags"
	case strings.Contains(path, "/referrers/"):
		return "referrers"
	case strings.Contains(path, "/blobs/"):
		return "blob"
	case r.Method == http.MethodHead:
		return "head"
	}
	return "manifest"
}

func redirect(status int, to func(r *http.Request, evil string) string) hostile {
	return func(w http.ResponseWriter, r *http.Request, evil string) {
		w.Header().Set("Location", to(r, evil))
		w.WriteHeader(status)
	}
}

func toEvil(r *http.Request, evil string) string { return "http://" + evil + r.URL.Path }

// raw writes what no server would.
func raw(text string) hostile {
	return func(w http.ResponseWriter, _ *http.Request, _ string) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, text)
		_ = conn.Close()
	}
}

func answer(status int, header map[string]string, body string) hostile {
	return func(w http.ResponseWriter, _ *http.Request, evil string) {
		for k, v := range header {
			w.Header().Set(k, strings.ReplaceAll(v, "EVIL", evil))
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// faults are put in the place of the answer to each question.
var faults = map[string]hostile{
	"301 to another host":        redirect(301, toEvil),
	"302 to another host":        redirect(302, toEvil),
	"303 to another host":        redirect(303, toEvil),
	"307 to another host":        redirect(307, toEvil),
	"308 to another host":        redirect(308, toEvil),
	"redirect with a user name":  redirect(307, func(r *http.Request, evil string) string { return "http://child:" + canary + "@" + evil + "/" }),
	"redirect to the metadata":   redirect(307, func(*http.Request, string) string { return "http://169.254.169.254/latest/meta-data" }),
	"redirect to a file":         redirect(302, func(*http.Request, string) string { return "file:///etc/passwd" }),
	"redirect to itself":         redirect(307, func(r *http.Request, _ string) string { return r.URL.Path }),
	"redirects without end":      redirect(307, func(r *http.Request, _ string) string { return r.URL.Path + "?" + r.URL.RawQuery + "x" }),
	"realm of another host":      answer(401, map[string]string{"Www-Authenticate": `Bearer realm="http://EVIL/token",service="x"`}, ""),
	"refused for ever":           answer(401, map[string]string{"Www-Authenticate": `Basic realm="x"`}, ""),
	"forbidden":                  answer(403, nil, `{"errors":[{"code":"DENIED"}]}`),
	"429 for a year":             answer(429, map[string]string{"Retry-After": "31536000"}, ""),
	"503 with nonsense":          answer(503, map[string]string{"Retry-After": "-1e99"}, ""),
	"500 with a page":            answer(500, nil, strings.Repeat("<html>", 100_000)),
	"404 with a page":            answer(404, map[string]string{"Content-Type": "text/html"}, "<html>"),
	"200 with a page":            answer(200, map[string]string{"Content-Type": "text/html"}, "<html>welcome to the hotel</html>"),
	"200 with nothing":           answer(200, nil, ""),
	"204":                        answer(204, nil, ""),
	"deep JSON":                  answer(200, map[string]string{"Content-Type": registry.MediaTypeImageIndex}, strings.Repeat("[", 1<<20)),
	"Links to another host":      answer(200, map[string]string{"Link": `<http://EVIL/v2/app/tags/list?last=x>; rel="next"`, "Content-Type": "application/json"}, `{"name":"app","tags":["v1"],"repositories":["app"]}`),
	"closed without an answer":   raw(""),
	"no HTTP":                    raw("SSH-2.0-OpenSSH_9.9\r\n"),
	"two lengths":                raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nhello"),
	"a length below zero":        raw("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"),
	"a length beyond all":        raw("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\nhello"),
	"bad chunks":                 raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx"),
	"a header without end":       raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20)),
	"half a header":              raw("HTTP/1.1 200 OK\r\nContent-Le"),
	"a thousand digests":         raw("HTTP/1.1 200 OK\r\n" + strings.Repeat("Docker-Content-Digest: sha256:"+strings.Repeat("0", 64)+"\r\n", 100) + "Content-Length: 2\r\n\r\n{}"),
	"informed without end":       raw(strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 2000)),
	"compressed a thousandfold":  bomb,
	"a body without end":         endless,
	"one byte at a time":         drip,
	"silence":                    silence,
	"the digest of another body": answer(200, map[string]string{"Content-Type": registry.MediaTypeImageManifest, "Docker-Content-Digest": "sha256:" + strings.Repeat("0", 64)}, `{"schemaVersion":2}`),
}

var bombBody = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	zeros := make([]byte, 1<<20)
	for range 64 {
		_, _ = z.Write(zeros)
	}
	_ = z.Close()
	return b.Bytes()
})

func bomb(w http.ResponseWriter, _ *http.Request, _ string) {
	w.Header().Set("Content-Encoding", "gzip")
	w.Header().Set("Content-Type", registry.MediaTypeImageManifest)
	_, _ = w.Write(bombBody())
}

func endless(w http.ResponseWriter, r *http.Request, _ string) {
	block := bytes.Repeat([]byte(" "), 64<<10)
	if r.Method == http.MethodHead {
		return // it has no body
	}
	for r.Context().Err() == nil {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

func drip(w http.ResponseWriter, r *http.Request, _ string) {
	if r.Method == http.MethodHead {
		return // it has no body
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := w.Write([]byte(" ")); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

func silence(_ http.ResponseWriter, r *http.Request, _ string) { <-r.Context().Done() }

// asked are the questions of an iteration that are answered falsely, and what the fault concerns: with one piece of an
// image broken the neighbours come all the same.
var asked = map[string]struct{ neighbours bool }{
	"layer": {}, "ping": {}, "acr": {}, "catalog": {}, "tags": {}, "head": {neighbours: true}, "manifest": {neighbours: true}, "blob": {neighbours: true}, "referrers": {neighbours: true},
}

// ground is a parent over http that can be hostile, a host that nobody may be led to, and a registry below.
type ground struct {
	t      *testing.T
	evil   *listening
	log    *lockedBuffer
	parent *upstream.Parent
	r      *replica
	image  registrytest.Image
	good   registrytest.Image

	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request) bool // false: the truth
}

// listening is a host that notes every byte that it is sent.
type listening struct {
	net.Listener
	mu    sync.Mutex
	heard bytes.Buffer
	conns int
}

func newListening(t *testing.T) *listening {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &listening{Listener: ln}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.mu.Lock()
			l.conns++
			l.mu.Unlock()
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				n, _ := c.Read(buf)
				l.mu.Lock()
				l.heard.Write(buf[:n])
				l.mu.Unlock()
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}()
		}
	}()
	return l
}

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newGround(t *testing.T) *ground {
	t.Helper()
	g := &ground{t: t, evil: newListening(t), log: &lockedBuffer{}, image: registrytest.NewImage(1, 100_000), good: registrytest.NewImage(2, 1000)}
	memory := registrytest.NewMemory()
	for repo, img := range map[string]registrytest.Image{"app": g.image, "good": g.good} {
		if err := registrytest.Push(t.Context(), memory, repo, "v1", img); err != nil {
			t.Fatal(err)
		}
	}
	truth := distribution.New(memory, anyone{}, distribution.Options{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		lie := g.answer
		g.mu.Unlock()
		if lie == nil || !lie(w, r) {
			truth.ServeHTTP(w, r)
		}
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	log := slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	g.parent, err = upstream.New(upstream.Options{
		Endpoint: strings.TrimPrefix(server.URL, "http://"), Protocol: "http", Username: "child", Password: registry.Secret(canary), Logger: log,
		Transport: transport.ClientOptions{Timeouts: transport.Timeouts{Header: time.Second, Idle: 500 * time.Millisecond, Total: 2 * time.Second}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.parent.Close)
	set := settings(t, nil, "app", "g*")
	set.Parent, set.Schedule = g.parent, every(t, "0 3 1 1 *")
	g.r, _ = start(t, t.TempDir(), set, syncer.Options{Patience: 100 * time.Millisecond, Logger: log}, (*syncer.Syncer).Run)
	return g
}

// lie answers the question falsely from now on; nil tells the truth.
func (g *ground) lie(what string, h hostile) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.answer = nil; h != nil {
		g.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if question(r) != what {
				return false
			}
			h(w, r, g.evil.Addr().String())
			return true
		}
	}
}

// endure runs an iteration against the lie and checks what must hold under any; then the truth heals.
func (g *ground) endure(neighbours bool) {
	g.t.Helper()
	began, before := time.Now(), g.parent.Traffic()
	ctx, cancel := context.WithTimeout(g.t.Context(), 2*mostTime)
	err := g.r.Sync(ctx)
	cancel()
	after := g.parent.Traffic()
	if took := time.Since(began); took > mostTime || after.BytesReceived-before.BytesReceived > mostBytes || after.Requests-before.Requests > 200 {
		g.t.Errorf("it cost %v, %d bytes and %d requests", took, after.BytesReceived-before.BytesReceived, after.Requests-before.Requests)
	}
	if m, merr := g.r.store.GetManifest(g.t.Context(), "app", registry.TagReference("v1")); merr == nil && m.Digest != g.image.Digest {
		g.t.Errorf("app:v1 stands at %s: %s", m.Digest, m.Bytes)
	} else if merr == nil {
		mustHave(g.t, g.r.store, "app", "v1", g.image) // visible is complete
	}
	if neighbours {
		mustHave(g.t, g.r.store, "good", "v1", g.good)
	}
	g.evil.mu.Lock()
	if g.evil.conns > 0 {
		g.t.Errorf("the other host was reached %d times and heard %q", g.evil.conns, g.evil.heard.String())
	}
	g.evil.mu.Unlock()
	text := g.log.String() + fmt.Sprint(err)
	var st registry.Status
	g.r.Describe(&st)
	shown, _ := json.Marshal(st)
	if text += string(shown); strings.Contains(text, canary) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("child:"+canary))) {
		g.t.Error("the credential is in the log, an error or the status")
	}
	g.lie("", nil)
	for range 3 { // a token that was refused is not asked for again at once
		if err = g.r.Sync(g.t.Context()); err == nil {
			break
		}
	}
	if err != nil {
		g.t.Fatalf("with the truth: %v", err)
	}
	mustHave(g.t, g.r.store, "app", "v1", g.image)
	mustHave(g.t, g.r.store, "good", "v1", g.good)
}

// TestHostileAnswers puts every fault in the place of the answer to every question; without CHAOS=long, those that bring
// content have half of them and the others an eighth.
func TestHostileAnswers(t *testing.T) {
	for what, of := range asked {
		for name, fault := range faults {
			hash := fnv.New32()
			_, _ = io.WriteString(hash, what+name)
			every := uint32(8)
			if what == "blob" || what == "manifest" {
				every = 2
			}
			if os.Getenv("CHAOS") != "long" && hash.Sum32()%every != 0 {
				continue
			}
			t.Run(what+"/"+name, func(t *testing.T) {
				t.Parallel()
				g := newGround(t)
				g.lie(what, fault)
				g.endure(of.neighbours)
			})
		}
	}
}

// document is a manifest of a hostile parent, under the digest that it has.
func document(mediaType string, v any) registry.Manifest {
	body, _ := json.Marshal(v)
	return registry.Manifest{Bytes: body, Descriptor: registry.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}}
}

// serves makes a parent that answers for app:v1 with the first of the manifests, and for every one by its digest;
// referrers, where there are any, are the answer for every subject.
func serves(referrers []registry.Descriptor, list ...registry.Manifest) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		what := question(r)
		if what == "referrers" && referrers != nil {
			w.Header().Set("Content-Type", registry.MediaTypeImageIndex)
			_ = json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 2, "mediaType": registry.MediaTypeImageIndex, "manifests": referrers})
			return true
		}
		if (what != "head" && what != "manifest") || !strings.HasPrefix(r.URL.Path, "/v2/app/") {
			return false
		}
		for i, m := range list {
			if strings.HasSuffix(r.URL.Path, "/"+m.Digest.String()) || i == 0 && strings.HasSuffix(r.URL.Path, "/v1") {
				w.Header().Set("Content-Type", m.MediaType)
				w.Header().Set("Docker-Content-Digest", m.Digest.String())
				w.Header().Set("Content-Length", fmt.Sprint(len(m.Bytes)))
				_, _ = w.Write(m.Bytes)
				return true
			}
		}
		return false
	}
}

func indexOf(children ...registry.Descriptor) registry.Manifest {
	return document(registry.MediaTypeImageIndex, map[string]any{"schemaVersion": 2, "mediaType": registry.MediaTypeImageIndex, "manifests": children})
}

func imageOf(layers ...registry.Descriptor) registry.Manifest {
	return document(registry.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2, "mediaType": registry.MediaTypeImageManifest, "config": registrytest.NewImage(1, 100_000).Blobs[0].Descriptor, "layers": layers,
	})
}

// TestHostileContent gives manifests that are what their digests say, and that nobody should follow.
func TestHostileContent(t *testing.T) {
	img := registrytest.NewImage(1, 100_000)
	layer := img.Blobs[1].Descriptor
	resized := func(n int64) registry.Descriptor { d := layer; d.Size = n; return d }
	unknown := func(i int) registry.Descriptor {
		return registry.Descriptor{MediaType: layer.MediaType, Digest: registry.Digest(fmt.Sprintf("sha256:%064x", i)), Size: 10}
	}
	many := func(n int) (list []registry.Descriptor) {
		for i := range n {
			list = append(list, unknown(i))
		}
		return list
	}
	deep := []registry.Manifest{indexOf(img.Descriptor)}
	for range 6 {
		deep = append([]registry.Manifest{indexOf(deep[0].Descriptor)}, deep...)
	}
	var fan []registry.Descriptor
	served := []registry.Manifest{img.Manifest}
	for i := range 30 { // each refers to the image, and the parent says of every one that all others refer to it
		m := document(registry.MediaTypeImageManifest, map[string]any{
			"schemaVersion": 2, "mediaType": registry.MediaTypeImageManifest, "config": img.Blobs[0].Descriptor, "layers": []registry.Descriptor{},
			"subject": img.Descriptor, "annotations": map[string]string{"n": fmt.Sprint(i)},
		})
		fan, served = append(fan, m.Descriptor), append(served, m)
	}
	both := document(registry.MediaTypeImageManifest, map[string]any{"schemaVersion": 2, "config": layer, "layers": many(1), "manifests": many(1)})
	foreign := layer
	foreign.Digest, foreign.MediaType = unknown(7).Digest, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	for name, tc := range map[string]struct {
		lie   func(w http.ResponseWriter, r *http.Request) bool
		comes bool // it is unusual and nothing more
	}{
		"an index in an index in an index":  {lie: serves(nil, deep...)},
		"an index as wide as it can be":     {lie: serves(nil, indexOf(many(20_000)...))},
		"an image of ten thousand layers":   {lie: serves(nil, imageOf(many(10_000)...))},
		"a layer of eight exbibytes":        {lie: serves(nil, imageOf(resized(1<<63-1)))},
		"a layer of a tebibyte":             {lie: serves(nil, imageOf(resized(1<<40)))},
		"a layer of less than nothing":      {lie: serves(nil, imageOf(resized(-1)))},
		"a layer that is larger than it is": {lie: serves(nil, imageOf(resized(200_000)))},
		"a layer that is smaller":           {lie: serves(nil, imageOf(resized(10)))},
		"a digest that is a path":           {lie: serves(nil, imageOf(registry.Descriptor{MediaType: layer.MediaType, Digest: "sha256:../../../etc/passwd", Size: 1}))},
		"image and index at once":           {lie: serves(nil, both)},
		"an index of what is not there":     {lie: serves(nil, indexOf(unknown(1)))},
		"an index of a blob":                {lie: serves(nil, indexOf(layer))},
		"referrers of referrers of all":     {lie: serves(fan, served...), comes: true},
		"ten thousand referrers":            {lie: serves(many(10_000), img.Manifest)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGround(t)
			g.mu.Lock()
			g.answer = tc.lie
			g.mu.Unlock()
			if tc.comes {
				if err := g.r.Sync(t.Context()); err != nil {
					t.Errorf("it is unusual, and that is all: %v", err)
				}
				if n := g.parent.Traffic().Requests; n > 200 {
					t.Errorf("%d requests", n)
				}
				return
			}
			g.endureContent()
		})
	}
}

// endureContent is endure for content that no iteration takes.
func (g *ground) endureContent() {
	g.t.Helper()
	if err := g.r.Sync(g.t.Context()); err == nil {
		g.t.Error("it was taken")
	}
	g.endure(true) // an iteration that began before the lie may have brought the truth, and nothing else
}
