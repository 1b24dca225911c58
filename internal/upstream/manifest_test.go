package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/transport"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// say answers manifest requests with body, which is said to have the digest.
func say(mediaType string, body []byte, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		for _, h := range header {
			name, value, _ := strings.Cut(h, ": ")
			w.Header().Set(name, value)
		}
		_, _ = w.Write(body)
	}
}

func TestManifestAnswers(t *testing.T) {
	image, other := registrytest.NewImage(1, 10), registrytest.NewImage(2, 10)
	byTag, byDigest := registry.TagReference("1"), registry.DigestReference(image.Digest)
	sha512 := registry.DigestReference(digest.SHA512.FromBytes(image.Bytes))
	oci := registry.MediaTypeImageManifest
	endless := handler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", oci)
		for {
			if _, err := w.Write(bytes.Repeat([]byte("["), 64<<10)); err != nil {
				return
			}
		}
	})
	tests := []struct {
		name    string
		ref     registry.Reference
		handler http.HandlerFunc
		code    registry.Code // empty is good
	}{
		{"by tag", byTag, say(oci, image.Bytes), ""},
		{"by digest", byDigest, say(oci, image.Bytes), ""},
		{"by sha512", sha512, say(oci, image.Bytes), ""},
		{"media type with a parameter", byTag, say(oci+"; charset=utf-8", image.Bytes), ""},
		{"no media type", byTag, say("", image.Bytes), ""},
		{"other bytes for the digest", byDigest, say(oci, other.Bytes), registry.CodeDigestInvalid},
		{"other bytes, and the header agrees with the question", byDigest, say(oci, other.Bytes, "Docker-Content-Digest: "+string(image.Digest)), registry.CodeDigestInvalid},
		{"other bytes, and the header agrees with the bytes", byDigest, say(oci, other.Bytes, "Docker-Content-Digest: "+string(other.Digest)), registry.CodeDigestInvalid},
		{"other bytes for sha512", sha512, say(oci, other.Bytes), registry.CodeDigestInvalid},
		{"header lies about a tag", byTag, say(oci, image.Bytes, "Docker-Content-Digest: "+string(other.Digest)), registry.CodeDigestInvalid},
		{"web page", byTag, say("text/html", []byte("<html>sign in</html>")), registry.CodeManifestInvalid},
		{"nothing", byTag, say(oci, nil), registry.CodeManifestInvalid},
		{"no JSON", byTag, say(oci, []byte("{")), registry.CodeManifestInvalid},
		{"index that says it is an image", byTag, say(oci, registrytest.NewIndex(image).Bytes), registry.CodeManifestInvalid},
		{"too large", byTag, say(oci, append(bytes.Clone(image.Bytes), bytes.Repeat([]byte(" "), registry.MaxManifestSize)...)), registry.CodeManifestInvalid},
		{"endless", byTag, endless, registry.CodeManifestInvalid},
		{"schema 1", byTag, say("application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1,"name":"a","tag":"b"}`)), registry.CodeManifestInvalid},
		{"gone", byTag, func(w http.ResponseWriter, _ *http.Request) { refuse(w, registry.ErrManifestUnknown) }, registry.CodeManifestUnknown},
		{"repository gone", byTag, func(w http.ResponseWriter, _ *http.Request) { refuse(w, registry.ErrNameUnknown) }, registry.CodeNameUnknown},
		{"denied", byTag, func(w http.ResponseWriter, _ *http.Request) { refuse(w, registry.ErrDenied) }, registry.CodeDenied},
		{"overloaded", byTag, func(w http.ResponseWriter, _ *http.Request) { refuse(w, registry.ErrTooManyRequests) }, registry.CodeUnavailable},
		{"away", byTag, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, registry.CodeUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := connect(t, start(t, "127.0.0.1", tt.handler), nil)
			m, err := p.GetManifest(t.Context(), "acme/app", tt.ref)
			if tt.code != "" {
				wantCode(t, err, tt.code, "")
				return
			}
			if err != nil || !bytes.Equal(m.Bytes, image.Bytes) || m.MediaType != oci || m.Size != image.Size {
				t.Fatalf("%+v, %v", m.Descriptor, err)
			}
			if want := image.Digest; tt.ref != sha512 && m.Digest != want || tt.ref == sha512 && m.Digest != sha512.Digest {
				t.Errorf("digest %s", m.Digest)
			}
		})
	}
}

