package access

import (
	"bufio"
	"context"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// listener counts what comes to another address than the parent's, and whether it has a credential.
type listener struct {
	*httptest.Server
	hits, secrets atomic.Int64
}

// elsewhere listens on another loopback address.
func elsewhere(t *testing.T, answer http.HandlerFunc) *listener {
	t.Helper()
	l := &listener{}
	l.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.hits.Add(1)
		if r.Header.Get("Authorization") != "" || strings.Contains(r.URL.String(), "hunter2") {
			l.secrets.Add(1)
		}
		if answer != nil {
			answer(w, r)
		}
	}))
	var err error
	l.Listener, err = net.Listen("tcp", "127.0.0.2:0")
	must(t, err)
	l.Start()
	t.Cleanup(l.Close)
	return l
}

// below is the parent of a registry as that one sees it.
func below(t *testing.T, h http.Handler) *upstream.Parent {
	t.Helper()
	parent := httptest.NewServer(h)
	t.Cleanup(parent.Close)
	p, err := upstream.New(upstream.Options{
		Endpoint: strings.TrimPrefix(parent.URL, "http://"), Protocol: "http", Username: "lower", Password: "hunter2", Name: "lower", InstanceID: "1",
	})
	must(t, err)
	t.Cleanup(p.Close)
	return p
}

// TestCVE is one test for each class of faults that other registries had; those of slow clients, TLS and HTTP/2 are in
// TestFloods.
func TestCVE(t *testing.T) {
	for name, f := range map[string]func(*testing.T){
		"credential to a hostile realm":           hostileRealm, // CVE-2026-33540, CVE-2020-15157, CVE-2019-10214
		"credential on a redirect":                redirect,     // CVE-2026-49349, CVE-2026-50151, CVE-2024-45336
		"SSRF through foreign layers":             foreignLayers,
		"digest that is not verified":             digestNotVerified, // CVE-2026-85747, CVE-2025-24882, CVE-2024-3727
		"manifest and index confused":             confusedTypes,     // CVE-2021-41190
		"scope confused, delete is not push":      deleteIsNotPush,   // CVE-2026-61833, CVE-2026-31801, CVE-2026-41888
		"scope confused, blob of another":         blobOfAnother,     // CVE-2024-39897
		"scope confused, upload of another":       uploadOfAnother,   // CVE-2026-32589
		"scope confused, right that was revoked":  revoked,           // CVE-2025-23208
		"scope confused, catalog":                 catalogIsFiltered, // CVE-2020-29662
		"token with the attacker's key":           attackersKey,      // CVE-2025-24976, CVE-2020-26160, CVE-2016-9122
		"unbounded input":                         unbounded,         // CVE-2017-11468, CVE-2023-2253, CVE-2025-30204
		"path traversal":                          traversal,         // CVE-2024-3727, CVE-2021-32760
		"exposed local cache":                     exposed,           // CVE-2026-96577, CVE-2024-25621, CVE-2021-41091
		"timing of passwords":                     timing,            // CVE-2023-20902
		"log injection":                           logInjection,      // CVE-2025-48374, CVE-2026-42507
		"blob that is back after its delete":      backAfterDelete,   // CVE-2026-35172
		"body that a check does not see":          oversizedBody,     // CVE-2024-41110, CVE-2026-34040
		"signatures, rollback":                    rolledBack,        // CVE-2024-23332
		"signatures, parse failure":               unreadSignature,   // CVE-2026-39395, CVE-2026-22703
		"signatures, changed on the way":          sameBytes,         // CVE-2022-36056, CVE-2024-56138
		"signatures, a disk that fails":           failingDisk,       // CVE-2024-51491
		"signatures, parent away":                 unknownSignatures, // CVE-2024-51491
		"duplicate credentials, first or second?": twoCredentials,
		"modules older than their repairs":        oldModules, // CVE-2025-10543, CVE-2024-35255, CVE-2024-6104, CVE-2025-65637, CVE-2025-22870
	} {
		t.Run(name, f)
	}
}

func hostileRealm(t *testing.T) {
	thief := elsewhere(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"token":"x"}`) })
	p := below(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="`+thief.URL+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	_, _, err := p.Probe(t.Context())
	_, err2 := p.GetManifest(t.Context(), "acme/app", registry.TagReference("1"))
	if err == nil || err2 == nil || thief.secrets.Load() > 0 {
		t.Errorf("%v, %v; %d requests elsewhere had the credential", err, err2, thief.secrets.Load())
	}
}

