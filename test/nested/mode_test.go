package nested

import (
	"net/http"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/test/cloud"
	"github.com/connected-registry/connected-registry/test/layer"
)

// TestPushedTagStays pushes a tag to a ReadWrite registry that the cloud has too, with other content.
func TestPushedTagStays(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := newSite(t, k.start(t), 2, "acme/app")
		for _, l := range s.layers {
			l.doc["mode"] = "ReadWrite"
		}
		push(t, s.cloud, "acme/app:mine", artifact(t, "of the cloud"))
		other := push(t, s.cloud, "acme/app:other", artifact(t, "another"))
		s.start()
		bottom := s.bottom()
		bottom.has("acme/app", "other", other)
		mine := push(t, bottom.addr, "acme/app:mine", artifact(t, "of the floor"))
		own := push(t, bottom.addr, "acme/app:own", artifact(t, "known to nobody else"))
		push(t, s.cloud, "acme/app:mine", artifact(t, "of the cloud, again"))
		next := push(t, s.cloud, "acme/app:next", artifact(t, "next"))
		for range 2 {
			for _, l := range s.layers {
				st, err := l.sync()
				// The next iteration may be under way when the answer is written.
				if err != nil || !st.Sync.LastSuccessfulSyncEndTime.Equal(st.Sync.LastSyncEndTime) {
					t.Fatalf("%s: %v %+v", l.name, err, st.Sync)
				}
			}
		}
		bottom.has("acme/app", "next", next)
		bottom.has("acme/app", "mine", mine)
		bottom.has("acme/app", "own", own)
		bottom.end()
		bottom.start()
		_, err := bottom.sync()
		must(t, err)
		bottom.has("acme/app", "mine", mine)
		bottom.has("acme/app", "own", own)
	})
}

// TestReadOnlyRefuses pushes to and deletes from a ReadOnly registry with a token that may do all of it, and with a
// client that is not ours.
func TestReadOnlyRefuses(t *testing.T) {
	s := newSite(t, startOlareg(t), 1, "acme/app")
	digest := push(t, s.cloud, "acme/app:1", artifact(t, "one"))
	l := s.bottom()
	layer.Admit(l.doc)
	s.start()
	l.has("acme/app", "1", digest)
	header := map[string]string{
		"Authorization": basicAuth(layer.User, layer.Password),
		"Content-Type":  "application/vnd.oci.image.manifest.v1+json",
	}
	blob := "/v2/acme/app/blobs/" + string(sum([]byte("one")))
	for _, q := range []struct{ method, path string }{
		{http.MethodPost, "/v2/acme/app/blobs/uploads/"},
		{http.MethodPost, "/v2/acme/new/blobs/uploads/?mount=" + string(sum([]byte("one"))) + "&from=acme/app"},
		{http.MethodPut, "/v2/acme/app/manifests/2"},
		{http.MethodDelete, "/v2/acme/app/manifests/1"},
		{http.MethodDelete, "/v2/acme/app/manifests/" + digest},
		{http.MethodDelete, blob},
	} {
		a := ask(t, l.addr, q.method, q.path, header)
		want := http.StatusForbidden
		if q.method == http.MethodDelete {
			want = http.StatusMethodNotAllowed // as the specification wants of who deletes nothing
		}
		if a.status != want || !strings.Contains(string(a.body), `"DENIED"`) || !strings.Contains(string(a.body), "This operation is not allowed on this registry.") {
			t.Errorf("%s %s answers %d: %s", q.method, q.path, a.status, a.body)
		}
	}
	if err := cloud.Push(t.Context(), l.addr, "acme/app:2", artifact(t, "two")); err == nil || !strings.Contains(err.Error(), "This operation is not allowed on this registry.") {
		t.Errorf("a push says %v", err)
	}
	same(t, l.addr, s.cloud, "acme/app:1")
}
