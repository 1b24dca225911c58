//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// link is the way to an upstream registry: broken and counted in bytes by the link proxy, counted in requests behind it.
type link struct {
	*linkproxy.Proxy
	requests atomic.Int64
	front    *http.Server
}

func newLink(target string) (*link, error) {
	l := &link{}
	to := &url.URL{Scheme: "http", Host: target}
	forward := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host },
		FlushInterval: -1,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l.front = &http.Server{ReadHeaderTimeout: 10 * time.Second, ErrorLog: silent, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.requests.Add(1)
		forward.ServeHTTP(w, r)
	})}
	forward.ErrorLog = silent
	go func() { _ = l.front.Serve(ln) }() // ends with close
	l.Proxy, err = linkproxy.New(ln.Addr().String())
	return l, err
}

func (l *link) close() error { return errors.Join(l.Proxy.Close(), l.front.Close()) }

// used is what went over the link.
type used struct{ down, up, requests int64 }

func (l *link) used() used {
	c := l.Counters()
	return used{c.Down, c.Up, l.requests.Load()}
}

func (u used) since(before used) used {
	return used{u.down - before.down, u.up - before.up, u.requests - before.requests}
}

// wanted is a tag that a site has to have.
type wanted struct {
	repo, tag string
	image     registrytest.Image
}

// site is what a place with a bad link runs so that it has images: a registry, and what fills it.
type site interface {
	// fetch brings the tags here in at most so many tries, and says in how many.
	fetch(ctx context.Context, tries int, want ...wanted) (int, error)
	// kill ends what moves the bytes, as a power cut does; revive starts what has to run for the next fetch.
	kill()
	revive(ctx context.Context) error
	// serves is the registry that clients ask.
	serves() *instance
	// spent is the processor time so far, and the highest memory in MiB, of all its processes.
	spent() (cpu time.Duration, peak float64)
	end() error
}

// newSite starts one below parent (host:port). distribution forgets what is older than ttl.
func (b *bench) newSite(ctx context.Context, name, parent string, ttl time.Duration) (site, error) {
	dir, err := b.scratch(name)
	if err != nil {
		return nil, err
	}
	switch name {
	case "ours":
		l, err := layer.New(layer.Options{
			Binary: b.ours.binary, Dir: dir, Name: "bench", Repositories: map[string]string{"all": "app other big multi docker many"},
			Document: map[string]any{"parent": map[string]any{"gatewayEndpoint": parent, "protocol": "http", "syncProperties": map[string]string{
				"schedule": fmt.Sprintf("0 0 1 %d *", (int(time.Now().UTC().Month())+5)%12+1), "syncWindow": "PT1H", // months away: only what is asked for
			}}},
		})
		if err != nil {
			return nil, err
		}
		b.endsWith(func() { _ = l.Kill() })
		s := &oursSite{Layer: l}
		return s, s.revive(ctx)
	case "distribution":
		through := b.peer("distribution")
		through.command = func(dir, addr string, cert certificate) ([]string, []string, error) {
			config := distributionConfig(dir, addr, cert)
			config["proxy"] = map[string]any{"remoteurl": "http://" + parent, "ttl": ttl.String()}
			return writeConfig(dir, config)
		}
		i, err := b.instance(through, dir, certificate{})
		if err != nil {
			return nil, err
		}
		return &throughSite{instance: i}, i.start(ctx)
	}
	i, err := b.instance(b.peer("olareg"), dir, certificate{})
	if err != nil {
		return nil, err
	}
	return &regsyncSite{instance: i, binary: b.regsync.binary, parent: parent}, i.start(ctx)
}

// oursSite is this registry, told to sync.
type oursSite struct {
	*layer.Layer
	tags int
}

func (s *oursSite) fetch(ctx context.Context, tries int, want ...wanted) (int, error) {
	s.tags += len(want)
	var err error
	for n := 1; n <= tries; n++ {
		err = s.Sync(ctx)
		if err != nil && s.Pid() != 0 {
			continue
		}
		var ok bool
		if ok, _, err = s.Has(ctx, s.tags); ok || err != nil {
			return n, err
		}
	}
	return tries, errors.Join(err, fmt.Errorf("not here after %d tries", tries))
}

func (s *oursSite) kill() {
	_ = s.Kill() // it may have ended
	s.tags = 0
}

func (s *oursSite) revive(ctx context.Context) error {
	err := pinned(func() error { return s.Start(ctx) })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return s.Until(ctx, "the iteration of the start is over", func(ctx context.Context) (bool, error) {
		st, err := s.Status(ctx)
		return err == nil && !st.Sync.LastSuccessfulSyncEndTime.IsZero() && st.Sync.NextSyncTime.After(time.Now().Add(time.Hour)), nil
	})
}

func (s *oursSite) serves() *instance { return &instance{subject: subject{name: "ours"}, addr: s.Addr} }

func (s *oursSite) spent() (time.Duration, float64) {
	_, peak := s.RSS()
	return cpuOf(s.Pid()), float64(peak) / mib
}

func (s *oursSite) end() error { return errors.Join(s.Close(), os.RemoveAll(s.Dir)) }

// throughSite is distribution as a pull-through cache, filled by clients that pull.
type throughSite struct {
	*instance
	trust bool // the client does not hash
}

