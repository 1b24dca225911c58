package chaos

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
)

// sent is a call of sendfile that a registry made, as strace prints it; a call that another thread interrupted stands
// on two lines, and the second has the result.
var sent = regexp.MustCompile(`(?m)sendfile(?:\(| resumed).* = (\d+)$`)

// TestSendfile counts the system calls of the real binary: a blob goes from its file to a plain connection within the
// kernel, whatever lies between the handler and the connection.
func TestSendfile(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("there is no strace: apt-get install strace")
	}
	dir := t.TempDir()
	trace, wrapper := filepath.Join(dir, "trace"), filepath.Join(dir, "traced")
	script := fmt.Sprintf("#!/bin/sh\nexec %s -D -f -q -o %s -e trace=sendfile %s \"$@\"\n", strace, trace, binary)
	s := &site{t: t, ctx: t.Context()}
	s.must(os.WriteFile(wrapper, []byte(script), 0o700))
	l, err := layer.New(layer.Options{Binary: wrapper, Dir: dir, Name: "traced", Mode: registry.ReadWrite})
	s.must(err)
	t.Cleanup(func() { s.must(l.Close()) })
	s.must(l.Start(s.ctx))

	const size = 20 * mib
	content, err := cloud.Layer("big", size)
	s.must(err)
	img, err := cloud.Image(content)
	s.must(err)
	s.must(cloud.Push(s.ctx, l.Addr, repo+":1", img))
	digest, err := content.Digest()
	s.must(err)
	for range 2 { // the first one verifies what was not given out before
		s.download(l, "blobs/"+digest.String(), size)
	}
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	total := 0
	err = l.Until(ctx, "strace has written it down", func(context.Context) (bool, error) {
		body, err := os.ReadFile(trace)
		total = 0
		for _, m := range sent.FindAllSubmatch(body, -1) {
			n, _ := strconv.Atoi(string(m[1])) // digits
			total += n
		}
		return total >= 2*size, err
	})
	t.Logf("of two times %d bytes, sendfile sent %d", size, total)
	if err != nil {
		t.Error(err)
	}
}

// download reads something of the repository to its end.
func (s *site) download(l *layer.Layer, what string, size int64) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://"+l.Addr+"/v2/"+repo+"/"+what, http.NoBody)
	s.must(err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	s.must(err)
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n < size || resp.StatusCode != http.StatusOK {
		s.t.Errorf("GET %s: %s, %d bytes, %v", what, resp.Status, n, err)
	}
}
