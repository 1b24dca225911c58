package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/clock"
	"github.com/connected-registry/connected-registry/internal/gateway"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// documents is a registry.Documents in memory.
type documents struct {
	mu   sync.Mutex
	byID map[string][]byte
	full bool
	puts int
}

func (d *documents) Document(_ context.Context, name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byID[name], nil
}

func (d *documents) PutDocument(_ context.Context, name string, body []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return registry.ErrDisk
	}
	d.puts++
	d.byID[name] = body
	return nil
}

// house is a gateway of the registry "upper" with children.
type house struct {
	heard string // version of the tokens that the child has heard of
	*gateway.Children
	h    http.Handler
	docs *documents
	now  time.Time
	from *relays
}

// relays is a source of tokens for the layers below.
type relays struct {
	mu      sync.Mutex
	sets    map[string][]registry.TokenSet
	changed chan struct{}
}

func (r *relays) Relay(names []string) registry.Relay {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := maps.Clone(r.sets)
	maps.DeleteFunc(out, func(name string, _ []registry.TokenSet) bool { return !slices.Contains(names, name) })
	return registry.Relay{Registries: out}
}

func (r *relays) RelayChanged() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *relays) set(name, token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sets = maps.Clone(r.sets)
	r.sets[name] = []registry.TokenSet{{ClientTokens: map[string]registry.ClientToken{token: {Enabled: true}}}}
	close(r.changed)
	r.changed = make(chan struct{})
}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{docs: &documents{byID: map[string][]byte{}}, now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	h.from = &relays{sets: map[string][]registry.TokenSet{}, changed: make(chan struct{})}
	h.open()
	return h
}

// open is a start of the process.
func (h *house) open() {
	o := gateway.ChildrenOptions{Name: "upper", Clock: clock.Func(func() time.Time { return h.now })}
	h.Children = gateway.NewChildren(context.Background(), h.docs, o)
	s := newSource()
	s.move("may/a", "1")
	h.h = gateway.New(s, access{}, gateway.Options{
		Info: func() registry.LayerInfo { return info }, Children: h.Children, Relays: h.from,
	})
}

// child asks as a child does: its sync token has the gateways that are named, the first is its own.
func (h *house) child(method, path, gateways, instance string, body any) *httptest.ResponseRecorder {
	raw, _ := json.Marshal(body)
	r := httptest.NewRequest(method, registry.LayerPath+path, strings.NewReader(string(raw)))
	r.Header.Set("Authorization", gateways)
	r.Header.Set(registry.HeaderChildName, strings.Fields(gateways)[0])
	r.Header.Set(registry.HeaderChildInstance, instance)
	r.Header.Set(registry.HeaderChildMode, "ReadOnly")
	if h.heard != "" {
		r.Header.Set(registry.HeaderRelay, h.heard)
	}
	w := httptest.NewRecorder()
	h.h.ServeHTTP(w, r)
	return w
}

func (h *house) activate(name, instance string, operator bool) *httptest.ResponseRecorder {
	return h.child(http.MethodPut, "activation", strings.ToLower(name), instance, registry.ActivationRequest{
		Name: name, InstanceID: instance, Mode: registry.ReadOnly, Version: "1", Operator: operator,
	})
}

func want(t *testing.T, what string, w *httptest.ResponseRecorder, code int, text string) {
	t.Helper()
	if w.Code != code || !strings.Contains(w.Body.String(), text) {
		t.Errorf("%s: %d %s, want %d with %q", what, w.Code, w.Body, code, text)
	}
}

