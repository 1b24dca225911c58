package hostile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

// generator makes requests that are nearly right. What it learns from answers replaces strings, never what it draws, so
// that a seed draws the same requests in every run.
type generator struct {
	*rand.Rand
	repos, digests, refs, ids, tokens []string
	manifests                         [][]byte
	blobs                             []registrytest.Blob // of the first manifest
}

func newGenerator(seed uint64, worker int, s *site) *generator {
	return &generator{
		Rand:  rand.New(rand.NewPCG(seed, uint64(worker))),
		repos: []string{"hostile/app", "hostile/app", "hostile/app", "hostile/app", "hostile/app", "hostile/app", "hostile/b", "hostile/b", "acme/app", "acme/app", "secret", "absent", "blobs/uploads", "a/manifests/b", "../x", "_connected/v1", strings.Repeat("a/", 127) + "a"},
		blobs: s.image.Blobs,
		digests: []string{
			"sha256:" + strings.Repeat("0", 64), s.image.Digest.String(), s.image.Blobs[1].Digest.String(), s.index.Digest.String(),
			"sha512:" + strings.Repeat("a", 128), "sha256:", "sha256:" + strings.Repeat("A", 64), "md5:d41d8cd98f00b204e9800998ecf8427e",
		},
		refs:      []string{"v1", "multi", "docker", s.image.Digest.String(), s.index.Digest.String(), "sha256-" + strings.Repeat("0", 64), ".x", strings.Repeat("t", 129), "latest"},
		ids:       []string{"x", "..", strings.Repeat("i", 200), "x", "x", "x"},
		tokens:    []string{"x", "a.b.c", strings.Repeat("A", 3000), "x"},
		manifests: [][]byte{s.image.Bytes, s.index.Bytes, []byte(strings.Repeat(`{"manifests":[`, 500)), []byte(`{"schemaVersion":2,"manifests":[],"layers":[],"config":null}`), bytes.Repeat([]byte("["), 5000)},
	}
}

func (g *generator) pick(list ...string) string { return list[g.IntN(len(list))] }

// spoil changes a few bytes of a string, or nothing.
func (g *generator) spoil(s string) string {
	b := []byte(s)
	for g.IntN(6) == 0 && len(b) > 0 {
		i := g.IntN(len(b))
		switch g.IntN(5) {
		case 0:
			b[i] = byte(g.IntN(256))
		case 1:
			b = append(b[:i], b[i+1:]...)
		case 2:
			b = append(b[:i], append([]byte(g.pick("/", "..", "%00", "%2f", "//", "*", ":", "sha256:", "A", "-", "\x00", "é", "?", "&", "=", "\n{\"level\":\"info\"}", "%0d%0a", "\\", "../../../../etc/passwd")), b[i:]...)...)
		case 3:
			b = append(b, b[i:]...)
		case 4:
			b = bytes.ToUpper(b)
		}
	}
	return string(b)
}

// request is one request with a right framing, so that there is an answer to it.
type request struct {
	method, target string
	header         [][2]string
	body           []byte
	chunked        bool
}

