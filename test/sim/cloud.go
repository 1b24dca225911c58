package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// unwritten is how long a registry of another kind keeps in memory what it answered for, before its disk has it. A layer
// asks such a parent again after a minute.
const unwritten = 20 * time.Second

// startCloud starts the registry above all.
func (w *world) startCloud(base string, log func(name string) *slog.Logger) error {
	if w.plan.connected {
		l, err := w.newLayer("cloud", base, log)
		if err != nil {
			return err
		}
		l.mode, l.scope, l.seed = registry.ReadWrite, "", w.plan.seed*8+layers
		l.configure()
		w.cloud = l
		if !l.start() {
			return errors.New("the cloud does not start")
		}
		return nil
	}
	conf := config.Config{Log: slog.New(slog.DiscardHandler)}
	conf.Storage.StoreType = config.StoreMem
	conf.Storage.GC.Frequency = -1
	yes := true
	conf.API.DeleteEnabled = &yes
	reg := olareg.New(conf)
	w.foreign = &foreign{reg: reg}
	server := &http.Server{Handler: w.foreign, ReadHeaderTimeout: time.Minute}
	ln, err := w.net.listen("cloud")
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(ln) // ends with Close
	}()
	w.close = func() {
		_ = server.Close()
		<-ended
		_ = reg.Close()
	}
	return nil
}

// foreign is a cloud that nobody of this project wrote, with faults: it is too busy for the layers, and it answers for
// what its disk does not have yet.
type foreign struct {
	reg http.Handler

	mu   sync.Mutex
	busy int // the status that layers are answered; 0 is none
	news []news
}

// news is what a layer brought and the disk has not got.
type news struct {
	at     time.Time
	path   string // to delete
	before []byte // or to put back: what a tag pointed at
	media  string
}

// ServeHTTP implements http.Handler.
func (f *foreign) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	out := f.answer(r, body)
	maps.Copy(rw.Header(), out.Header())
	rw.WriteHeader(out.Code)
	_, _ = rw.Write(out.Body.Bytes())
}

// answer takes one request at a time: what a tag was before it was moved is to be known. It waits for nobody.
func (f *foreign) answer(r *http.Request, body []byte) *httptest.ResponseRecorder {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := httptest.NewRecorder()
	layer := strings.HasPrefix(r.RemoteAddr, "layer")
	if layer && f.busy != 0 {
		out.Header().Set("Retry-After", "7")
		http.Error(out, `{"errors":[{"code":"TOOMANYREQUESTS","message":"later"}]}`, f.busy)
		return out
	}
	path := r.URL.Path
	if d := r.URL.Query().Get("digest"); d != "" && r.Method == http.MethodPut { // the end of an upload
		repo, _, _ := strings.Cut(path, "/blobs/")
		path = repo + "/blobs/" + d
	}
	isPut := r.Method == http.MethodPut && (path != r.URL.Path || strings.Contains(path, "/manifests/"))
	var old []news
	if isPut {
		old = append(old, f.look(path))
	}
	if dir, tag, ok := strings.Cut(path, "/manifests/"); isPut && ok && !strings.Contains(tag, ":") {
		old = append(old, f.look(dir+"/manifests/"+digestOf(body).String()))
	}
	f.reg.ServeHTTP(out, r)
	if r.Method == http.MethodDelete || isPut && !layer { // it is synced, with all before it
		f.news = nil
		return out
	}
	for _, n := range old {
		if out.Code == http.StatusCreated && (n.before == nil || !strings.Contains(n.path, "sha256:")) {
			f.news = append(f.news, n)
		}
	}
	return out
}

// look reads what is at a path.
func (f *foreign) look(path string) news {
	out := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header.Set("Accept", accept)
	f.reg.ServeHTTP(out, r)
	n := news{at: time.Now(), path: path}
	if out.Code == http.StatusOK {
		n.before, n.media = append([]byte{}, out.Body.Bytes()...), out.Header().Get("Content-Type")
	}
	return n
}

// losePower forgets what layers brought in the last moments, newest first. It returns the paths.
func (f *foreign) losePower() (lost []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range slices.Backward(f.news) {
		if time.Since(n.at) > unwritten {
			break
		}
		lost = append(lost, strings.TrimPrefix(n.path, "/v2/"))
		method := http.MethodDelete
		if n.before != nil {
			method = http.MethodPut
		}
		r := httptest.NewRequest(method, n.path, bytes.NewReader(n.before))
		if n.media != "" {
			r.Header.Set("Content-Type", n.media)
		}
		f.reg.ServeHTTP(httptest.NewRecorder(), r)
	}
	f.news = nil
	return lost
}

// setBusy has the layers answered with a status; 0 ends that.
func (f *foreign) setBusy(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy = status
}

// cloudBusy has the cloud answer the layers that it cannot, until the next such step or until all is healed.
func (w *world) cloudBusy(s step) string {
	if w.foreign == nil {
		return "it never is"
	}
	status := []int{0, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusInternalServerError}[s.n%4]
	w.events[0]++
	w.foreign.setBusy(status)
	return strconv.Itoa(status)
}

// cloudCut cuts the power of the cloud: of what it answered for in the last moments one of another kind has nothing.
func (w *world) cloudCut(step) string {
	w.events[0]++
	w.losses[0]++
	if w.foreign != nil {
		lost := w.foreign.losePower()
		for _, path := range lost {
			delete(w.atCloud, strings.Replace(path, "/manifests/sha256:", "@sha256:", 1))
		}
		return fmt.Sprint(len(lost), " things lost")
	}
	if err := w.cloud.volume.crashNow(crashPower); err != nil {
		w.failf("the cloud: %v", err)
	}
	w.end(w.cloud)
	w.begin(w.cloud)
	return ""
}
