package upstream_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

func secretsIn(s string) bool {
	return strings.Contains(s, password) || strings.Contains(s, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func TestBasicIsAskedForOnce(t *testing.T) {
	reg, content := filled(t)
	s := start(t, "127.0.0.1", basic(serve(reg)))
	p := connect(t, s, login)
	for repo := range content.Repositories {
		if _, err := p.Tags(t.Context(), repo, "", 1000); err != nil {
			t.Fatal(err)
		}
	}
	if n, want := len(s.lines()), len(content.Repositories)+1; n != want {
		t.Errorf("%d requests for %d lists", n, want-1)
	}
}

func TestBadCredential(t *testing.T) {
	reg, _ := filled(t)
	wrong := func(o *upstream.Options) { o.Username, o.Password = user, "wrong" }
	for name, h := range map[string]http.Handler{"basic": basic(serve(reg)), "bearer": (&tokens{realm: "/token"}).wrap(serve(reg))} {
		for who, change := range map[string]func(*upstream.Options){"wrong": wrong, "none": nil} {
			t.Run(name+" "+who, func(t *testing.T) {
				s := start(t, "127.0.0.1", h)
				p := connect(t, s, change)
				for range 3 {
					_, _, err := p.Probe(t.Context())
					wantCode(t, err, registry.CodeUnauthorized, "127.0.0.1")
					_, err = p.GetManifest(t.Context(), "acme/app", registry.TagReference("1.0"))
					wantCode(t, err, registry.CodeUnauthorized, "127.0.0.1")
				}
			})
		}
	}
}

func TestRefusedTokenIsNotAskedForAgainAtOnce(t *testing.T) {
	reg, _ := filled(t)
	s := start(t, "127.0.0.1", (&tokens{realm: "/token"}).wrap(serve(reg)))
	now := time.Unix(0, 0)
	p := connect(t, s, func(o *upstream.Options) {
		o.Username, o.Password = user, "wrong"
		o.Clock = clock.Func(func() time.Time { return now })
	})
	asked := func() (n int) {
		for range 20 {
			_, err := p.Tags(t.Context(), "acme/app", "", 10)
			wantCode(t, err, registry.CodeUnauthorized, "")
		}
		for _, line := range s.lines() {
			if line == "GET /token" {
				n++
			}
		}
		return n
	}
	if n := asked(); n != 1 {
		t.Errorf("%d token requests in a minute", n)
	}
	now = now.Add(time.Minute)
	if n := asked(); n != 1 {
		t.Errorf("%d token requests in the next minute", n)
	}
}

func TestTokenEndsInTheMiddle(t *testing.T) {
	reg, content := filled(t)
	k := &tokens{realm: "/token"}
	s := start(t, "127.0.0.1", k.wrap(serve(reg)))
	now := time.Unix(0, 0)
	p := connect(t, s, func(o *upstream.Options) { login(o); o.Clock = clock.Func(func() time.Time { return now }) })
	repo, blob := someBlob(content)
	for i := range 3 {
		got, err := readBlob(t.Context(), p, repo, blob.Digest, 100)
		if err != nil || !bytes.Equal(got, blob.Bytes[100:]) {
			t.Fatalf("round %d: %d bytes, %v", i, len(got), err)
		}
		if _, err := p.GetManifest(t.Context(), repo, registry.TagReference("latest")); err != nil {
			t.Fatal(err)
		}
		k.set(func() { k.salt++ }) // the server was restarted; the client's token would be good for an hour
		now = now.Add(2 * time.Minute)
	}
	if k.given != 3 {
		t.Errorf("%d tokens given, want one for each life of the server", k.given)
	}
}

func TestTokensThatAreNeverTaken(t *testing.T) {
	k := &tokens{realm: "/token"}
	s := start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			k.give(w, r)
			return
		}
		w.Header().Set("Www-Authenticate", `Bearer realm="/token",service="reg",scope="repository:acme/app:pull"`)
		refuse(w, registry.ErrUnauthorized)
	}))
	now := time.Unix(0, 0)
	p := connect(t, s, func(o *upstream.Options) { login(o); o.Clock = clock.Func(func() time.Time { return now }) })
	known := 0
	for minute := range 3 {
		for range 10 {
			_, err := p.Tags(t.Context(), "acme/app", "", 10)
			wantCode(t, err, registry.CodeUnauthorized, "127.0.0.1")
			if n := k.given; errors.Is(err, registry.ErrNotGranted) != (n > known) {
				t.Errorf("%d tokens made for the request, and the error is %v", n-known, err)
			}
			known = k.given
		}
		if k.given > 2+minute {
			t.Errorf("%d tokens in minute %d", k.given, minute)
		}
		now = now.Add(time.Minute)
	}
}

