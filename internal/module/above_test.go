package module

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/store"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// TestTokensAfterACancelledQuestion: an iteration that ends while it fetches the tokens, as one does whose settings
// change, does not make the parent believe that they arrived. A failure is no reason to ask in a circle.
func TestTokensAfterACancelledQuestion(t *testing.T) {
	relay := registry.Relay{Version: "v2", Registries: map[string][]registry.TokenSet{}}
	var heard []string
	var cancel context.CancelFunc
	var answer atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc(registry.LayerPath+"changes", func(w http.ResponseWriter, r *http.Request) {
		heard = append(heard, r.Header.Get(registry.HeaderRelay))
		w.Header().Set(registry.HeaderRelay, relay.Version)
		w.WriteHeader(http.StatusNotModified)
	})
	mux.HandleFunc(registry.LayerPath+"tokens", func(w http.ResponseWriter, r *http.Request) {
		switch w.Header().Set(registry.HeaderRelay, relay.Version); answer.Load() {
		case 0:
			cancel()
			<-r.Context().Done()
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
		default:
			_ = json.NewEncoder(w).Encode(relay)
		}
	})
	s := httptest.NewServer(mux)
	defer s.Close()

	m := newModule(Options{Name: "lower"})
	var err error
	if m.store, err = store.Open(t.Context(), t.TempDir(), store.Options{}); err != nil {
		t.Fatal(err)
	}
	defer m.store.Close()
	p, err := upstream.New(upstream.Options{Endpoint: strings.TrimPrefix(s.URL, "http://"), Protocol: "http"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	a := &above{Parent: p, m: m}
	ask := func(how int32) {
		t.Helper()
		var ctx context.Context
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		answer.Store(how)
		if _, err := a.Changes(ctx, registry.ChangesRequest{Since: "c"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, how := range []int32{0, 0, 1, 1, 2, 2} {
		ask(how)
	}
	if want := []string{"", "none", "none", "v2", "v2", "v2"}; !slices.Equal(heard, want) || m.relayVersion() != "v2" {
		t.Errorf("the parent is told of %q, want %q; in force is %q", heard, want, m.relayVersion())
	}
}
