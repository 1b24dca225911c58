package nested

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// stands is where a tag of acme/app points at a registry; empty for nowhere.
func stands(t *testing.T, addr, tag string) string {
	t.Helper()
	return ask(t, addr, http.MethodHead, "/v2/acme/app/manifests/"+tag, nil).header.Get("Docker-Content-Digest")
}

// watch looks at a tag all the time, and fails when it goes back to where it was before.
func watch(t *testing.T, addr, tag string, versions []string, done <-chan struct{}) {
	newest := -1
	for {
		if i := slices.Index(versions, stands(t, addr, tag)); i < newest {
			t.Errorf("%s at %s went from version %d back to version %d", tag, addr, newest, i)
			return
		} else if i > newest {
			newest = i
		}
		select {
		case <-done:
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// TestPushesDuringSync pushes to one repository in the cloud and at the bottom at the same time, while each layer syncs it
// in both directions. A tag that one side alone moves goes through its versions in order wherever it is looked at. One that
// both sides move ends the same everywhere, and stays.
func TestPushesDuringSync(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newFloor(t, k, 2, "acme/app")
		const versions = 8
		sides := map[string]string{"cloud": s.cloud, "floor": s.bottom().addr}
		push(t, s.cloud, "acme/app:cloud", image(t, 3000, "cloud", "0"))
		s.startFloor()
		s.bottom().untilStatus("it is in sync", func(st registry.Status) bool { return st.Sync.SyncState == registry.SyncSucceeded })
		s.cut(linkproxy.Plan{Latency: 20 * time.Millisecond}) // so that words cross
		digests := map[string][]string{}
		for side := range sides {
			for i := range versions {
				raw, err := image(t, 3000, side, fmt.Sprint(i)).RawManifest()
				must(t, err)
				digests[side] = append(digests[side], sum(raw).String())
			}
		}
		done := make(chan struct{})
		var watchers, pushers sync.WaitGroup
		watchers.Go(func() {
			for { // the cloud tells nobody that it changed: it is asked all the time
				_ = module.Control(t.Context(), s.layers[0].dir+"/data", http.MethodPost, "/methods/sync", nil, &struct{}{}) // it may be interrupted
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
		for side := range sides {
			for _, addr := range []string{s.cloud, s.layers[0].addr, s.bottom().addr} {
				watchers.Go(func() { watch(t, addr, side, digests[side], done) })
			}
		}
		for side, addr := range sides {
			pushers.Go(func() {
				for i := range versions {
					img := image(t, 3000, side, fmt.Sprint(i))
					push(t, addr, "acme/app:"+side, img)
					push(t, addr, "acme/app:both", img)
				}
			})
		}
		pushers.Wait()
		s.drained()
		agree := func(tag, want string) func() bool {
			return func() bool {
				d := stands(t, s.cloud, tag)
				return d != "" && (want == "" || d == want) && d == stands(t, s.layers[0].addr, tag) && d == stands(t, s.bottom().addr, tag)
			}
		}
		for side := range sides {
			s.bottom().until(side+" is the last version everywhere", agree(side, digests[side][versions-1]))
		}
		s.bottom().until("both is the same everywhere", agree("both", ""))
		s.drained()
		last := stands(t, s.cloud, "both")
		for _, l := range s.layers { // nothing that is still on its way moves it
			_, err := l.sync()
			must(t, err)
			if got := stands(t, l.addr, "both"); got != last {
				t.Errorf("both moved from %s to %s at %s", last, got, l.name)
			}
		}
		if !agree("both", last)() {
			t.Error("both moved again")
		}
		close(done)
		watchers.Wait()
	})
}

// TestCloudForgets has a cloud answer 201 for a tag and lose it with its power, with all that was pushed for it: the top
// layer asks once more, and sends it again.
func TestCloudForgets(t *testing.T) {
	before, after := startOlareg(t), startOlareg(t)
	push(t, before, "acme/app:v", image(t, 3000, "base"))
	push(t, after, "acme/app:v", image(t, 3000, "base"))
	var now atomic.Pointer[httputil.ReverseProxy]
	to := func(addr string) *httputil.ReverseProxy {
		return httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	}
	now.Store(to(before))
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := now.Load()
		if p.ServeHTTP(w, r); r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/manifests/v") {
			now.CompareAndSwap(p, to(after))
		}
	}), func() {})
	s := newSite(t, addr, 1, "acme/app")
	l := s.bottom()
	l.doc["mode"] = "ReadWrite"
	l.options = func(o *module.Options) { o.ConfirmAfter = 200 * time.Millisecond }
	s.startFloor()
	base := stands(t, after, "v")
	l.has("acme/app", "v", base)
	img := image(t, 3000, "base", "ours")
	digest := push(t, l.addr, "acme/app:v", img)
	l.until("the cloud has it again", func() bool { return stands(t, after, "v") == digest })
	if stands(t, before, "v") != digest {
		t.Error("it was not there before the power went")
	}
	s.drained()
	same(t, after, l.addr, "acme/app:v")
	got, err := cloud.Pull(t.Context(), after, "acme/app:v")
	if err != nil || got.Digest.String() != digest {
		t.Errorf("%+v, %v", got, err)
	}
	if st := l.status(); len(st.Outbox.Conflicts) != 0 {
		t.Errorf("conflicts %+v", st.Outbox.Conflicts)
	}
}