func TestResolveWhereHeadSaysNothing(t *testing.T) {
	image := registrytest.NewImage(1, 10)
	tests := map[string]http.HandlerFunc{
		"no head": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			say(image.MediaType, image.Bytes)(w, r)
		},
		"no digest":       say(image.MediaType, image.Bytes),
		"nonsense digest": say(image.MediaType, image.Bytes, "Docker-Content-Digest: abc"),
		"no length": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", string(image.Digest))
			w.Header().Set("Content-Type", image.MediaType)
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(image.Bytes)
		},
	}
	for name, h := range tests {
		t.Run(name, func(t *testing.T) {
			p := connect(t, start(t, "127.0.0.1", h), nil)
			d, err := p.ResolveManifest(t.Context(), "acme/app", registry.TagReference("1"))
			if name == "nonsense digest" { // then the header lies for GET too
				if err == nil && d.Digest != image.Digest {
					t.Errorf("%+v", d)
				}
				return
			}
			if err != nil || d.Digest != image.Digest || d.Size != image.Size || d.MediaType != image.MediaType {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}

// A cut manifest is an error at once, many times over: no slot leaks, and nothing hangs.
func TestCutManifest(t *testing.T) {
	image := registrytest.NewImage(1, 10)
	for _, reset := range []bool{false, true} {
		cut := true
		p := connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, _ *http.Request) {
			if !cut {
				say(image.MediaType, image.Bytes)(w, nil)
				return
			}
			conn, out, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			_, _ = fmt.Fprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", image.MediaType, image.Size, image.Bytes[:image.Size/2])
			_ = out.Flush()
			end(conn, reset)
		})), nil)
		for range 20 {
			_, err := p.GetManifest(t.Context(), "acme/app", registry.TagReference("1"))
			wantCode(t, err, registry.CodeUnavailable, "127.0.0.1")
		}
		cut = false
		start := time.Now()
		if _, err := p.GetManifest(t.Context(), "acme/app", registry.TagReference("1")); err != nil || time.Since(start) > time.Second {
			t.Errorf("after the cuts: %v in %v", err, time.Since(start))
		}
	}
}

// Cuts before and inside the header are tried once more by themselves; a parent that does nothing else is away.
func TestCutHeader(t *testing.T) {
	text := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
	for _, reset := range []bool{false, true} {
		for _, at := range []int{0, 1, len(text) / 2, len(text) - 1} {
			s := start(t, "127.0.0.1", handler(func(w http.ResponseWriter, _ *http.Request) {
				conn, out, err := http.NewResponseController(w).Hijack()
				if err != nil {
					panic(err)
				}
				_, _ = io.WriteString(out, text[:at])
				_ = out.Flush()
				end(conn, reset)
			}))
			p := connect(t, s, nil)
			_, err := p.GetManifest(t.Context(), "acme/app", registry.TagReference("1"))
			wantCode(t, err, registry.CodeUnavailable, "127.0.0.1")
			if n := len(s.lines()); n != 2 {
				t.Errorf("%d requests", n)
			}
		}
	}
}

func TestCancelIsTheCallersOwn(t *testing.T) {
	asked := make(chan struct{})
	p := connect(t, start(t, "127.0.0.1", handler(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})), nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	_, err := p.GetManifest(ctx, "acme/app", registry.TagReference("1"))
	if !errors.Is(err, context.Canceled) || errors.Is(err, registry.ErrUnavailable) {
		t.Error(err)
	}
}

func TestParentAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	_ = l.Close()
	hole := start(t, "127.0.0.1", handler(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	for name, endpoint := range map[string]string{"refused": gone, "black hole": hole.endpoint()} {
		t.Run(name, func(t *testing.T) {
			p, err := upstream.New(upstream.Options{Endpoint: endpoint, Protocol: "http", Transport: transport.ClientOptions{
				Timeouts: transport.Timeouts{Header: 50 * time.Millisecond},
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			image := registrytest.NewImage(1, 10)
			ctx, ref := t.Context(), registry.TagReference("1")
			calls := map[string]func() error{
				"manifest":     func() error { _, err := p.GetManifest(ctx, "a", ref); return err },
				"head":         func() error { _, err := p.ResolveManifest(ctx, "a", ref); return err },
				"blob":         func() error { _, err := readBlob(ctx, p, "a", image.Digest, 5); return err },
				"blob head":    func() error { _, err := p.ResolveBlob(ctx, "a", image.Digest); return err },
				"tags":         func() error { _, err := p.Tags(ctx, "a", "", 10); return err },
				"repositories": func() error { _, err := p.Repositories(ctx, "", 10); return err },
				"referrers":    func() error { _, err := p.Referrers(ctx, "a", image.Digest, ""); return err },
				"probe":        func() error { _, _, err := p.Probe(ctx); return err },
				"changes":      func() error { _, err := p.Changes(ctx, registry.ChangesRequest{}); return err },
			}
			for call, do := range calls {
				if err := do(); !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), endpoint) {
					t.Errorf("%s: %v", call, err)
				}
			}
		})
	}
}
