package powercut

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/layer"
	"github.com/connected-registry/connected-registry/test/linkproxy"
)

// auditFile is how large the file of the audit log may grow before it is set aside.
const auditFile = 4 << 20

// auditRig is a registry with an audit log on a volume of its own.
type auditRig struct {
	layer   *layer.Layer
	volume  *volume // nil: a directory
	client  *client
	metrics *client
	release func()
	next    int
	sure    []string // tags whose pushes are in records that were synced
	floor   uint64   // number of the last record that was said to be synced
	torn    int      // cuts that left half a line
	lost    []string
}

func newAuditRig(ctx context.Context, base, binary, kind string) (r *auditRig, err error) {
	r = &auditRig{release: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	addr, release, err := linkproxy.ReservePort()
	if err != nil {
		return r, err
	}
	r.release = release
	if r.layer, err = layer.New(layer.Options{
		Binary: binary, Dir: base, Name: "cut", Mode: registry.ReadWrite, Closed: true, Args: []string{"--management", addr},
		Document: map[string]any{
			"scopeMaps": map[string]any{"all": layer.Everything("*")}, "clientTokens": map[string]any{user: layer.Token("all", password)},
			"storage": map[string]any{"reserveMiB": 0}, "logging": map[string]any{"auditLogStatus": "Enabled"},
		},
	}); err != nil {
		return r, err
	}
	if kind != "" {
		if r.volume, err = newVolume(ctx, base, r.layer.DataDir(), kind, ""); err != nil {
			return r, err
		}
	}
	r.client, r.metrics = newClient(r.layer.Addr), newClient(addr)
	return r, r.fill()
}

// fill leaves so little room in the log's file that the next records begin another one.
func (r *auditRig) fill() error {
	dir := filepath.Join(r.layer.DataDir(), "audit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "audit.log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for seq, size := 1, 0; size < auditFile-20_000; seq++ {
		n, _ := fmt.Fprintf(w, `{"seq":%d,"time":"2026-01-01T00:00:00Z","category":"audit","operation":"filler","result":"success","detail":"%s"}`+"\n", seq, strings.Repeat("x", 400))
		size += n
		r.floor = uint64(seq)
	}
	return errors.Join(w.Flush(), f.Sync(), f.Close(), syncPath(dir), syncPath(filepath.Dir(dir)))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (r *auditRig) close() error {
	var err error
	if r.layer != nil {
		err = r.layer.Close()
	}
	if r.volume != nil {
		err = errors.Join(err, r.volume.unmount())
	}
	r.release()
	return err
}

// records returns the log's lines, the oldest first, whether the last of them is torn, and what else is wrong with them.
func (r *auditRig) records() (list []registry.AuditRecord, torn bool, wrong []string, err error) {
	dir := filepath.Join(r.layer.DataDir(), "audit")
	names, err := filepath.Glob(filepath.Join(dir, "audit-*.log"))
	if err != nil {
		return nil, false, nil, err
	}
	slices.Sort(names)
	for _, name := range append(names, filepath.Join(dir, "audit.log")) {
		raw, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, false, nil, err
		}
		for line := range strings.Lines(string(raw)) {
			var record registry.AuditRecord
			if json.Unmarshal([]byte(line), &record) != nil || !strings.HasSuffix(line, "\n") {
				torn = true
				continue
			}
			if torn {
				wrong = append(wrong, fmt.Sprintf("%s goes on after a torn line with %.80q", name, line))
			}
			if len(list) > 0 && record.Seq != list[len(list)-1].Seq+1 {
				wrong = append(wrong, fmt.Sprintf("%s: record %d follows %d", name, record.Seq, list[len(list)-1].Seq))
			}
			torn = false
			list = append(list, record)
		}
	}
	return list, torn, wrong, nil
}

// reached asks the metrics for the number of the last record, and of the last that is synced.
func (r *auditRig) reached(ctx context.Context) (last, synced uint64, err error) {
	a, err := r.metrics.do(ctx, "GET", "/metrics", "", nil)
	if err != nil {
		return 0, 0, err
	}
	for name, into := range map[string]*uint64{"audit_records_total": &last, "audit_synced_records_total": &synced} {
		m := regexp.MustCompile(`(?m)^connected_registry_` + name + ` (\d+)$`).FindSubmatch(a.body)
		if m == nil {
			return 0, 0, fmt.Errorf("no %s in the metrics", name)
		}
		if *into, err = strconv.ParseUint(string(m[1]), 10, 64); err != nil {
			return 0, 0, err
		}
	}
	return last, synced, nil
}

// push puts a tag, and returns its name when it was acknowledged.
func (r *auditRig) push(ctx context.Context, tag string) error {
	a, err := r.client.do(ctx, "PUT", tagPath("local/audit", tag), registry.MediaTypeImageIndex,
		[]byte(`{"schemaVersion":2,"mediaType":"`+registry.MediaTypeImageIndex+`","manifests":[]}`))
	if err != nil {
		return err
	}
	return a.want("push", 201)
}

// round pushes until what was pushed first is said to be synced, and then cuts the power at a random moment; restarts,
// and looks at the log before and after.
func (r *auditRig) round(ctx context.Context, rng *rand.Rand) error {
	if err := r.layer.Start(ctx); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, ackPatience)
	defer cancel()
	if err := r.layer.Until(waiting, "the client is known", func(ctx context.Context) (bool, error) {
		a, err := r.client.do(ctx, "GET", "/v2/", "", nil)
		return a.status == 200, err
	}); err != nil {
		return err
	}
	var first []string
	for range 1 + rng.IntN(20) {
		r.next++
		first = append(first, fmt.Sprint("t", r.next))
		if err := r.push(waiting, first[len(first)-1]); err != nil {
			return err
		}
	}
	target, _, err := r.reached(waiting)
	if err != nil {
		return err
	}
	more, stop := context.WithCancel(ctx)
	defer stop()
	var pushing sync.WaitGroup
	pushing.Go(func() {
		for more.Err() == nil && r.push(more, fmt.Sprint("more", rng.IntN(100))) == nil {
		}
	})
	err = r.layer.Until(waiting, "the first records are synced", func(ctx context.Context) (bool, error) {
		_, synced, err := r.reached(ctx)
		r.floor = max(r.floor, synced)
		return synced >= target, err
	})
	if err == nil {
		r.sure = append(r.sure, first...)
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond) // the moment of the cut is what is random here, nothing is waited for
	}
	err = errors.Join(err, r.volume.cut(), r.layer.Kill())
	stop()
	pushing.Wait()
	r.client.close()
	r.metrics.close()
	if err = errors.Join(err, r.volume.remount(ctx)); err != nil {
		return err
	}
	return r.verify()
}

