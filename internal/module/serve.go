package module

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/acr"
	"github.com/connected-registry/connected-registry/internal/auth"
	"github.com/connected-registry/connected-registry/internal/distribution"
	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/gateway"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// serve answers from the store, or says why it cannot yet.
func (m *Module) serve(w http.ResponseWriter, r *http.Request) {
	if h := m.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	reason := "the data volume is being opened"
	m.mu.Lock()
	if d, ok := m.details["storage"]; ok {
		reason = d.Description
	}
	m.mu.Unlock()
	registry.ErrUnavailable.WithMessage("%s", reason).WithRetryAfter(5 * time.Second).WriteHTTP(w)
}

// routes puts the house together, from the store outwards: what is here, what the parent has, what the mode allows.
func (m *Module) routes(ctx context.Context) http.Handler {
	m.auth.Open(ctx, m.store)
	mode := func() registry.Mode { return m.mode.Load().(registry.Mode) }
	content := filter.Scoped(filter.Locked(filter.Switch(mode, m.syncer.PullThrough(m.store)), m.store), m.auth.MayList)
	content = filter.Audited(content, m.audit)
	azure := m.metered("acr", acr.New(content, m.store, m.auth, acr.Options{Mode: mode, Logger: m.log, Audit: m.audit, Unlocked: m.syncer.Relist}))
	tokens := m.metered("token", m.auth.TokenHandler())
	v2 := m.metered("v2", distribution.New(content, m.auth, distribution.Options{Holders: m.store.BlobHolders, Logger: m.log}))
	layers := m.metered("gateway", gateway.New(m.store, m.auth, gateway.Options{
		Info: m.info, Children: m.children, Relays: m, Closing: m.closing, Logger: m.log,
	}))
	return m.link.Ahead(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cache-Control") == "only-if-cached" { // a layer below, about to push
			r = r.WithContext(registry.WithLocal(r.Context()))
		}
		switch {
		case strings.HasPrefix(r.URL.Path, registry.LayerPath):
			layers.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, acr.Path):
			azure.ServeHTTP(w, r)
		case auth.IsTokenPath(r.URL.Path):
			tokens.ServeHTTP(w, r)
		default:
			v2.ServeHTTP(w, r)
		}
	}))
}

// info is what a child is told of this registry.
func (m *Module) info() registry.LayerInfo {
	return registry.LayerInfo{
		APIVersion: "1", Name: m.name, InstanceID: m.store.InstanceID(), Mode: m.mode.Load().(registry.Mode),
		Version: m.o.Version, Ancestors: m.syncer.Ancestors(),
	}
}

// management answers who watches over the process; it is never reached through the proxy.
func (m *Module) management() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if m.handler.Load() == nil {
			m.serve(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ready\n"))
	})
	mux.HandleFunc("GET /status", m.writeStatus)
	mux.Handle("GET /metrics", m.metrics.Handler())
	return mux
}

func (m *Module) writeStatus(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, m.Status(r.Context()))
}