func redirect(t *testing.T) {
	thief := elsewhere(t, nil)
	p := below(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	b, err := p.GetBlob(t.Context(), "acme/app", registry.Digest(absent))
	if err == nil {
		_, err = io.ReadAll(b)
		_ = b.Close()
	}
	_ = p.Report(t.Context(), registry.LayerReport{})
	_ = p.Activate(t.Context(), "1", false)
	if thief.secrets.Load() > 0 || err == nil {
		t.Errorf("%v; %d requests elsewhere had the credential", err, thief.secrets.Load())
	}
}

func foreignLayers(t *testing.T) {
	thief := elsewhere(t, nil)
	s := start(t, document(registry.ReadWrite), nil)
	config := s.push(t, "all", "acme/app", "{}")
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},
		"layers":[{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":%q,"size":9,"urls":[%q]}]}`, config, absent, thief.URL+"/layer")
	a := s.ask(request{method: "PUT", path: "/v2/acme/app/manifests/foreign", user: "all", password: "pw-all", body: manifest, contentType: "application/vnd.oci.image.manifest.v1+json"})
	s.ask(request{method: "GET", path: "/v2/acme/app/blobs/" + absent, user: "all", password: "pw-all"})
	if thief.hits.Load() > 0 || a.status >= 500 {
		t.Errorf("%d %s; the address in the manifest was asked %d times", a.status, a.body, thief.hits.Load())
	}
}

func digestNotVerified(t *testing.T) {
	p := below(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", indexType)
		w.Header().Set("Docker-Content-Digest", digest(empty)) // it says so
		_, _ = io.WriteString(w, empty+" ")
	}))
	if _, err := p.GetManifest(t.Context(), "acme/app", registry.DigestReference(registry.Digest(digest(empty)))); !errors.Is(err, registry.ErrDigestInvalid) {
		t.Errorf("other bytes under a digest: %v", err)
	}
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	for _, d := range []string{absent, "sha256:../../../../etc/passwd", "sha256:" + strings.ToUpper(digest("x")[7:]), "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		a := s.ask(request{method: "PUT", path: "/v2/acme/app/manifests/" + d, user: "all", password: "pw-all", body: empty, contentType: indexType})
		if a.status < 400 || a.status >= 500 {
			t.Errorf("push to %s: %d", d, a.status)
		}
	}
}