// TestRightWithdrawn has a token server that gives tokens without the right to push: the error says that the credential is
// good, from the first request on and again with each token. Without the token server it is not known.
func TestRightWithdrawn(t *testing.T) {
	reg, content := filled(t)
	k := &tokens{realm: "/token"}
	read := k.wrap(serve(reg))
	s := start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" || r.Method == http.MethodGet || r.Method == http.MethodHead {
			read.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Www-Authenticate", `Bearer realm="/token",service="reg",scope="repository:acme/app:pull,push",error="insufficient_scope"`)
		refuse(w, registry.ErrUnauthorized.WithMessage("authentication required"))
	}))
	now := time.Unix(0, 0)
	p := connect(t, s, func(o *upstream.Options) { login(o); o.Clock = clock.Func(func() time.Time { return now }) })
	repo, _ := someBlob(content)
	m, err := p.GetManifest(t.Context(), repo, registry.TagReference("latest"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := p.PutManifest(t.Context(), repo, registry.TagReference("new"), m)
		wantCode(t, err, registry.CodeUnauthorized, "authentication required")
		if !errors.Is(err, registry.ErrNotGranted) {
			t.Errorf("error %v, want one that says that the credential is good", err)
		}
		now = now.Add(2 * time.Minute)
	}
	k.set(func() {
		k.answer = func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
	})
	_, err = p.PutManifest(t.Context(), repo, registry.TagReference("new"), m)
	wantCode(t, err, registry.CodeUnavailable, "")
}

func TestTokenServerAway(t *testing.T) {
	reg, _ := filled(t)
	k := &tokens{realm: "/token"}
	k.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "31536000")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	p := connect(t, start(t, "127.0.0.1", k.wrap(serve(reg))), login)
	for range 3 {
		_, err := p.Tags(t.Context(), "acme/app", "", 10)
		if e := wantCode(t, err, registry.CodeUnavailable, "503"); e.RetryAfter != 15*time.Minute {
			t.Errorf("retry after %v", e.RetryAfter)
		}
	}
}

func TestEndlessToken(t *testing.T) {
	reg, _ := filled(t)
	k := &tokens{realm: "/token"}
	k.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		_, _ = w.Write([]byte(`{"token":"`))
		for range 4 << 10 {
			if _, err := w.Write(bytes.Repeat([]byte("a"), 1024)); err != nil {
				break
			}
		}
		return true
	}
	p := connect(t, start(t, "127.0.0.1", k.wrap(serve(reg))), login)
	_, err := p.Tags(t.Context(), "acme/app", "", 10)
	wantCode(t, err, registry.CodeSizeInvalid, "1048576")
}

func TestHostileRealm(t *testing.T) {
	reg, content := filled(t)
	_, blob := someBlob(content)
	evil := start(t, "127.0.0.2", handler(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"token":"t"}`)) }))
	realms := map[string]string{
		"other host":           evil.URL + "/t",
		"user name":            "http://a:b@" + evil.endpoint() + "/t",
		"no scheme":            "//" + evil.endpoint() + "/t",
		"upper case":           "HTTP://" + evil.endpoint() + "/t",
		"look-alike":           "http://127.0.0.1.evil.example/t",
		"zone":                 "http://[fe80::1%25lo]:80/t",
		"metadata":             "http://169.254.169.254/latest/api/token",
		"other scheme":         "ftp://" + evil.endpoint() + "/t",
		"nonsense":             "http://[::1",
		"international":        "http://ｅvil.example/t",
		"control characters":   "http://evil.example/\x7f",
		"same host other port": "http://127.0.0.1:1/t",
	}
	for name, realm := range realms {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			s := start(t, "127.0.0.1", (&tokens{realm: realm}).wrap(serve(reg)))
			p := connect(t, s, func(o *upstream.Options) {
				login(o)
				o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			for range 2 {
				_, err := p.GetManifest(t.Context(), "acme/app", registry.TagReference("1.0"))
				if err == nil {
					t.Fatal("answered")
				}
				if name == "other host" {
					wantCode(t, err, registry.CodeDenied, "127.0.0.2")
				}
				if secretsIn(err.Error()) {
					t.Errorf("the error has the secret: %v", err)
				}
				if _, err := readBlob(t.Context(), p, "acme/base", blob.Digest, 0); err == nil {
					t.Error("blob without a token")
				}
				if _, _, err := p.Probe(t.Context()); err == nil {
					t.Error("probe without a token")
				}
			}
			if secretsIn(log.String()) {
				t.Errorf("the log has the secret: %s", log.String())
			}
			// Basic goes to the parent itself with the first question, which is what it is for.
		})
	}
	if got := evil.heard(); got != "" {
		t.Errorf("the other host was sent %q", got)
	}
}

func TestConfiguredRealm(t *testing.T) {
	reg, _ := filled(t)
	k := &tokens{}
	realm := start(t, "127.0.0.2", k.wrap(serve(reg)))
	k.realm = realm.URL + "/token"
	p := connect(t, start(t, "127.0.0.1", k.wrap(serve(reg))), func(o *upstream.Options) {
		login(o)
		o.Transport.Realms = []string{realm.URL}
	})
	if _, err := p.GetManifest(t.Context(), "acme/app", registry.TagReference("1.0")); err != nil {
		t.Fatal(err)
	}
}

func TestSecretPrintsAsStars(t *testing.T) {
	var o upstream.Options
	login(&o)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("options", "password", o.Password)
	if secretsIn(log.String()) {
		t.Error(log.String())
	}
}