func (s *throughSite) fetch(ctx context.Context, tries int, want ...wanted) (int, error) {
	client := s.client(time.Minute)
	defer client.CloseIdleConnections()
	have := map[string]bool{} // a client keeps the layers that it has whole
	var err error
	for n := 1; n <= tries; n++ {
		if err = s.pullAll(ctx, client, have, !s.trust, want); err == nil {
			return n, nil
		}
	}
	return tries, err
}

func (s *throughSite) kill()                            { _ = s.stop(syscall.SIGKILL) }
func (s *throughSite) revive(ctx context.Context) error { return s.start(ctx) }
func (s *throughSite) serves() *instance                { return s.instance }
func (s *throughSite) spent() (time.Duration, float64) {
	_, peak := s.rss()
	return s.cpu(), peak
}

// regsyncSite is olareg, filled by regsync.
type regsyncSite struct {
	*instance
	binary, parent string

	mu      sync.Mutex
	running *os.Process
	cpuDone time.Duration
	peak    float64
}

func (s *regsyncSite) fetch(ctx context.Context, tries int, want ...wanted) (int, error) {
	var jobs []map[string]any
	for _, w := range want {
		job := map[string]any{"source": s.parent + "/" + w.repo, "target": s.addr + "/" + w.repo, "type": "repository"}
		if !slices.ContainsFunc(jobs, func(j map[string]any) bool { return j["source"] == job["source"] }) {
			jobs = append(jobs, job)
		}
	}
	plain := func(addr string) map[string]any { return map[string]any{"registry": addr, "tls": "disabled"} }
	body, err := json.Marshal(map[string]any{
		"version": 1, "creds": []any{plain(s.parent), plain(s.addr)}, "defaults": map[string]any{"parallel": 4}, "sync": jobs,
	})
	conf := filepath.Join(s.dir, "regsync.yml")
	if err = errors.Join(err, os.WriteFile(conf, body, 0o600)); err != nil {
		return 0, err
	}
	for n := 1; n <= tries; n++ {
		if err = s.once(ctx, conf); err == nil || ctx.Err() != nil {
			return n, err
		}
	}
	return tries, err
}

// once runs regsync to its end.
func (s *regsyncSite) once(ctx context.Context, conf string) error {
	cmd := exec.CommandContext(ctx, s.binary, "once", "-c", conf, "-v", "error")
	out, err := os.OpenFile(filepath.Join(s.dir, "regsync.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	s.mu.Lock()
	err = pinned(cmd.Start)
	s.running = cmd.Process
	s.mu.Unlock()
	if err != nil {
		return err
	}
	over, peak := make(chan struct{}), make(chan float64)
	go watch(cmd.Process.Pid, over, peak)
	err = cmd.Wait()
	close(over)
	most := <-peak
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = nil
	s.cpuDone += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	s.peak = max(s.peak, most)
	return err
}

// watch looks at the memory of a process until it is over. What wait4(2) says of it includes this process, before exec.
func watch(pid int, over <-chan struct{}, peak chan<- float64) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var most float64
	for {
		select {
		case <-over:
			peak <- most
			return
		case <-tick.C:
			_, now := rssOf(pid)
			most = max(most, now)
		}
	}
}

func (s *regsyncSite) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		_ = s.running.Kill()
	}
}

func (s *regsyncSite) revive(context.Context) error { return nil }
func (s *regsyncSite) serves() *instance            { return s.instance }
func (s *regsyncSite) spent() (time.Duration, float64) {
	_, peak := s.rss()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cpu() + s.cpuDone, peak + s.peak
}

// pullAll pulls as a container engine does, and checks each digest.
func (i *instance) pullAll(ctx context.Context, client *http.Client, have map[string]bool, check bool, want []wanted) error {
	for _, w := range want {
		if err := i.pullImage(ctx, client, have, check, w.repo, w.tag, w.image); err != nil {
			return fmt.Errorf("%s/%s:%s: %w", i.name, w.repo, w.tag, err)
		}
	}
	return nil
}

func (i *instance) pullImage(ctx context.Context, client *http.Client, have map[string]bool, check bool, repo, ref string, image registrytest.Image) error {
	if err := i.pullOne(ctx, client, check, "/v2/"+repo+"/manifests/"+ref, image.Digest.String(), image.Size); err != nil {
		return err
	}
	for _, child := range image.Children {
		if err := i.pullImage(ctx, client, have, check, repo, child.Digest.String(), child); err != nil {
			return err
		}
	}
	for _, b := range image.Blobs {
		if d := b.Digest.String(); !have[d] {
			if err := i.pullOne(ctx, client, check, "/v2/"+repo+"/blobs/"+d, d, b.Size); err != nil {
				return err
			}
			have[d] = true
		}
	}
	return nil
}

func (i *instance) pullOne(ctx context.Context, client *http.Client, check bool, path, digest string, size int64) error {
	resp, err := get(ctx, client, http.MethodGet, i.url(path))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %w", path, statusError(resp.StatusCode))
	}
	sum := sha256.New()
	var to io.Writer = sum
	if !check {
		to = io.Discard
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, resp.Body, make([]byte, 256<<10))
	if err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); n != size || check && got != digest {
		return fmt.Errorf("%s: %d bytes, %s; want %d, %s: %w", path, n, got, size, digest, errWrong)
	}
	return nil
}

// errWrong is content that is not what was asked for.
var errWrong = errors.New("wrong content")

// statusError is an answer that is no 200.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("HTTP %d", int(e)) }