func confusedTypes(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	both := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"config":{"mediaType":"x/y","digest":"` + absent + `","size":1},"layers":[]}`
	for what, r := range map[string]request{
		"manifests and layers in one": {body: both, contentType: indexType},
		"another type in the header":  {body: empty, contentType: "application/vnd.oci.image.manifest.v1+json"},
		"a key that stands twice":     {body: strings.Replace(empty, `"manifests"`, `"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests"`, 1), contentType: indexType},
	} {
		r.method, r.path, r.user, r.password = "PUT", "/v2/acme/app/manifests/x", "all", "pw-all"
		if a := s.ask(r); a.status != http.StatusBadRequest || a.code != registry.CodeManifestInvalid {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
}

// ready waits until the document is in force.
func (s *site) ready() {
	s.t.Helper()
	s.until("the document is in force", func() bool {
		return s.ask(request{method: "GET", path: "/v2/", user: "all", password: "pw-all"}).status == http.StatusOK
	})
}

// push uploads a blob in one request.
func (s *site) push(t *testing.T, user, repo, content string) string {
	t.Helper()
	s.ready()
	d := digest(content)
	a := s.ask(request{method: "POST", path: "/v2/" + repo + "/blobs/uploads/?digest=" + d, user: user, password: "pw-" + user, body: content, contentType: "application/octet-stream"})
	if a.status == http.StatusAccepted {
		a = s.ask(request{
			method: "PUT", path: a.header.Get("Location") + "?digest=" + d, user: user, password: "pw-" + user, body: content, contentType: "application/octet-stream",
		})
	}
	if a.status != http.StatusCreated {
		t.Fatalf("blob: %d %s", a.status, a.body)
	}
	return d
}

func deleteIsNotPush(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	put := s.ask(request{method: "PUT", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all", body: empty, contentType: indexType})
	for _, path := range []string{"/v2/acme/app/manifests/v1", "/v2/acme/app/manifests/" + digest(empty), "/acr/v1/acme/app", "/acr/v1/acme/app/_tags/v1"} {
		if a := s.ask(request{method: "DELETE", path: path, user: "only-content-write", password: "pw-only-content-write"}); a.status != http.StatusForbidden {
			t.Errorf("DELETE %s with content/write alone: %d", path, a.status)
		}
	}
	if a := s.ask(request{method: "GET", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all"}); put.status != 201 || a.status != http.StatusOK {
		t.Errorf("it is gone: %d", a.status)
	}
}

func blobOfAnother(t *testing.T) {
	doc := document(registry.ReadWrite)
	s := start(t, doc, nil)
	d := s.push(t, "all", "acme/app", "a secret of acme/app")
	for what, r := range map[string]request{
		"read in the own repository": {method: "GET", path: "/v2/acme/other/blobs/" + d},
		"head":                       {method: "HEAD", path: "/v2/acme/other/blobs/" + d},
		"read where it is":           {method: "GET", path: "/v2/acme/app/blobs/" + d},
		"mount":                      {method: "POST", path: "/v2/acme/other/blobs/uploads/?mount=" + d + "&from=acme/app"},
		"mount from anywhere":        {method: "POST", path: "/v2/acme/other/blobs/uploads/?mount=" + d},
	} {
		r.user, r.password = "elsewhere", "pw-elsewhere"
		if a := s.ask(r); a.status == http.StatusOK || a.status == http.StatusCreated {
			t.Errorf("%s: %d", what, a.status)
		}
	}
}

func uploadOfAnother(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	a := s.ask(request{method: "POST", path: "/v2/acme/app/blobs/uploads/", user: "all", password: "pw-all"})
	at := a.header.Get("Location")
	for _, user := range []string{"everywhere", "only-content-write"} {
		for _, path := range []string{at, strings.Replace(at, "acme/app", "acme/other", 1)} {
			for _, method := range []string{"GET", "PATCH", "DELETE"} {
				if got := s.ask(request{method: method, path: path, user: user, password: "pw-" + user, body: map[bool]string{true: "x"}[method == "PATCH"]}); got.status < 400 {
					t.Errorf("%s %s as %s: %d", method, path, user, got.status)
				}
			}
		}
	}
	if got := s.ask(request{method: "GET", path: at, user: "all", password: "pw-all"}); got.status != http.StatusNoContent {
		t.Errorf("the owner's session: %d", got.status)
	}
}

func revoked(t *testing.T) {
	doc := document(registry.ReadWrite)
	s := start(t, doc, nil)
	s.ready()
	bearer := s.token("all", "pw-all", "registry:catalog:*", "repository:acme/app:pull")
	if a := s.ask(request{method: "GET", path: "/v2/_catalog", bearer: bearer}); a.status != http.StatusOK {
		t.Fatalf("before: %d", a.status)
	}
	delete(doc["clientTokens"].(map[string]any), "all")
	s.configure(doc)
	s.until("Basic is refused", func() bool {
		return s.ask(request{method: "GET", path: "/v2/", user: "all", password: "pw-all"}).status == http.StatusUnauthorized
	})
	if a := s.ask(request{method: "GET", path: "/v2/_catalog", bearer: bearer}); a.status != http.StatusUnauthorized {
		t.Errorf("an access token outlives its client token: %d", a.status)
	}
}

func catalogIsFiltered(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	s.ask(request{method: "PUT", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all", body: empty, contentType: indexType})
	for user, sees := range map[string]bool{"all": true, "elsewhere": false, "nothing": false, "only-content-read": false} {
		for _, path := range []string{"/v2/_catalog", "/acr/v1/_catalog"} {
			if a := s.ask(request{method: "GET", path: path, user: user, password: "pw-" + user}); strings.Contains(a.body, "acme/app") != sees {
				t.Errorf("%s as %s: %s", path, user, a.body)
			}
		}
	}
}

func attackersKey(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	good := strings.Split(s.token("all", "pw-all", "repository:acme/app:pull"), ".")
	part := func(v map[string]any) string {
		raw, err := json.Marshal(v)
		must(t, err)
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	var header map[string]any
	raw, err := base64.RawURLEncoding.DecodeString(good[0])
	must(t, err)
	must(t, json.Unmarshal(raw, &header))
	for what, token := range map[string]string{
		"alg none":            part(map[string]any{"alg": "none", "typ": "JWT", "kid": header["kid"]}) + "." + good[1] + ".",
		"a jwk in the header": part(map[string]any{"alg": "HS256", "kid": header["kid"], "jwk": map[string]any{"kty": "oct", "k": "AAAA"}}) + "." + good[1] + "." + good[2],
		"other claims":        good[0] + "." + part(map[string]any{"sub": "all", "exp": 4102444800}) + "." + good[2],
		"no signature":        good[0] + "." + good[1] + ".",
		"many parts":          strings.Repeat("a.", 10_000),
	} {
		if a := s.ask(request{method: "GET", path: "/v2/", bearer: token}); a.status != http.StatusUnauthorized {
			t.Errorf("%s: %d", what, a.status)
		}
	}
}

func unbounded(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	for what, tt := range map[string]struct {
		r    request
		want []int
	}{
		"a manifest of 5 MiB":  {request{method: "PUT", path: "/v2/acme/app/manifests/x", body: strings.Repeat(" ", 5<<20), contentType: indexType}, []int{413}},
		"a page of a billion":  {request{method: "GET", path: "/v2/_catalog?n=1000000000"}, []int{200, 400}},
		"a page of minus one":  {request{method: "GET", path: "/v2/_catalog?n=-1"}, []int{400}},
		"a form of 1 MiB":      {request{method: "POST", path: "/acr/oauth2/token", body: "grant_type=" + strings.Repeat("x", 1<<20), contentType: "application/x-www-form-urlencoded"}, []int{400}},
		"a thousand scopes":    {request{method: "GET", path: "/acr/oauth2/token?" + strings.Repeat("scope=a:b:c&", 1000)}, []int{400}},
		"a report of 5 MiB":    {request{method: "PUT", path: "/v2/_connected/v1/status", body: `{"x":"` + strings.Repeat("x", 5<<20)}, []int{400, 403}},
		"a patch of 1 MiB":     {request{method: "PATCH", path: "/acr/v1/acme/app", body: `{"x":"` + strings.Repeat("x", 1<<20)}, []int{400}},
		"a header of 100 KiB":  {request{method: "GET", path: "/v2/", header: map[string]string{"X-Long": strings.Repeat("x", 100<<10)}}, []int{431}},
		"a thousand repositor": {request{method: "GET", path: "/v2/_connected/v1/changes?" + strings.Repeat("repository=a&", 1001)}, []int{400}},
	} {
		tt.r.user, tt.r.password = "all", "pw-all"
		a := s.ask(tt.r)
		ok := false
		for _, w := range tt.want {
			ok = ok || a.status == w
		}
		if !ok || len(a.body) > 1<<20 {
			t.Errorf("%s: %d with %d bytes, want %v", what, a.status, len(a.body), tt.want)
		}
	}
}

