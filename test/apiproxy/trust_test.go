//go:build interop

package apiproxy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/cloud"
)

// TestTrust: with the wrong root, with none, or under a certificate that is not good there is no connection, and the
// status says why. When that is mended nothing has to be restarted on the child's device.
func TestTrust(t *testing.T) {
	other, err := NewAuthority("another site")
	must(t, err)
	bundle := func(s *site, body []byte) { s.bottom().registry.trust(body) }
	renew := func(t *testing.T, s *site, change func(o *Options)) {
		p := s.middle().proxy
		must(t, p.Stop())
		change(&p.Options)
		must(t, p.Start(s.ctx))
	}
	good := func(t *testing.T, s *site) {
		renew(t, s, func(o *Options) {
			var err error
			o.Certificate, err = s.root.Server(host4, stock, time.Now().Add(time.Hour))
			must(t, err)
		})
	}
	bad := func(host string, until time.Duration) func(*testing.T, *site) {
		return func(t *testing.T, s *site) {
			renew(t, s, func(o *Options) {
				var err error
				o.Certificate, err = s.root.Server(host, stock, time.Now().Add(until))
				must(t, err)
			})
		}
	}
	tests := []struct {
		name        string
		spoil, mend func(*testing.T, *site)
		want        string
	}{
		{
			"another root", func(_ *testing.T, s *site) { bundle(s, other.Bundle()) },
			func(_ *testing.T, s *site) { bundle(s, s.root.Bundle()) }, "unknown authority",
		},
		{
			"no bundle", func(_ *testing.T, s *site) { bundle(s, nil) },
			func(_ *testing.T, s *site) { bundle(s, s.root.Bundle()) }, "the parent is not trusted without it",
		},
		{
			"an empty bundle", func(_ *testing.T, s *site) { bundle(s, []byte("# nothing yet\n")) },
			func(_ *testing.T, s *site) { bundle(s, s.root.Bundle()) }, "holds no certificate",
		},
		{"a certificate that has expired", bad(host4, -time.Minute), good, "expired"},
		{"a certificate of another device", bad(host5, time.Hour), good, "127.0.0.85, not 127.0.0.84"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, true, true, true)
			s.start()
			s.synced(s.bottom(), 0)
			s.bottom().registry.stop()
			before := len(s.log(s.middle()))
			tt.spoil(t, s)
			must(t, cloud.Push(s.ctx, s.cloud.Addr, "acme/app:1", image(t, "app", 1000)))
			s.bottom().registry.start()
			st := s.bottom().registry.until("it has tried", func(st registry.Status) bool { return st.Sync.Error != "" && tried(st) })
			if text := st.StatusDetails[0].Description; !strings.Contains(text, tt.want) || st.ConnectionState != registry.Offline {
				t.Errorf("%s: %s, want %q", st.ConnectionState, text, tt.want)
			}
			for _, a := range s.log(s.middle())[before:] {
				if a.User == "layer3" && a.Status != 499 { // the poll from before ends when the process or the proxy does
					t.Errorf("asked without trust: %+v", a)
				}
			}
			tt.mend(t, s)
			s.bottom().registry.until("it is in step again", func(st registry.Status) bool {
				return st.ConnectionState == registry.Online && st.Sync.SyncState == registry.SyncSucceeded && len(st.StatusDetails) == 0
			})
		})
	}
}

// tried reports whether an iteration failed by itself, and not because the configuration came in its midst.
func tried(st registry.Status) bool {
	return len(st.StatusDetails) > 0 && !strings.Contains(st.StatusDetails[0].Description, "interrupted")
}

// TestSystemRoots: without --parent-ca the system's roots are what counts, and a container's may be anywhere.
func TestSystemRoots(t *testing.T) {
	s := newSite(t, true, false, true)
	bottom := s.bottom().registry
	bottom.args = nil
	s.start()
	st := bottom.until("it has tried", tried)
	if text := st.StatusDetails[0].Description; !strings.Contains(text, "unknown authority") {
		t.Errorf("without the root: %s", text)
	}
	bottom.stop()
	file := filepath.Join(t.TempDir(), "roots.pem")
	must(t, os.WriteFile(file, s.root.Bundle(), 0o600))
	bottom.env = append(bottom.env, "SSL_CERT_FILE="+file)
	bottom.start()
	s.synced(s.bottom(), 0)
}