// next draws a request to one of the APIs.
func (g *generator) next() request {
	if g.IntN(8) == 0 {
		return g.good()
	}
	var r request
	var query string
	switch g.IntN(12) {
	case 0, 1:
		r.method, r.target, query, r.body = g.azure()
	case 2:
		r.method, r.target, query, r.body = g.token()
	case 3:
		r.method, r.target, query, r.body = g.layer()
	case 4:
		r.method, r.target = "GET", g.pick("/", "/v2", "/v2/", "/v2//", "/v2/_catalog", "/v1/", "/v2/_catalog/", "/v2/..", "//", "/metrics", "/healthz", "/status", "/debug/pprof/", "/..%2f..%2fetc/passwd", "/v2/%2e%2e/%2e%2e/etc")
	default:
		r.method, r.target, query, r.body = g.oci()
	}
	if g.IntN(10) == 0 {
		r.method = g.pick("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "X", "PROPFIND")
	}
	r.target = escape(g.spoil(r.target), "%?#") + query
	if !strings.HasPrefix(r.target, "/") {
		r.target = "/" + r.target
	}
	r.chunked = len(r.body) > 0 && g.IntN(2) == 0
	r.header = g.headers(r.target)
	if strings.Contains(r.target, "/blobs/") && g.IntN(3) == 0 {
		key := "Range"
		if r.method != "GET" && r.method != "HEAD" {
			key = "Content-Range"
		}
		r.header = append(r.header, [2]string{key, g.pick("bytes=0-", "bytes=1-2", "bytes=99999-", "bytes=-5", "bytes=-0", "bytes=0-0,2-3", "bytes=5-1", "lines=1", "0-99", "0-299", "300-599", "7-9", "5-", "9-0", "18446744073709551616-1")})
	}
	if bytes.Equal(r.body, g.manifests[0]) {
		r.header = append(r.header, [2]string{"Content-Type", registry.MediaTypeImageManifest})
	} else if bytes.Equal(r.body, g.manifests[1]) {
		r.header = append(r.header, [2]string{"Content-Type", registry.MediaTypeImageIndex})
	} else if strings.HasSuffix(r.target, "/token") || strings.HasSuffix(r.target, "/exchange") {
		r.header = append(r.header, [2]string{"Content-Type", "application/x-www-form-urlencoded"})
	}
	return r
}

// good draws a request that nothing is wrong with, so that there is something to spoil.
func (g *generator) good() request {
	r := request{header: [][2]string{{"Authorization", basic(mallory, mallory)}}, chunked: g.IntN(2) == 0}
	const at = "/v2/hostile/app/"
	switch i := g.IntN(len(g.blobs) + 5); {
	case i < len(g.blobs):
		r.method, r.target, r.body = "POST", at+"blobs/uploads/?digest="+g.blobs[i].Digest.String(), g.blobs[i].Bytes
	case i == len(g.blobs):
		r.method, r.target = "POST", at+"blobs/uploads/"
		if g.IntN(2) == 0 { // a pull of what was pushed
			r.method, r.target = "GET", at+"blobs/"+g.blobs[0].Digest.String()
			r.header = append(r.header, [2]string{"Range", g.pick("bytes=0-9", "bytes=99999-", "bytes=5-1", "bytes=-1", "bytes=0-0,5-6")})
		}
	case i == len(g.blobs)+1:
		r.method, r.target, r.body = "PATCH", at+"blobs/uploads/"+g.pick(g.ids...), g.blobs[0].Bytes
	case i == len(g.blobs)+2:
		r.method, r.target = "PUT", at+"blobs/uploads/"+g.pick(g.ids...)+"?digest="+g.blobs[0].Digest.String()
	case i == len(g.blobs)+3:
		r.method, r.target = "GET", "/acr/oauth2/token?service=x&offline_token=true&scope=repository:hostile/app:pull,push,delete"
	default:
		r.method, r.target, r.body = "PUT", at+"manifests/v1", g.manifests[0]
		r.header = append(r.header, [2]string{"Content-Type", registry.MediaTypeImageManifest})
	}
	return r
}

// oci draws from /v2/.
func (g *generator) oci() (method, path, query string, body []byte) {
	repo := g.pick(g.repos...)
	switch g.IntN(10) {
	case 0, 1:
		method, path = g.pick("GET", "GET", "GET", "HEAD", "HEAD", "DELETE"), "/v2/"+repo+"/blobs/"+g.pick(g.digests...)
	case 2, 3:
		method, path = g.pick("GET", "HEAD", "PUT", "PUT", "PUT", "DELETE"), "/v2/"+repo+"/manifests/"+g.pick(g.refs...)
	case 4:
		method, path = "POST", "/v2/"+repo+"/blobs/uploads/"
	case 5, 6:
		method, path = g.pick("GET", "PATCH", "PATCH", "PUT", "PUT", "DELETE", "DELETE"), "/v2/"+repo+"/blobs/uploads/"+g.pick(g.ids...)
	case 7:
		method, path = "GET", "/v2/"+repo+"/tags/list"
	default:
		method, path = "GET", "/v2/"+repo+"/referrers/"+g.pick(g.digests...)
	}
	query = g.query("n", "last", "digest", "mount", "from", "artifactType")
	switch g.IntN(5) {
	case 0, 1:
		body = bytes.Clone(g.manifests[g.IntN(len(g.manifests))])
		for g.IntN(3) == 0 {
			body = []byte(g.spoil(string(body)))
		}
	case 2:
		body = make([]byte, g.IntN(3000))
	case 3: // content that is whole
		if body = g.blobs[g.IntN(len(g.blobs))].Bytes; strings.Contains(path, "/uploads/") && method != "GET" {
			query = "?digest=" + digest.FromBytes(body).String()
		}
	}
	return method, path, query, body
}

// azure draws from /acr/v1/.
func (g *generator) azure() (method, path, query string, body []byte) {
	method = g.pick("GET", "GET", "GET", "HEAD", "PATCH", "PATCH", "DELETE")
	path = "/acr/v1/" + g.pick(g.repos...) + g.pick("", "/_tags", "/_tags/"+g.pick(g.refs...), "/_manifests", "/_manifests/"+g.pick(g.digests...), "/_tags_manifests", "/_tags/", "/x")
	if g.IntN(6) == 0 {
		path = "/acr/v1/" + g.pick("_catalog", "", "_catalog/", "../v2/", "_tags")
	}
	body = []byte(g.spoil(g.pick("", "{}", "[", `{"deleteEnabled":true}`, `{"readEnabled":false,"writeEnabled":null}`, `{"listEnabled":1}`, strings.Repeat("[", 5000), "\xff", strings.Repeat(" ", 20<<10))))
	return method, path, g.query("n", "last", "lastTime", "orderby", "digest", "api-version"), body
}

// token draws from the token endpoints.
func (g *generator) token() (method, path, query string, body []byte) {
	method, path = g.pick("GET", "GET", "POST", "POST", "POST"), g.pick("/acr/oauth2/token", "/oauth2/token", "/oauth2/exchange", "/acr/oauth2/token/")
	scope := "repository:" + g.pick(g.repos...) + ":" + g.pick("pull", "pull,push", "*", "delete", "metadata_read", "", ",,,")
	form := "grant_type=" + g.pick("password", "refresh_token", "access_token", "access_token_refresh_token", "", "x") + "&service=" + g.pick("x", "registry") +
		"&scope=" + g.pick(scope, scope+"%20"+scope, "registry:catalog:*", ":::", strings.Repeat("a:b:c%20", 200)) +
		"&username=" + g.pick(mallory, mallory, "nobody", "") + "&password=" + g.pick(mallory, mallory, "x", "") +
		"&" + g.pick("refresh_token", "access_token") + "=" + g.pick(g.tokens...) + g.pick("", "&access_type=offline", "&offline_token=true", "&%zz")
	form = g.spoil(form)
	if method == "POST" {
		return method, path, "", []byte(form)
	}
	return method, path, "?" + escape(form, "#"), nil
}

// layer draws what a child asks and tells its parent; it waits for no change for longer than an attack should take.
func (g *generator) layer() (method, path, query string, body []byte) {
	if g.IntN(2) == 0 {
		doc := g.spoil(g.pick(`{"name":"layer9","instanceId":"0123456789abcdef0123456789abcdef","mode":"ReadOnly","version":"1"}`, `{"connectedRegistries":[{"name":"layer9","parent":"layer9"}]}`,
			`{"connectedRegistries":[`+strings.Repeat(`{"name":"layer9","mode":"ReadOnly","connectionState":"Online"},`, 200)+`{}]}`, "[]", "null", "", "\xff", strings.Repeat("[", 4000), `{"operator":true}`))
		return g.pick("PUT", "PUT", "DELETE", "GET"), registry.LayerPath + g.pick("activation", "status", "tokens", "status/", "activation/x"), g.pick("", "?name=layer9", "?%zz"), []byte(doc)
	}
	query = "?wait=" + g.pick("", "0", "-1", "x", "99999999999999999999", "1e3") + "&since=" + escape(g.spoil(g.pick("", "0", "x", "1:2", strings.Repeat("9", 300))), "%&#")
	for range g.IntN(3) {
		query += "&repository=" + escape(g.spoil(g.pick(g.repos...)+g.pick("", "/*", "*", "**")), "%&#")
	}
	return g.pick("GET", "GET", "GET", "HEAD", "POST"), registry.LayerPath + g.pick("", "changes", "changes", "changes/", "x", "../_catalog"), strings.ReplaceAll(query, "wait=99999999999999999999&since=&", "wait=0&"), nil
}

// query draws parameters, some of them with the names that mean something.
func (g *generator) query(names ...string) string {
	switch g.IntN(6) {
	case 0:
		return "?" + g.pick(names...) + "=" + g.pick(g.digests...) + "&from=" + escape(g.pick(g.repos...), "")
	case 1:
	default:
		return ""
	}
	var parts []string
	for range 1 + g.IntN(3) {
		value := g.spoil(g.pick(append(append([]string{"0", "1", "-1", "99999999999999999999", "", "%zz", "timedesc", "timeasc", strings.Repeat("a", 2000)}, g.digests...), g.repos...)...))
		parts = append(parts, g.pick(append(names, "x")...)+"="+escape(value, "#"))
	}
	return "?" + strings.Join(parts, "&")
}

// headers draws who it is and up to four others.
func (g *generator) headers(target string) (h [][2]string) {
	switch n := g.IntN(20); {
	case strings.HasPrefix(target, registry.LayerPath) && n < 7: // as the child that is there
		h = append(h, [2]string{"Authorization", basic(child, child)})
	case n == 0:
	case n == 1:
		h = append(h, [2]string{"Authorization", g.pick(basic("nobody", "x"), basic(mallory, "x"), "Basic ###", "Basic", "Digest x", "Bearer", "bearer x", strings.Repeat("B", 9000))})
	case n < 6:
		h = append(h, [2]string{"Authorization", "Bearer " + g.pick(g.tokens...)})
	default:
		h = append(h, [2]string{"Authorization", basic(mallory, mallory)})
	}
	for range g.IntN(4) {
		key := g.pick("Range", "Content-Range", "Content-Type", "If-None-Match", "If-Match", "If-Range", "Accept", "Accept-Encoding", "X-Forwarded-Host", "X-Forwarded-Proto", "Expect", registry.HeaderChildMode, registry.HeaderChildInstance, "Cookie")
		value := g.pick("bytes=0-", "bytes=5-1", "0-99", "0-0", "bytes=-1,-1,-1", "-1-5", "9223372036854775807-9223372036854775807", "*", `"x"`, `W/"`, "application/json; charset",
			"application/x-www-form-urlencoded", "gzip", registry.MediaTypeImageManifest, registry.MediaTypeImageIndex, registry.MediaTypeDockerManifest, strings.Repeat("0-1,", 500), "ReadWrite", "evil.example/\t\"'<>")
		if key == "Expect" {
			value = "100-continue"
		}
		h = append(h, [2]string{key, value})
	}
	return h
}

// http1 renders a request for HTTP/1.1.
func (r request) http1() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: x\r\n", r.method, r.target)
	for _, h := range r.header {
		fmt.Fprintf(&b, "%s: %s\r\n", h[0], h[1])
	}
	if r.chunked && len(r.body) > 0 {
		fmt.Fprintf(&b, "Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(r.body), r.body)
	} else {
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(r.body), r.body)
	}
	return b.Bytes()
}

