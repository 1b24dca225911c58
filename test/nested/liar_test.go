package nested

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// lie answers a GET in place of the registry. body is what the registry would send.
type lie func(ctx context.Context, w http.ResponseWriter, body []byte)

// lies are what a parent, or a proxy before it, may do to one piece of content.
var lies = map[string]struct {
	tell lie
	want string // part of the error in the status, for a layer
}{
	"wrong content": {func(_ context.Context, w http.ResponseWriter, body []byte) {
		body[len(body)/2] ^= 1
		answerWith(w, body)
	}, "the parent sends other content for sha256:"},
	"short, and says so": {func(_ context.Context, w http.ResponseWriter, body []byte) { answerWith(w, body[:len(body)/2]) }, "stands at 50960 of 101921 bytes"},
	"short, and says otherwise": {func(_ context.Context, w http.ResponseWriter, body []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:len(body)/2])
	}, "stands at 50960 of 101921 bytes"},
	"long, and says so": {func(_ context.Context, w http.ResponseWriter, body []byte) { answerWith(w, append(body, body...)) }, "sends more than the 101921 bytes"},
	"endless": {func(ctx context.Context, w http.ResponseWriter, body []byte) {
		for ctx.Err() == nil {
			if _, err := w.Write(body); err != nil {
				return
			}
		}
	}, "sends more than the 101921 bytes"},
	"stalled": {func(ctx context.Context, w http.ResponseWriter, body []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		<-ctx.Done()
	}, "stands at 50960 of 101921 bytes"},
	"gone": {func(_ context.Context, w http.ResponseWriter, _ []byte) { w.WriteHeader(http.StatusNotFound) }, "blob unknown"},
	"broken": {func(_ context.Context, w http.ResponseWriter, _ []byte) {
		w.WriteHeader(http.StatusInternalServerError)
	}, "HTTP 500"},
}

func answerWith(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	_, _ = w.Write(body)
}

// liar stands before a registry and lies about one digest.
type liar struct {
	proxy  *httputil.ReverseProxy
	target string

	mu     sync.Mutex
	digest string
	tell   lie // nil is the truth
	told   int
}

func newLiar(t *testing.T, target string) (*liar, string) {
	t.Helper()
	l := &liar{target: target, proxy: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: target})}
	l.proxy.Transport = &http.Transport{DisableKeepAlives: true}
	l.proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	return l, serve(t, l, func() {})
}

func (l *liar) set(digest string, tell lie) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.digest, l.tell = digest, tell
}

func (l *liar) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	tell := l.tell
	if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/"+l.digest) {
		tell = nil
	}
	if tell != nil {
		l.told++
	}
	l.mu.Unlock()
	if tell == nil {
		l.proxy.ServeHTTP(w, r)
		return
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://"+l.target+r.URL.Path, http.NoBody)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	req.Header.Set("Accept", accept)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	for _, k := range []string{"Content-Type", "Docker-Content-Digest"} {
		w.Header().Set(k, resp.Header.Get(k))
	}
	tell(r.Context(), w, body)
}

// TestLies lets a parent lie about a layer and about a manifest. Nothing of the image becomes visible, its neighbours
// come, the status says what is wrong where, and the end of the lies is enough for it to heal.
func TestLies(t *testing.T) {
	for name, l := range lies {
		for _, what := range []string{"layer", "manifest"} {
			t.Run(what+" "+name, func(t *testing.T) {
				t.Parallel()
				want := l.want
				if what == "manifest" {
					want = "" // the parent's client has its own words
				}
				testLie(t, what, l.tell, want)
			})
		}
	}
}

func testLie(t *testing.T, what string, tell lie, want string) {
	cloud := startOlareg(t)
	img := image(t, 100_000, "the layer")
	bad := push(t, cloud, "acme/app:a-bad", img)
	layers, err := img.Layers()
	must(t, err)
	digest, err := layers[0].Digest()
	must(t, err)
	liar, addr := newLiar(t, cloud)
	liar.set(map[string]string{"layer": digest.String(), "manifest": bad}[what], tell)
	good := map[string]string{}
	for i := range 5 { // they come after the bad one
		tag := fmt.Sprint("good", i)
		good[tag] = push(t, cloud, "acme/app:"+tag, image(t, 1000, tag))
	}
	l := newNode(t, "layer5", newLink(t, addr).Addr())
	l.doc["repositories"] = map[string]string{"all": "acme/app"}
	l.doc["serve"] = map[string]any{"pullThrough": false}
	l.doc["transfer"] = map[string]any{"parallel": 1}
	l.options = func(o *module.Options) {
		o.Timeouts, o.Patience = transport.Timeouts{Header: time.Second, Idle: time.Second, Total: 2 * time.Second}, time.Second
	}
	l.start()
	for tag, d := range good {
		l.has("acme/app", tag, d)
	}
	began := time.Now()
	s := l.untilStatus("the tag is reported", func(s registry.Status) bool {
		return behind(s, "acme/app", "a-bad") != "" && s.Sync.SyncState == registry.SyncFailed
	})
	if got := behind(s, "acme/app", "a-bad"); !strings.Contains(got, want) {
		t.Errorf("the status says %q, want %q", got, want)
	}
	t.Logf("after %v: tag: %s; iteration: %s; %s", time.Since(began).Round(time.Millisecond), behind(s, "acme/app", "a-bad"), s.Sync.Error, s.ConnectionState)
	if liar.count() == 0 {
		t.Error("nobody was lied to")
	}
	if a := l.ask(http.MethodGet, "/v2/acme/app/manifests/a-bad"); a.status != http.StatusNotFound {
		t.Errorf("the tag answers %d", a.status)
	}
	if a := l.ask(http.MethodGet, "/v2/acme/app/blobs/"+digest.String()); what == "layer" && a.status != http.StatusNotFound {
		t.Errorf("the layer answers %d", a.status)
	}
	liar.set("", nil)
	began = time.Now()
	l.has("acme/app", "a-bad", bad)
	t.Logf("healed after %v", time.Since(began).Round(time.Millisecond))
	same(t, l.addr, cloud, "acme/app:a-bad")
	l.untilStatus("nothing is left to report", func(s registry.Status) bool {
		return len(s.StatusDetails) == 0 && behind(s, "acme/app", "a-bad") == "" && s.Sync.SyncState == registry.SyncSucceeded
	})
}

// behind is why a tag is behind.
func behind(s registry.Status, repo, tag string) string {
	for _, r := range s.Repositories {
		for _, b := range r.Behind {
			if r.Repository == repo && b.Tag == tag {
				return b.Error
			}
		}
	}
	return ""
}