func traversal(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	for _, path := range []string{
		"/v2/../../etc/manifests/passwd", "/v2/acme%2f..%2f..%2fetc/manifests/x", "/v2/acme/../../x/blobs/" + absent, "/v2/acme/app/blobs/sha256:..%2f..%2fmeta.db",
		"/v2/acme/app/manifests/..%2f..%2fx", "/v2/%2e%2e/%2e%2e/manifests/x", "/v2/acme/app/blobs/uploads/..%2f..%2fmeta.db", "/acr/v1/..%2f..%2fx/_tags",
	} {
		for _, method := range []string{"GET", "PUT", "PATCH", "DELETE"} {
			// Written by hand: a client would tidy the path.
			conn, err := net.Dial("tcp", s.addr)
			must(t, err)
			auth := base64.StdEncoding.EncodeToString([]byte("everywhere:pw-everywhere"))
			_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Basic %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", method, path, auth)
			must(t, err)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			must(t, err)
			if resp.StatusCode < 400 || resp.StatusCode >= 500 {
				t.Errorf("%s %s: %d", method, path, resp.StatusCode)
			}
			must(t, resp.Body.Close())
			must(t, conn.Close())
		}
	}
	must(t, filepath.WalkDir(s.dir, func(p string, _ fs.DirEntry, err error) error {
		if strings.Contains(p, "passwd") {
			t.Errorf("%s was made", p)
		}
		return err
	}))
}

