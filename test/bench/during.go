//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// spans are the links that a sync runs over while clients pull.
var spans = []struct {
	name   string
	bytes  int // per second; 0: nothing between
	amount int // of SyncMiB, one part in so many
	paused int // MiB of a turn in which clients pause: enough for some hundred pulls
}{
	{"nothing between", 0, 1, 1280},
	{"1 Gbit/s", 125e6, 2, 384},
	{"100 Mbit/s", 125e5, 12, 48},
}

const (
	// turns is how often rest and sync take turns, so that what the machine does besides hits both.
	turns = 4
	// pause is how long a client that does not pull back to back waits before each pull, and restPaused how long it pulls at
	// rest: the 99th percentile of less than some hundred pulls would be the one that took longest.
	pause      = 5 * time.Millisecond
	restPaused = 4 * time.Second
	// perTurn is how many images a sync brings, so that there is something to be done at once.
	perTurn = 4
)

// during is what a sync at full speed costs, and what clients feel of it.
func (b *bench) during(ctx context.Context) error {
	for _, line := range spans {
		t := b.table("during", "a sync at full speed, and local pulls meanwhile; the link: "+line.name, siteNames...)
		t.note("%d MiB, %d where clients pause; a pull is HEAD and GET of the tag, config and a layer of 64 KiB, over a connection that is kept, back to back or %v after the one", max(b.SyncMiB/line.amount/turns, perTurn), line.paused, pause)
		t.note("before; who measures has a core of its own. distribution syncs by 4 clients that pull what it has not; regsync's figures are those of regsync and olareg")
		for n := range b.rounds(min(b.Rounds, 2)) { // each has some hundred pulls
			for _, name := range siteNames {
				if !b.measures(name) {
					continue
				}
				b.say("sync at full speed, %s: %s, round %d", line.name, name, n+1)
				sizes := [2]int{max(b.SyncMiB*mib/line.amount/turns, perTurn*mib), line.paused * mib}
				if err := b.busy(ctx, t, name, line.bytes, sizes); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		t.finish()
	}
	return nil
}

// measures reports whether a site was asked for.
func (b *bench) measures(site string) bool {
	return len(b.Sites) == 0 || slices.Contains(b.Sites, site)
}

// busy is one round of one site; sizes are what a turn syncs, in bytes, where clients pull back to back and where they pause.
func (b *bench) busy(ctx context.Context, t *section, name string, speed int, sizes [2]int) error {
	restore, err := leaveMeter()
	if err != nil {
		return err
	}
	defer restore()
	up, err := b.upstream(ctx)
	if err != nil {
		return err
	}
	link, err := linkproxy.New(up.addr)
	if err != nil {
		return err
	}
	defer link.Close()
	parent := up.addr
	if speed > 0 {
		parent = link.Addr()
	}
	s, err := b.newSite(ctx, name, parent, week)
	if err != nil {
		return err
	}
	if d, ok := s.(*throughSite); ok {
		d.trust = true // its client would take the time that is measured
	}
	f := &field{b: b, up: up, site: s}
	small, err := f.put(ctx, "app", "v1", registrytest.NewImage(700, 64<<10))
	if err != nil {
		return err
	}
	if _, err := s.fetch(ctx, b.Tries, small); err != nil {
		return err
	}
	if err := link.Set(linkproxy.Plan{BytesPerSecond: speed}); err != nil {
		return err
	}
	m, err := b.newMeter(ctx, s, small)
	if err != nil {
		return err
	}
	for turn := -1; turn < turns; turn++ { // at the first nobody pulls
		var big []wanted
		pattern := max(turn, 0) % 2
		for n := range perTurn {
			size := sizes[pattern] / perTurn / 2
			w, err := f.put(ctx, "big", fmt.Sprintf("v%d-%d", turn+1, n), registrytest.NewImage(uint64(1000+10*turn+n), size, size))
			if err != nil {
				return err
			}
			big = append(big, w)
		}
		if turn < 0 {
			err = b.alone(ctx, t, name, s, big)
		} else {
			err = m.turn(ctx, [2]time.Duration{b.Window, restPaused}[pattern], pattern, func() error { return together(ctx, s, big) })
		}
		if err != nil {
			return err
		}
	}
	m.tell(t, name, sizes)
	return errors.Join(m.end(), s.end(), up.end())
}

// alone is a sync that nobody disturbs.
func (b *bench) alone(ctx context.Context, t *section, name string, s site, big []wanted) error {
	var bytes int64
	for _, w := range big {
		for _, blob := range w.image.Blobs {
			bytes += blob.Size
		}
	}
	before, _ := s.spent()
	began := time.Now()
	if err := together(ctx, s, big); err != nil {
		return err
	}
	took, gib := time.Since(began).Seconds(), float64(bytes)/mib/1024
	cpu, peak := s.spent()
	t.row("sync alone", "MiB/s").add(name, gib*1024/took)
	t.row("sync alone, all processes", "CPU s/GiB", atMost(1).to("regsync")).add(name, (cpu-before).Seconds()/gib)
	t.row("sync alone, all processes", "peak MiB", atMost(1).to("regsync")).add(name, peak)
	return nil
}

// together fetches all at once where it is clients that fetch.
func together(ctx context.Context, s site, want []wanted) error {
	d, ok := s.(*throughSite)
	if !ok {
		_, err := s.fetch(ctx, 1, want...)
		return err
	}
	failed := make(chan error, len(want))
	for _, w := range want {
		go func() {
			_, err := d.fetch(ctx, 1, w)
			failed <- err
		}()
	}
	for range want {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}

// meter measures pulls at rest and while a sync runs, and the same pulls of a process beside it that does nothing else:
// what those take longer during a sync, the machine takes.
type meter struct {
	idle   *instance
	pulls  [2]*puller         // of the site, and of the process beside it
	took   [2][2][2][]float64 // of whom; back to back or with pauses; at rest or during a sync: in ms
	synced [2]time.Duration   // how long the syncs took: back to back, with pauses
}

func (b *bench) newMeter(ctx context.Context, s site, small wanted) (*meter, error) {
	idle, err := b.start(ctx, b.peer("floor"), certificate{})
	if err != nil {
		return nil, err
	}
	if err := idle.pusher().image(ctx, small.repo, small.tag, small.image); err != nil {
		return nil, err
	}
	m := &meter{idle: idle}
	for n, i := range []*instance{s.serves(), idle} {
		if m.pulls[n], err = newPuller(ctx, i, small.image); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *meter) end() error {
	return errors.Join(m.pulls[0].conn.Close(), m.pulls[1].conn.Close(), m.idle.end())
}

// turn pulls for a window at rest, and then until the sync is over.
func (m *meter) turn(ctx context.Context, window time.Duration, pattern int, sync func() error) error {
	rest := make(chan error, 1)
	time.AfterFunc(window, func() { rest <- nil })
	if err := m.until(ctx, rest, pattern, 0); err != nil {
		return err
	}
	synced := make(chan error, 1)
	began := time.Now()
	go func() { synced <- sync() }()
	err := m.until(ctx, synced, pattern, 1)
	m.synced[pattern] += time.Since(began)
	return err
}

// until pulls until over gives what it ended with, on a thread that has a core of its own and reads without the help of
// the runtime, so that it is the server that is measured.
func (m *meter) until(ctx context.Context, over <-chan error, pattern, state int) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this
		if meterSet.Count() > 0 {
			if err := unix.SchedSetaffinity(0, &meterSet); err != nil {
				done <- err
				return
			}
		}
		for ctx.Err() == nil {
			select {
			case err := <-over:
				done <- err
				return
			default:
			}
			for n, p := range m.pulls {
				if pattern == 1 {
					rest := unix.NsecToTimespec(int64(pause))
					_ = unix.Nanosleep(&rest, nil)
				}
				if err := p.pull(&m.took[n][pattern][state]); err != nil {
					done <- err
					return
				}
			}
		}
		done <- ctx.Err()
	}()
	return <-done
}

// tell adds what was measured to the table; sizes are what was synced in a turn, in bytes.
func (m *meter) tell(t *section, name string, sizes [2]int) {
	p99, median := quantile(99), quantile(50)
	for pattern, how := range []string{"back to back: ", fmt.Sprintf("every %v: ", pause)} {
		own, idle := m.took[0][pattern], m.took[1][pattern]
		t.row(how+"p99 at rest", "ms").add(name, p99(own[0]))
		t.row(how+"p99 during a sync", "ms").add(name, p99(own[1]))
		t.row(how+"median, during to at rest", "x").add(name, median(own[1])/median(own[0]))
		t.row(how+"p99, during to at rest", "x", atMost(2)).add(name, p99(own[1])/p99(own[0]))
		t.row(how+"p99, the same of an idle process", "x").add(name, p99(idle[1])/p99(idle[0]))
		t.row(how+"pulls at rest", "number").add(name, float64(len(own[0])))
		t.row(how+"pulls during a sync", "number").add(name, float64(len(own[1])))
		t.row(how+"the sync", "MiB/s").add(name, float64(sizes[pattern])/mib*turns/2/m.synced[pattern].Seconds())
	}
}

// puller pulls one image again and again.
type puller struct {
	*wire
	asks []ask
}

func newPuller(ctx context.Context, i *instance, image registrytest.Image) (*puller, error) {
	d := image.Digest.String()
	p := &puller{asks: []ask{
		newAsk(http.MethodHead, i.addr, "/v2/app/manifests/v1", d, image.Manifest.Bytes),
		newAsk(http.MethodGet, i.addr, "/v2/app/manifests/v1", d, image.Manifest.Bytes),
	}}
	for _, blob := range image.Blobs {
		p.asks = append(p.asks, newAsk(http.MethodGet, i.addr, "/v2/app/blobs/"+blob.Digest.String(), blob.Digest.String(), blob.Bytes))
	}
	var err error
	if p.wire, err = i.dial(ctx, 64<<10); err != nil {
		return nil, err
	}
	conn, err := newBlocking(p.conn)
	if err != nil {
		return nil, err
	}
	p.conn = conn
	p.in.Reset(conn)
	return p, nil
}

// pull adds how many milliseconds a pull took.
func (p *puller) pull(to *[]float64) error {
	began := time.Now()
	for n := range p.asks {
		if err := p.do(&p.asks[n]); err != nil {
			return err
		}
	}
	*to = append(*to, time.Since(began).Seconds()*1000)
	return nil
}

// blocking is a connection whose calls block the thread, and not the goroutine alone: who waits in them is woken by the
// kernel, and by nobody else.
type blocking struct {
	net.Conn
	file *os.File
	fd   int
}

func newBlocking(c net.Conn) (*blocking, error) {
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("%T is no TCP connection", c)
	}
	file, err := conn.File()
	if err != nil {
		return nil, err
	}
	b := &blocking{Conn: c, file: file, fd: int(file.Fd())}
	limit := unix.NsecToTimeval(int64(startLimit))
	return b, errors.Join(unix.SetNonblock(b.fd, false), unix.SetsockoptTimeval(b.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
}

func (b *blocking) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(b.fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			return 0, io.EOF
		}
		return max(n, 0), err
	}
}

func (b *blocking) Write(p []byte) (int, error) {
	for sent := 0; ; {
		n, err := unix.Write(b.fd, p[sent:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if sent += max(n, 0); err != nil || sent == len(p) {
			return sent, err
		}
	}
}

func (b *blocking) Close() error { return errors.Join(b.Conn.Close(), b.file.Close()) }

// leaveMeter takes the measuring thread's core from all other threads of this process, and from what they start, until
// restore is called: else who measures would wait for who sends.
func leaveMeter() (restore func(), err error) {
	if meterSet.Count() == 0 {
		return func() {}, nil
	}
	rest := clientSet
	for core := range cores {
		if meterSet.IsSet(core) {
			rest.Clear(core)
		}
	}
	all := clientSet
	clientSet = rest
	return func() { clientSet = all; _ = confine(&all) }, confine(&rest)
}

// confine gives all threads of this process these cores.
func confine(set *unix.CPUSet) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func quantile(percent int) func([]float64) float64 {
	return func(v []float64) float64 {
		v = slices.Sorted(slices.Values(v))
		return v[min(len(v)-1, len(v)*percent/100)]
	}
}