// verify looks at what a cut left.
func (r *auditRig) verify() error {
	list, torn, wrong, err := r.records()
	if err != nil {
		return err
	}
	r.lost = append(r.lost, wrong...)
	if torn {
		r.torn++
	}
	tags := map[string]bool{}
	last := uint64(0)
	for _, record := range list {
		tags[record.Tag] = true
		last = record.Seq
	}
	if last < r.floor {
		r.lost = append(r.lost, fmt.Sprintf("the last record has number %d, and %d was synced", last, r.floor))
	}
	for _, tag := range r.sure {
		if !tags[tag] {
			r.lost = append(r.lost, "no record of the push of "+tag)
		}
	}
	r.floor, r.sure = last, nil // of what was lost it is said once
	return nil
}

// auditCuts cuts the power n times, on a fresh volume after every five, and returns what was lost.
func auditCuts(t *testing.T, binary, kind string, n int, enough func(lost []string) bool) (lost []string) {
	t.Helper()
	torn, records, ran := 0, 0, 0
	s := seed(t)
	for v := uint64(0); ran < n && !enough(lost); v++ {
		base, err := os.MkdirTemp(workDir, "audit-"+kind+"-")
		if err != nil {
			t.Fatal(err)
		}
		r, err := newAuditRig(t.Context(), base, binary, kind)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < perVolume && ran < n && err == nil; i++ {
			err = r.round(t.Context(), rand.New(rand.NewPCG(s+v, uint64(i))))
			ran++
		}
		if err == nil { // once more without a cut: the log goes on where it ended
			before := r.floor
			err = errors.Join(r.layer.Start(t.Context()), r.layer.Stop())
			list, half, wrong, err2 := r.records()
			if err = errors.Join(err, err2); err == nil && (half || list[len(list)-1].Seq <= before) {
				r.lost = append(r.lost, fmt.Sprintf("after a start the log ends with %+v, torn %t; before it ended with %d", list[len(list)-1], half, before))
			}
			r.lost = append(r.lost, wrong...)
			records += len(list)
		}
		files, _ := filepath.Glob(filepath.Join(r.layer.DataDir(), "audit", "audit-*.log"))
		if err == nil && len(files) != 1 {
			r.lost = append(r.lost, fmt.Sprintf("%d files were set aside, want 1", len(files)))
		}
		torn, lost = torn+r.torn, append(lost, r.lost...)
		if err = errors.Join(err, r.close(), os.RemoveAll(base)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s: %d cuts, %d records, %d torn lines: %d losses", kind, ran, records, torn, len(lost))
	return lost
}

// TestAuditLog cuts the power under a registry that writes its audit log: after each cut it is JSON lines without a gap,
// with at most a torn end, and nothing is missing that was said to be synced; the next start goes on with the next number.
func TestAuditLog(t *testing.T) {
	n := max(1, count(t, 0, 1000)/10)
	if count(t, 0, 1) == 0 {
		t.Skip("runs with POWERCUT=n (make test-chaos-short)")
	}
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			mustMount(t, kind)
			for _, l := range auditCuts(t, binary(t), kind, n, func([]string) bool { return false }) {
				t.Error(l)
			}
		})
	}
	t.Run("without its sync", func(t *testing.T) {
		mustMount(t, "ext4")
		t.Setenv(omitting, "audit-sync")
		if lost := auditCuts(t, crippled(t), "ext4", 20, func(lost []string) bool { return len(lost) > 0 }); len(lost) == 0 {
			t.Error("nothing was lost: the harness is blind")
		}
	})
}