func exposed(t *testing.T) {
	s := start(t, map[string]any{"schemaVersion": "1.0", "mode": "ReadWrite"}, nil)
	for _, r := range []request{
		{method: "GET", path: "/v2/"},
		{method: "GET", path: "/v2/_catalog"},
		{method: "PUT", path: "/v2/a/manifests/x", body: empty, contentType: indexType},
		{method: "DELETE", path: "/v2/a/manifests/x"},
		{method: "GET", path: "/acr/v1/_catalog"},
		{method: "GET", path: "/acr/oauth2/token?scope=repository:a:pull"},
		{method: "GET", path: "/v2/_connected/v1/"},
		{method: "PUT", path: "/v2/_connected/v1/activation"},
	} {
		if a := s.ask(r); a.status != http.StatusUnauthorized {
			t.Errorf("%s %s of a registry without tokens: %d", r.method, r.path, a.status)
		}
	}
	for _, path := range []string{"/healthz", "/status", "/metrics", "/debug/pprof/", "/methods/gc", "/control"} {
		if a := s.ask(request{method: "GET", path: path}); a.status == http.StatusOK {
			t.Errorf("%s answers on the service address", path)
		}
	}
	must(t, filepath.WalkDir(s.data, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v", p, info.Mode())
		}
		return err
	}))
	// Anonymous pull is a flag of the machine, and never more than pull.
	s = start(t, document(registry.ReadWrite), func(o *module.Options) { o.AnonymousPull = true })
	for _, r := range []request{
		{method: "PUT", path: "/v2/a/manifests/x", body: empty, contentType: indexType}, {method: "POST", path: "/v2/a/blobs/uploads/"}, {method: "DELETE", path: "/v2/a/manifests/x"},
	} {
		if a := s.ask(r); a.status != http.StatusUnauthorized {
			t.Errorf("%s %s with anonymous pull: %d", r.method, r.path, a.status)
		}
	}
}

// timing: the answers to a name that there is and to one that there is not take the same time, as far as that can be
// measured over a connection.
func timing(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	ask := func(user string) time.Duration {
		began := time.Now()
		s.ask(request{method: "GET", path: "/v2/", user: user, password: strings.Repeat("x", 43)})
		return time.Since(began)
	}
	best := map[string]time.Duration{"all": time.Hour, "ghost": time.Hour}
	for range 300 {
		for user := range best {
			best[user] = min(best[user], ask(user))
		}
	}
	if d := (best["all"] - best["ghost"]).Abs(); d > best["all"]/2+50*time.Microsecond {
		t.Errorf("a name that there is takes %v, one that there is not %v", best["all"], best["ghost"])
	}
}

func logInjection(t *testing.T) {
	doc := document(registry.ReadWrite)
	doc["logging"] = map[string]any{"auditLogStatus": "Enabled"}
	s := start(t, doc, nil)
	s.ready()
	evil := "x\n{\"seq\":1,\"operation\":\"forged\"}\n\x1b[31m"
	s.ask(request{method: "GET", path: "/v2/", user: evil, password: "hunter2"})
	var lines []string
	s.until("the refusal is in the audit log", func() bool {
		raw, err := os.ReadFile(filepath.Join(s.data, "audit", "audit.log"))
		lines = strings.Split(strings.TrimSpace(string(raw)), "\n")
		return err == nil && strings.Contains(string(raw), "there is no such token")
	})
	for _, line := range lines {
		var r registry.AuditRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Operation == "forged" || strings.ContainsAny(line, "\x1b") || strings.Contains(line, "hunter2") {
			t.Errorf("line %q: %v", line, err)
		}
	}
}

func backAfterDelete(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	d := s.push(t, "all", "acme/app", "to be deleted")
	get := request{method: "GET", path: "/v2/acme/app/blobs/" + d, user: "all", password: "pw-all"}
	del := get
	del.method = "DELETE"
	if a, b := s.ask(get), s.ask(del); a.status != 200 || b.status != 202 {
		t.Fatalf("get %d, delete %d", a.status, b.status)
	}
	for range 3 {
		if a := s.ask(get); a.status != http.StatusNotFound {
			t.Errorf("after its delete: %d", a.status)
		}
	}
}

func oversizedBody(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	for _, size := range []int{0, 1, 64 << 10, 2 << 20} {
		for _, r := range []request{
			{method: "PUT", path: "/v2/acme/app/manifests/x", contentType: indexType},
			{method: "DELETE", path: "/v2/acme/app/manifests/x"},
			{method: "PATCH", path: "/acr/v1/acme/app", contentType: "application/json"},
		} {
			r.user, r.password, r.body = "only-content-read", "pw-only-content-read", strings.Repeat("x", size)
			if a := s.ask(r); a.status != http.StatusForbidden {
				t.Errorf("%s %s with %d bytes: %d", r.method, r.path, size, a.status)
			}
		}
	}
}