// TestParentTurnsReadOnly turns the middle layer ReadOnly while the bottom goes on taking pushes. They wait, all for one
// reason that status and list tell, and go on by themselves when the middle takes pushes again.
func TestParentTurnsReadOnly(t *testing.T) {
	s := newFloor(t, kinds[0], 2, "acme/app")
	middle, bottom := s.layers[0], s.bottom()
	s.startFloor()
	mode := func(m registry.Mode) {
		t.Helper()
		middle.doc["mode"] = string(m)
		middle.configure()
		middle.untilStatus("its mode is "+string(m), func(st registry.Status) bool { return st.Mode == m })
	}
	mode(registry.ReadOnly)
	digest := push(t, bottom.addr, "acme/app:1", image(t, 3000, "a"))
	again := func() {
		must(t, module.Control(t.Context(), bottom.dir+"/data", http.MethodPost, "/methods/outboxRetry", map[string]bool{"all": true}, &struct{}{}))
	}
	again()
	st := bottom.untilStatus("the queue waits for the parent", func(st registry.Status) bool { return detail(st, "OutboxHeld") != "" })
	if o := st.Outbox; !o.Held || o.Pending != 1 || o.Refused != 0 || !strings.Contains(o.Error, "'ReadOnly'") {
		t.Errorf("the outbox is %+v", o)
	}
	if d := detail(st, "OutboxHeld"); !strings.Contains(d, "1 changes wait") || !strings.Contains(d, "go on by themselves") {
		t.Errorf("the detail is %q", d)
	}
	if st.ConnectionState != registry.Unhealthy || detail(st, "ParentRefused") == "" {
		t.Errorf("%s, %+v", st.ConnectionState, st.StatusDetails)
	}
	var page module.OutboxPage
	must(t, module.Control(t.Context(), bottom.dir+"/data", http.MethodPost, "/methods/outboxList", map[string]int{"limit": 10}, &page))
	if !strings.Contains(page.Held, "'ReadOnly'") || len(page.Entries) != 1 || page.Entries[0].State != registry.OutboxWaiting {
		t.Errorf("the list is %+v", page)
	}
	mode(registry.ReadWrite)
	s.arrives("acme/app", "1", digest) // nobody asks for it
	s.drained()
	if st := bottom.status(); detail(st, "OutboxHeld") != "" || st.Outbox.Held {
		t.Errorf("it still says that it waits: %+v", st.Outbox)
	}
}

// TestClimbThroughProxy has a proxy between two layers that takes no body of more than 200 KiB. None of a MiB is ever offered
// to it, chunks become smaller until they fit, and stay so.
func TestClimbThroughProxy(t *testing.T) {
	s := newFloor(t, kinds[0], 1, "acme/app")
	to := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.layers[0].addr})
	var refused, largest atomic.Int64
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for old := largest.Load(); r.ContentLength > old && !largest.CompareAndSwap(old, r.ContentLength); old = largest.Load() {
		}
		if r.ContentLength > 200<<10 {
			refused.Add(1)
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		to.ServeHTTP(w, r)
	}), func() {})
	below := newNode(t, "layer4", addr)
	below.doc["mode"], below.doc["repositories"] = "ReadWrite", map[string]string{"all": "acme/app"}
	below.options = s.bottom().options
	s.layers = append(s.layers, below)
	s.startFloor()
	digest := push(t, below.addr, "acme/app:1", image(t, 3*mib/2, "one", "two"))
	s.arrives("acme/app", "1", digest)
	s.drained()
	same(t, s.cloud, below.addr, "acme/app:1")
	t.Logf("%d bodies were refused, the largest had %d bytes", refused.Load(), largest.Load())
	if n := refused.Load(); n < 2 || n > 8 { // 512 and 256 KiB, for as many blobs as go at once
		t.Errorf("%d bodies were refused", n)
	}
	if largest.Load() >= mib {
		t.Errorf("a body of %d bytes was offered", largest.Load())
	}
}
