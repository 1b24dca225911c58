package upstream_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// azure answers as Azure Container Registry does, with n tags of which tag i was updated i minutes after its epoch.
type azure struct {
	n     int
	links string // host of the Link to the next page
}

var azureEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (a azure) tag(i int) map[string]any {
	at := azureEpoch.Add(time.Duration(i) * time.Minute).Format("2006-01-02T15:04:05.0000000Z")
	return map[string]any{
		"name": fmt.Sprintf("v%04d", i), "digest": fmt.Sprintf("sha256:%064x", i), "createdTime": at, "lastUpdateTime": at, "signed": false,
		"quarantineState": "Passed", "changeableAttributes": map[string]bool{"deleteEnabled": true, "writeEnabled": true, "readEnabled": true, "listEnabled": true},
	}
}

func (a azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reply := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	user, _, _ := r.BasicAuth()
	switch {
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
	case r.URL.Path == "/acr/v1/_catalog":
		reply(map[string]any{"registry": "contoso.azurecr.io", "repositories": []string{"app"}})
	case user != "child" || !strings.HasPrefix(r.URL.Path, "/acr/v1/app"):
		http.NotFound(w, r)
	case r.URL.Path == "/acr/v1/app":
		reply(map[string]any{"registry": "contoso.azurecr.io", "imageName": "app", "tagCount": a.n, "manifestCount": a.n, "lastUpdateTime": azureEpoch})
	default:
		size, _ := strconv.Atoi(r.URL.Query().Get("n"))
		from := a.n - 1
		if last := r.URL.Query().Get("last"); last != "" {
			from, _ = strconv.Atoi(last[1:])
			from--
		}
		tags := []any{}
		for i := from; i >= 0 && len(tags) < size; i-- {
			tags = append(tags, a.tag(i))
		}
		if left := from - len(tags); left >= 0 {
			w.Header().Set("Link", fmt.Sprintf(`<%s/acr/v1/app/_tags?last=v%04d&n=%d&orderby=timedesc>; rel="next"`, a.links, left+1, size))
		}
		reply(map[string]any{"registry": "contoso.azurecr.io", "imageName": "app", "tags": tags})
	}
}

func asChild(o *upstream.Options) { o.Username, o.Password = "child", "secret" }

// TestRecentTags lists all tags, and then what changed among a thousand of which none did.
func TestRecentTags(t *testing.T) {
	h := start(t, "127.0.0.1", azure{n: 1000, links: "http://127.0.0.9:1"})
	p := connect(t, h, asChild)
	if _, _, err := p.RecentTags(t.Context(), "app", time.Time{}); !errors.Is(err, registry.ErrUnsupported) {
		t.Errorf("of a parent that nobody probed: %v", err)
	}
	if s, _, err := p.Probe(t.Context()); err != nil || s.Kind != registry.KindACR {
		t.Fatalf("%+v, %v", s, err)
	}
	all, about, err := p.RecentTags(t.Context(), "app", time.Time{})
	if err != nil || about.Tags != 1000 || about.Manifests != 1000 || len(all) != 1000 || all[0].Name != "v0999" || all[999].Name != "v0000" {
		t.Fatalf("%d of %d tags, %v", len(all), about.Tags, err)
	}
	before := p.Traffic()
	same, about, err := p.RecentTags(t.Context(), "app", all[0].Updated)
	if err != nil || len(same) != 1 || about.Tags != 1000 || same[0] != all[0] {
		t.Errorf("since the newest: %v of %d, %v", same, about.Tags, err)
	}
	after := p.Traffic()
	requests, bytes := after.Requests-before.Requests, after.BytesReceived-before.BytesReceived
	t.Logf("1,000 unchanged tags: %d requests, %d bytes of bodies", requests, bytes)
	if requests > 2 || bytes > 4<<10 {
		t.Errorf("1,000 unchanged tags cost %d requests and %d bytes", requests, bytes)
	}
	some, _, err := p.RecentTags(t.Context(), "app", all[149].Updated)
	if err != nil || len(some) != 150 {
		t.Errorf("since the 150th: %d, %v", len(some), err)
	}
	if _, _, err := p.RecentTags(t.Context(), "nothing", time.Time{}); !errors.Is(err, registry.ErrUnsupported) {
		t.Errorf("a 404 that names no repository: %v", err)
	}
}

// TestRecentTagsOfManyManners gets lists that are not what was asked for.
func TestRecentTagsOfManyManners(t *testing.T) {
	tag := func(name string, minute int) string {
		return fmt.Sprintf(`{"name": %q, "digest": "sha256:%064x", "lastUpdateTime": "2026-01-01T00:%02d:00Z"}`, name, minute, minute)
	}
	page := func(tags ...string) string { return `{"tags": [` + strings.Join(tags, ",") + `]}` }
	for name, tc := range map[string]struct {
		body, link string
		want       error
		names      string
	}{
		"oldest first":        {body: page(tag("a", 1), tag("b", 2)), want: registry.ErrUnsupported},
		"same page for ever":  {body: page(tag("a", 1)), link: `</acr/v1/app/_tags?last=a&n=100&orderby=timedesc>; rel="next"`, want: registry.ErrSizeInvalid},
		"no JSON":             {body: "<html>", want: registry.ErrUnsupported},
		"nothing":             {body: "{}", names: ""},
		"bad entries":         {body: page(tag("a", 3), tag("../b", 2), `{"name": "c", "digest": "md5:1", "lastUpdateTime": "2026-01-01T00:00:00Z"}`, `{"name": "d"}`), names: "a"},
		"a link that is none": {body: page(tag("a", 1)), link: "next, please", names: "a"},
		"too large":           {body: `{"tags": [` + strings.Repeat(" ", 9<<20) + `]}`, want: registry.ErrSizeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			real := azure{n: 1}
			p := connect(t, start(t, "127.0.0.1", handler(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, "/_tags") {
					real.ServeHTTP(w, r)
					return
				}
				if tc.link != "" {
					w.Header().Set("Link", tc.link)
				}
				_, _ = w.Write([]byte(tc.body))
			})), asChild)
			if _, _, err := p.Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			tags, _, err := p.RecentTags(t.Context(), "app", time.Time{})
			if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			var names []string
			for _, t := range tags {
				names = append(names, t.Name)
			}
			if tc.want == nil && strings.Join(names, " ") != tc.names {
				t.Errorf("%v, want %s", names, tc.names)
			}
		})
	}
}
