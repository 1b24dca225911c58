package transport

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestReaches: a registry's own data endpoint may have a private address, and nothing that looks like one.
func TestReaches(t *testing.T) {
	azure, err := newHosts("https://Contoso.azurecr.io", nil, []string{"https://mirror:8443"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := newHosts("https://parent:8000", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"contoso.azurecr.io:443":                         true,
		"mirror:8443":                                    true,
		"contoso.westeurope.data.azurecr.io:443":         true,
		"CONTOSO.westeurope.data.azurecr.io:443":         true,
		"contoso.westeurope.data.azurecr.io:8443":        false,
		"contoso.data.azurecr.io:443":                    false,
		"contoso..data.azurecr.io:443":                   false,
		"contoso.a.b.data.azurecr.io:443":                false,
		"fabrikam.westeurope.data.azurecr.io:443":        false,
		"contoso.westeurope.data.azurecr.io.evil.io:443": false,
		"contoso.westeurope.data.azurecr.cn:443":         false,
		"evilcontoso.westeurope.data.azurecr.io:443":     false,
	} {
		if got := azure.reaches(addr); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
	if other.reaches("parent.westeurope.data.azurecr.io:443") {
		t.Error("a registry elsewhere has no data endpoint")
	}
}

// TestOrigin: a scheme's own port may be left out, and case does not matter.
func TestOrigin(t *testing.T) {
	for given, want := range map[string]string{
		"http://Parent": "http://parent:80", "http://parent:80/v2/": "http://parent:80", "HTTPS://parent": "https://parent:443",
		"https://parent:80": "https://parent:80", "https://[::1]": "https://[::1]:443",
	} {
		u, err := url.Parse(given)
		if err != nil {
			t.Fatal(err)
		}
		if got := originOf(u); got != want {
			t.Errorf("%s: %s, want %s", given, got, want)
		}
	}
}

// TestRetrierLogsNothing: an address may have a secret in its query.
func TestRetrierLogsNothing(t *testing.T) {
	if l := newRetrier(nil, nil).again.Client.Logger; l != nil {
		t.Errorf("it logs to %T", l)
	}
}

// passed is what is below the guard.
type passed struct{ *http.Request }

func (p *passed) RoundTrip(req *http.Request) (*http.Response, error) {
	p.Request = req
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

// TestGuardByItself asks what nobody above it lets through either: another host is asked only after a redirect, to read, for
// a blob, and without what is secret; and a client that is for no registry reads without a credential.
func TestGuardByItself(t *testing.T) {
	for _, tt := range []struct {
		origin, method  string
		secret, follows bool
		blob, good      bool
	}{
		{"https://parent", "GET", true, true, true, true},
		{"https://parent", "HEAD", true, true, true, true},
		{"https://parent", "POST", true, true, true, false},
		{"https://parent", "GET", true, true, false, false},
		{"https://parent", "GET", true, false, true, false},
		{"https://parent", "GET", false, false, false, false},
		{"https://parent", "POST", false, false, false, false},
		{"", "GET", false, false, false, true},
		{"", "HEAD", false, false, false, true},
		{"", "GET", true, true, true, false},
		{"", "POST", false, true, true, false},
	} {
		hosts, err := newHosts(tt.origin, nil, []string{"https://data"})
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		if tt.blob {
			ctx = WithBlob(ctx)
		}
		req, err := http.NewRequestWithContext(ctx, tt.method, "https://data/b", strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		if tt.follows {
			req.Response = &http.Response{}
		}
		if tt.secret {
			for _, name := range secretHeaders {
				req.Header.Set(name, "secret")
			}
		}
		below := &passed{}
		resp, err := guard{&Client{hosts: hosts}, below}.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if tt.good != (err == nil) || tt.good != (below.Request != nil) || !tt.good && !errors.Is(err, registry.ErrDenied) {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		for _, name := range secretHeaders {
			if tt.good && below.Header.Get(name) != "" {
				t.Errorf("%+v: %s goes to another host", tt, name)
			}
			if tt.secret && req.Header.Get(name) == "" {
				t.Errorf("%+v: %s is taken from the caller's request", tt, name)
			}
		}
	}
}