// escaped finds an escape that net/http takes.
var escaped = regexp.MustCompile(`^%[0-9a-fA-F]{2}`)

// escape makes s fit for a request line, and escapes those of the characters in also that are no escape already.
func escape(s, also string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || (strings.IndexByte(also, c) >= 0 && !escaped.MatchString(s[i:])) {
			fmt.Fprintf(&b, "%%%02x", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// malformed draws bytes that are no request, with a connection of their own. Where none of them is missing, there is an
// answer; ends says that the sender then hangs up.
func (g *generator) malformed() (raw []byte, answered, ends bool) {
	const post = "POST /v2/hostile/app/blobs/uploads/ HTTP/1.1\r\n"
	head := "Host: x\r\nAuthorization: " + basic(mallory, mallory) + "\r\n"
	method := g.pick("GET", "PUT", "PATCH", "POST", "DELETE")
	path := "/v2/hostile/app/" + g.pick("manifests/v1", "blobs/uploads/"+g.pick("x", "y"), "blobs/uploads/", "tags/list")
	line := method + " " + path + " HTTP/1.1\r\n"
	switch g.IntN(18) {
	case 0:
		return []byte(post + head + "Content-Length: 5\r\nContent-Length: 0\r\n\r\n"), true, false
	case 1:
		return []byte(line + head + "Content-Length: " + g.pick("-1", "+5", "0x5", "5, 6", "1e3", "", "99999999999999999999999", "5 5") + "\r\n\r\n"), true, false
	case 2:
		return []byte(line + head + "Transfer-Encoding: " + g.pick("xchunked", "chunked, identity", "gzip, chunked", "\x0bchunked") + "\r\n\r\n"), true, false
	case 3:
		return []byte(line + head + g.pick("Content-Length : 0", "no colon", ": empty", "X\x00Y: 1", "X: \x00", "X Y: 1", "\xff: 1") + "\r\n\r\n"), true, false
	case 4:
		return []byte(line + "X: " + strings.Repeat("h", 40<<10+g.IntN(9000)) + "\r\n\r\n"), true, false
	case 5:
		return []byte(line + strings.Repeat("X: y\r\n", 9000) + "\r\n"), true, false
	case 6:
		return []byte(method + " /v2/" + strings.Repeat("a", 60<<10) + " HTTP/1.1\r\n" + head + "\r\n"), true, false
	case 7:
		return []byte(method + " " + path + g.pick(" HTTP/3.0", " HTTP/0.9", " HTTP/2.0", " HTTP/1.1x", " http/1.1", "", " HTTP/1.1 x", " ICAP/1.0") + "\r\n" + head + "\r\n"), true, false
	case 8:
		return []byte(g.pick("", "G\x00T", "GE T", "GET\t", "{}", "\x7f") + " " + path + " HTTP/1.1\r\n" + head + "\r\n"), true, false
	case 9:
		return []byte(method + " " + g.pick("http://[::1", "*", "//", "x", "%zz", "/%", "/v2/\x01", "http://a b/", "\\", "://") + " HTTP/1.1\r\n" + head + "\r\n"), true, false
	case 10:
		return []byte(line + g.pick("", "Host: a\r\nHost: b\r\n", "Host: a/b\r\n", "Host: \x00\r\n") + "\r\n"), true, false
	case 11:
		return []byte(line + head + "Content-Length: 100\r\n\r\n12345"), false, true
	case 12:
		return []byte(line + head + "Transfer-Encoding: chunked\r\n\r\n" + g.pick("5\r\n12", "zz\r\n", "ffffffffffffffffff\r\n", "5;"+strings.Repeat("x", 20<<10)+"\r\n12345\r\n", "-1\r\n", "5\r\n12345xx")), false, true
	case 13:
		return []byte(line + head + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n0\r\n" + strings.Repeat("X: y\r\n", 3000) + "\r\n"), false, true
	case 14:
		return []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + string(make([]byte, g.IntN(300)))), false, true
	case 15:
		return []byte(line + head + "X: y")[:4+g.IntN(60)], false, true
	case 16:
		return []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), false, true
	}
	raw = make([]byte, 1+g.IntN(400))
	for i := range raw {
		raw[i] = byte(g.IntN(256))
	}
	return slices.Concat(raw, []byte("\r\n\r\n")), false, true
}