func TestOnlyOneInstanceIsActive(t *testing.T) {
	h := newHouse(t)
	const original = "Failed to activate the connected registry as it is already activated by another instance. Only one instance is supported at any time."
	want(t, "an older child, which activates nothing", h.child(http.MethodGet, "changes", "lower", "one", nil), 200, `"full":true`)
	want(t, "the first", h.activate("Lower", "one", false), 200, `"Active"`)
	want(t, "again", h.activate("lower", "one", false), 200, `"Active"`)
	want(t, "the second", h.activate("lower", "two", false), 409, original)
	want(t, "the second", h.activate("lower", "two", true), 409, "ALREADY_ACTIVATED")
	want(t, "the second's question", h.child(http.MethodGet, "changes", "lower", "two", nil), 409, "ALREADY_ACTIVATED")
	want(t, "the second's status", h.child(http.MethodPut, "status", "lower", "two", registry.LayerReport{Registries: []registry.TreeNode{{Name: "lower"}}}), 409, "ALREADY_ACTIVATED")
	want(t, "the second's tokens", h.child(http.MethodGet, "tokens", "lower", "two", nil), 409, "ALREADY_ACTIVATED")
	want(t, "what the parent is, for the second", h.child(http.MethodGet, "", "lower", "two", nil), 200, "activation")
	want(t, "another child", h.activate("other", "two", false), 200, "")
	h.open()
	want(t, "the second after a restart", h.activate("lower", "two", false), 409, original)
	want(t, "the second goes, which it is not", h.child(http.MethodDelete, "activation", "lower", "two", nil), 204, "")
	want(t, "the first is there", h.child(http.MethodGet, "changes", "lower", "one", nil), 200, "")

	if err := h.Deactivate(t.Context(), "LOWER", ""); err != nil {
		t.Fatal(err)
	}
	want(t, "the first after the operator's deactivate", h.activate("lower", "one", false), 409, "connected-registry activate")
	want(t, "its question", h.child(http.MethodGet, "changes", "lower", "one", nil), 409, "was deactivated at its parent")
	h.open()
	want(t, "the second takes its place", h.activate("lower", "two", false), 200, "")
	want(t, "the first", h.activate("lower", "one", true), 409, "ALREADY_ACTIVATED")
	want(t, "the second goes in order", h.child(http.MethodDelete, "activation", "lower", "two", nil), 204, "")
	want(t, "the first by itself", h.activate("lower", "one", false), 409, "CONFLICT")
	want(t, "the first by a person", h.activate("lower", "one", true), 200, "")
	if err := h.Deactivate(t.Context(), "nobody", ""); !errors.Is(err, registry.ErrNameUnknown) {
		t.Errorf("deactivate nobody: %v", err)
	}
}

func TestActivationIsRefused(t *testing.T) {
	h := newHouse(t)
	ask := func(gateways string, r registry.ActivationRequest) *httptest.ResponseRecorder {
		return h.child(http.MethodPut, "activation", gateways, "x", r)
	}
	good := registry.ActivationRequest{Name: "lower", InstanceID: "one", Mode: registry.ReadOnly}
	with := func(change func(*registry.ActivationRequest)) registry.ActivationRequest {
		r := good
		change(&r)
		return r
	}
	want(t, "another's name", ask("other", good), 403, "/config/write")
	want(t, "a name that is none", ask("lower", with(func(r *registry.ActivationRequest) { r.Name = "../x" })), 400, "NAME_INVALID")
	want(t, "no instance", ask("lower", with(func(r *registry.ActivationRequest) { r.InstanceID = "" })), 400, "instanceId")
	want(t, "no mode", ask("lower", with(func(r *registry.ActivationRequest) { r.Mode = "Both" })), 409, "ReadOnly or ReadWrite")
	want(t, "a mode that does not fit", ask("lower", with(func(r *registry.ActivationRequest) { r.Mode = registry.ReadWrite })), 409, "Can't create the registry")
	want(t, "the parent's own name", ask("upper", with(func(r *registry.ActivationRequest) { r.Name = "Upper" })), 409, "unique")
	want(t, "an ancestor", ask("lower", with(func(r *registry.ActivationRequest) { r.InstanceID = "id-top" })), 409, "loop")
	want(t, "no JSON", h.child(http.MethodPut, "activation", "lower", "x", "text"), 400, "no JSON")
	h.docs.full = true
	want(t, "a full disk", ask("lower", good), 507, "DiskError")
	h.docs.full = false
	want(t, "and it counts as not activated", h.activate("lower", "two", false), 200, "")
}