// TestAuditSyscalls reads from strace in which order the log is written: a file is synced before it is set aside, and the
// directory before the file that follows; and sees each that is left out.
func TestAuditSyscalls(t *testing.T) {
	if count(t, 0, 1) == 0 {
		t.Skip("runs with POWERCUT=n (make test-chaos-short)")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("there is no strace: apt-get install strace")
	}
	for steps, want := range map[string]string{"": "", "audit-sync": "fsync of the file", "audit-dir-sync": "fsync of the directory"} {
		t.Run(steps, func(t *testing.T) {
			t.Setenv(omitting, steps)
			base := t.TempDir()
			trace, wrapper := filepath.Join(base, "trace"), filepath.Join(base, "traced")
			script := fmt.Sprintf("#!/bin/sh\nexec strace -D -f -y -o %s -e trace=write,fsync,fdatasync,rename,renameat,renameat2 %s \"$@\"\n", trace, crippled(t))
			if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			r, err := newAuditRig(t.Context(), base, wrapper, "")
			if err != nil {
				t.Fatal(err)
			}
			err = r.layer.Start(t.Context())
			for i := 0; i < 120 && err == nil; i++ { // more than there is room for
				err = r.layer.Until(t.Context(), "a push", func(ctx context.Context) (bool, error) {
					return r.push(ctx, fmt.Sprint(i)) == nil, nil
				})
			}
			pid := r.layer.Pid()
			if err = errors.Join(err, r.close()); err != nil {
				t.Fatal(err)
			}
			if err := ended(trace, pid); err != nil {
				t.Fatal(err)
			}
			if got := auditOrder(t, trace); got != want {
				t.Errorf("lacks %q, want %q", got, want)
			}
		})
	}
}

var wrote = regexp.MustCompile(`write\(\d+<([^>]+)>`)

// auditOrder returns the step that the log lacks.
func auditOrder(t *testing.T, trace string) (lacks string) {
	t.Helper()
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dirty, aside, turned := false, false, 0
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if m := wrote.FindStringSubmatch(line); m != nil && strings.HasSuffix(m[1], "/audit.log") {
			if aside {
				return "fsync of the directory"
			}
			dirty = true
		}
		if m := flushed.FindStringSubmatch(line); m != nil {
			dirty = dirty && !strings.HasSuffix(m[2], "/audit.log")
			aside = aside && !strings.HasSuffix(m[2], "/audit")
		}
		if m := renamed.FindStringSubmatch(line); m != nil && strings.HasSuffix(m[1], "/audit.log") {
			if dirty {
				return "fsync of the file"
			}
			aside = true
			turned++
		}
	}
	if lines.Err() != nil || turned != 1 {
		t.Fatalf("%v; the file was set aside %d times", lines.Err(), turned)
	}
	if dirty {
		return "fsync of the file"
	}
	return ""
}