func twoCredentials(t *testing.T) {
	s := start(t, document(registry.ReadWrite), nil)
	s.ready()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+"/v2/", http.NoBody)
	must(t, err)
	good := "Basic " + base64.StdEncoding.EncodeToString([]byte("all:pw-all"))
	for _, both := range [][]string{{good, "Basic eDp5"}, {"Basic eDp5", good}, {good, good}} {
		req.Header["Authorization"] = both
		resp, err := s.http.Do(req)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%q: %d", both, resp.StatusCode)
		}
	}
}

// oldModules looks into the binary, which knows what it was made of.
func oldModules(t *testing.T) {
	info, err := buildinfo.ReadFile(built(t))
	must(t, err)
	number := func(version string) (n [3]int) {
		_, _ = fmt.Sscanf(version, "v%d.%d.%d", &n[0], &n[1], &n[2]) // what is no number is 0, and too old
		return n
	}
	floors := map[string]string{
		"github.com/eclipse/paho.mqtt.golang":              "v1.5.1",
		"github.com/Azure/azure-sdk-for-go/sdk/azidentity": "v1.6.0",
		"github.com/hashicorp/go-retryablehttp":            "v0.7.7",
		"github.com/sirupsen/logrus":                       "v1.9.3",
		"github.com/golang-jwt/jwt/v5":                     "v5.2.2",
		"github.com/regclient/regclient":                   "v0.11.7",
		"golang.org/x/net":                                 "v0.36.0",
		"golang.org/x/crypto":                              "v0.35.0",
	}
	for _, d := range info.Deps {
		floor, ok := floors[d.Path]
		have, least := number(d.Version), number(floor)
		if ok && slices.Compare(have[:], least[:]) < 0 {
			t.Errorf("%s %s: want at least %s", d.Path, d.Version, floor)
		}
		delete(floors, d.Path)
	}
	t.Logf("not in the binary: %v", slices.Collect(maps.Keys(floors)))
	if len(floors) > 3 {
		t.Error("most of the modules are not in the binary: their names are wrong here")
	}
}

// TestBadLoginsSlowNobody: a thousand wrong passwords a client beside one that pulls.
func TestBadLoginsSlowNobody(t *testing.T) {
	doc := document(registry.ReadWrite)
	doc["logging"] = map[string]any{"auditLogStatus": "Enabled"}
	s := start(t, doc, nil)
	d := s.push(t, "all", "acme/app", strings.Repeat("layer", 1000))
	pull := func() time.Duration {
		began := time.Now()
		if a := s.ask(request{method: "GET", path: "/v2/acme/app/blobs/" + d, user: "all", password: "pw-all"}); a.status != http.StatusOK {
			t.Errorf("pull: %d", a.status)
		}
		return time.Since(began)
	}
	quickest := func(until context.Context) (best time.Duration, n int) {
		best = time.Hour
		for n < 50 || until.Err() == nil && n < 2000 {
			best = min(best, pull())
			n++
		}
		return best, n
	}
	ended, end := context.WithCancel(t.Context())
	end()
	alone, _ := quickest(ended)
	var bad sync.WaitGroup
	guessing, stop := context.WithCancel(t.Context())
	defer stop()
	for range 4 {
		bad.Go(func() {
			for i := range 250 {
				if a := s.ask(request{method: "GET", path: "/v2/", user: "all", password: fmt.Sprint(i)}); a.status != http.StatusUnauthorized {
					t.Errorf("a wrong password: %d", a.status)
				}
			}
		})
	}
	go func() { bad.Wait(); stop() }()
	beside, n := quickest(guessing)
	bad.Wait()
	t.Logf("a pull takes %v alone, %v beside 1,000 bad logins (best of %d)", alone, beside, n)
	if beside > 5*alone+5*time.Millisecond {
		t.Errorf("a pull takes %v alone and %v beside bad logins", alone, beside)
	}
	raw, err := os.ReadFile(filepath.Join(s.data, "audit", "audit.log"))
	must(t, err)
	if lines := strings.Count(string(raw), "wrong password"); lines > 100 || lines < 10 {
		t.Errorf("%d lines of the audit log for 1,000 bad logins, want them bounded", lines)
	}
}