// TestActivationModel plays instances, operators and restarts against a rule of three lines: at most one instance is
// active, nobody takes the place of one that is, and one that the operator sent away comes back only by a person.
func TestActivationModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := newHouse(t)
		active, away := "", ""
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			who := rapid.SampledFrom([]string{"one", "two", "three"}).Draw(rt, "who")
			switch rapid.SampledFrom([]string{"activate", "activate", "person", "leave", "operator", "restart"}).Draw(rt, "what") {
			case "activate", "person":
				person := rapid.Bool().Draw(rt, "person")
				may := active == who || active == "" && (away != who || person)
				if got := h.activate("lower", who, person).Code == 200; got != may {
					rt.Fatalf("%s activates (person %v) with %q active and %q sent away: %v", who, person, active, away, got)
				}
				if may && active != who {
					if active = who; away == who {
						away = ""
					}
				}
			case "leave":
				h.child(http.MethodDelete, "activation", "lower", who, nil)
				if active == who {
					active = ""
				}
			case "operator":
				if err := h.Deactivate(context.Background(), "lower", ""); (err == nil) != (active != "") {
					rt.Fatalf("deactivate with %q active: %v", active, err)
				}
				if active != "" {
					active, away = "", active
				}
			case "restart":
				h.open()
			}
			asks := h.child(http.MethodGet, "changes", "lower", who, nil).Code == 200
			if may := active == who || active == "" && away != who; asks != may {
				rt.Fatalf("%s asks with %q active and %q sent away: %v", who, active, away, asks)
			}
		}
	})
}

func TestReports(t *testing.T) {
	h := newHouse(t)
	report := func(gateways string, nodes ...registry.TreeNode) *httptest.ResponseRecorder {
		return h.child(http.MethodPut, "status", gateways, "one", registry.LayerReport{Registries: nodes})
	}
	online := func(name, parent string) registry.TreeNode {
		return registry.TreeNode{Name: name, Parent: parent, ConnectionState: registry.Online, Mode: registry.ReadOnly}
	}
	want(t, "a tree", report("lower leaf", online("Lower", "whatever"), online("leaf", "lower"), online("foreign", "lower"), online("upper", "lower")), 204, "")
	want(t, "for another", report("lower", online("other", "")), 403, "message/write")
	want(t, "nothing", report("lower"), 400, "1 to 1000")
	names := func() (list []string) {
		for _, n := range h.Tree() {
			list = append(list, n.Name+" "+n.Parent+" "+string(n.ConnectionState))
		}
		return list
	}
	if got := names(); !slices.Equal(got, []string{"lower upper Online", "leaf lower Online"}) {
		t.Errorf("tree %q", got)
	}
	puts := h.docs.puts
	h.now = h.now.Add(time.Minute)
	later := online("lower", "whatever")
	later.LastSyncTime = h.now
	want(t, "only times are other ones", report("lower leaf", later, online("leaf", "lower")), 204, "")
	if h.docs.puts != puts {
		t.Error("a report without news is written to the disk")
	}
	h.now = h.now.Add(4 * time.Minute)
	h.open()
	if got := names(); !slices.Equal(got, []string{"lower upper Offline", "leaf lower Offline"}) {
		t.Errorf("after silence and a restart: %q", got)
	}
	want(t, "an older child, which tells nothing of itself", h.child(http.MethodGet, "changes", "ancient", "9", nil), 200, "")
	if got := names(); got[0] != "ancient upper Online" {
		t.Errorf("with an older child: %q", got)
	}
	long := online("lower", "")
	long.Version = strings.Repeat("v", 5000)
	long.StatusDetails = make([]registry.StatusDetail, 50)
	want(t, "long texts", report("lower", long), 204, "")
	for _, n := range h.Tree() {
		if len(n.Version) > 400 || len(n.StatusDetails) > 10 {
			t.Errorf("%d bytes of version, %d details", len(n.Version), len(n.StatusDetails))
		}
	}
	if w := h.child(http.MethodPost, "status", "lower", "one", nil); w.Code != 405 || w.Header().Get("Allow") != "PUT" {
		t.Errorf("POST: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}

func TestRelay(t *testing.T) {
	h := newHouse(t)
	h.from.set("lower", "dev")
	h.from.set("leaf", "deep")
	h.from.set("foreign", "secret")
	w := h.child(http.MethodGet, "tokens", "lower leaf", "one", nil)
	want(t, "tokens", w, 200, `"dev"`)
	var relay registry.Relay
	if err := json.Unmarshal(w.Body.Bytes(), &relay); err != nil || len(relay.Registries) != 2 || relay.Version == "" {
		t.Fatalf("%s, %v", w.Body, err)
	}
	version := w.Header().Get(registry.HeaderRelay)
	for _, path := range []string{"", "changes", "changes?since=x.1", "tokens?since=" + version} {
		if w := h.child(http.MethodGet, path, "lower leaf", "one", nil); w.Header().Get(registry.HeaderRelay) != relay.Version || strings.Contains(path, "since") && w.Code != 304 {
			t.Errorf("%q answers %d with the version %q, want %q", path, w.Code, w.Header().Get(registry.HeaderRelay), relay.Version)
		}
	}
	if other := h.child(http.MethodGet, "", "lower", "one", nil).Header().Get(registry.HeaderRelay); other == version || other == "" {
		t.Errorf("a token with fewer gateways has the version %q", other)
	}
	want(t, "no gateway", get(h.h, registry.LayerPath+"tokens"), 200, "") // the fake's credential "x" is a gateway of that name
	if got := get(h.h, registry.LayerPath+"changes").Header().Get(registry.HeaderRelay); got != "" {
		t.Errorf("a caller that is no child is told %q", got)
	}
}

// TestHeldQuestionEndsWithOtherTokens: a question that is held is answered when the tokens change, and not when those of
// others do.
func TestHeldQuestionEndsWithOtherTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		version := h.child(http.MethodGet, "", "lower leaf", "one", nil).Header().Get(registry.HeaderRelay)
		go func() {
			time.Sleep(time.Second)
			h.from.set("foreign", "other")
			time.Sleep(time.Second)
			h.from.set("leaf", "other")
		}()
		began := time.Now()
		w := h.child(http.MethodGet, "changes?since=x.1&wait=50", "lower leaf", "one", nil)
		if took := time.Since(began); w.Code != 304 || took != 2*time.Second || w.Header().Get(registry.HeaderRelay) == version {
			t.Errorf("%d after %v with the version %q", w.Code, took, w.Header().Get(registry.HeaderRelay))
		}
	})
}

// TestQuestionIsNotHeldWithOtherTokens: tokens that changed between two questions are told of at once.
func TestQuestionIsNotHeldWithOtherTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		version := h.child(http.MethodGet, "", "lower leaf", "one", nil).Header().Get(registry.HeaderRelay)
		h.from.set("leaf", "other")
		for _, tt := range []struct {
			heard string
			took  time.Duration
		}{{version, 0}, {"", 50 * time.Second}} {
			began := time.Now()
			h.heard = tt.heard
			w := h.child(http.MethodGet, "changes?since=x.1&wait=50", "lower leaf", "one", nil)
			now := w.Header().Get(registry.HeaderRelay)
			if took := time.Since(began); w.Code != 304 || took != tt.took || now == version {
				t.Errorf("heard %q: %d after %v with the version %q", tt.heard, w.Code, took, now)
			}
			began, h.heard = time.Now(), now
			w = h.child(http.MethodGet, "changes?since=x.1&wait=50", "lower leaf", "one", nil)
			if took := time.Since(began); w.Code != 304 || took != 50*time.Second {
				t.Errorf("heard %q: %d after %v", now, w.Code, took)
			}
		}
	})
}

// TestOffersByToken: what a token has no action for is not offered, so that a child goes on without it.
func TestOffersByToken(t *testing.T) {
	h := newHouse(t)
	capabilities := func(w *httptest.ResponseRecorder) []string {
		var i registry.LayerInfo
		if err := json.Unmarshal(w.Body.Bytes(), &i); err != nil {
			t.Fatal(err)
		}
		return i.Capabilities
	}
	if got := capabilities(h.child(http.MethodGet, "", "lower", "one", nil)); !slices.Equal(got, []string{"changes", "activation", "tokens", "status"}) {
		t.Errorf("with all actions: %q", got)
	}
	if got := capabilities(get(h.h, registry.LayerPath)); !slices.Equal(got, []string{"changes"}) {
		t.Errorf("without: %q", got)
	}
	w := get(newGateway(newSource(), nil), registry.LayerPath+"activation")
	if w.Code != 405 {
		t.Errorf("GET activation: %d", w.Code)
	}
}
