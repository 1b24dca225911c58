// Package gateway answers what the registry of the layer below asks of its parent: who are you, am I the one of my name,
// what changed since I last asked, who may pull from me; and it takes what the child tells of itself and of the tree
// below it. It lives below /v2/ because that is all that the API proxy of a layer without a registry forwards.
package gateway

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// maxWait bounds how long an answer is held, in time for proxies that end a silent exchange after a minute.
	maxWait = 55 * time.Second
	// pageEntries bounds the changes of one answer; a child asks on while More is set.
	pageEntries = 5000
	// zipAbove is the size of an answer, in bytes, from which on compressing it saves more than a packet.
	zipAbove = 1024
	// maxPatterns bounds the repositories that a child may name.
	maxPatterns = 1000
)

// Changes is the source of what changed; the store is one.
type Changes interface {
	// Changes returns what changed in the matching repositories since the cursor, at most limit entries.
	Changes(ctx context.Context, since string, limit int, match func(repo string) bool) (registry.Changes, error)
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// Access says who a caller is and what it may do.
type Access interface {
	// Caller authenticates the caller. Errors: UNAUTHORIZED, UNAVAILABLE.
	Caller(r *http.Request) (registry.LayerCaller, error)
	// Challenge adds what a client needs to know to authenticate to an answer 401.
	Challenge(h http.Header)
}

// Relays is where client tokens for the layers below come from.
type Relays interface {
	// Relay returns what there is for the connected registries of the names; its version is set here.
	Relay(names []string) registry.Relay
	// RelayChanged returns a channel that is closed when Relay may answer something else.
	RelayChanged() <-chan struct{}
}

// Options are the parts that a gateway is given.
type Options struct {
	Info     func() registry.LayerInfo // what this registry is now; the capabilities are added for each caller
	Children *Children                 // nil: nobody is activated, and nobody tells of itself
	Relays   Relays                    // nil: no tokens are relayed
	Closing  <-chan struct{}           // closed when the server drains: held answers are given at once
	Logger   *slog.Logger
}

type gateway struct {
	source Changes
	access Access
	o      Options
	relays relayCache
}

// New returns the handler of everything below registry.LayerPath.
func New(source Changes, access Access, o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &gateway{source: source, access: access, o: o}
}

// question is a request of a caller that is known.
type question struct {
	w      http.ResponseWriter
	r      *http.Request
	caller registry.LayerCaller
	child  string // name of the connected registry that asks, lower case; empty unless its token has the right to it
}

type answer func(g *gateway, q question) error

// routes are the questions, by the path below registry.LayerPath and the method; HEAD is GET without the body.
var routes = map[string]map[string]answer{
	"":           {http.MethodGet: (*gateway).info},
	"changes":    {http.MethodGet: (*gateway).changes},
	"tokens":     {http.MethodGet: (*gateway).tokens},
	"activation": {http.MethodPut: (*gateway).activate, http.MethodDelete: (*gateway).deactivate},
	"status":     {http.MethodPut: (*gateway).status},
}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := g.serve(w, r); err != nil {
		e := registry.AsError(err)
		if e.HTTPStatus() == http.StatusUnauthorized {
			g.access.Challenge(h)
		}
		if e.HTTPStatus() >= 500 && r.Context().Err() == nil { // a child that hangs up is no fault
			g.o.Logger.Error("a child's question failed", "path", r.URL.Path, "error", err)
		}
		e.WriteHTTP(w)
	}
}

func (g *gateway) serve(w http.ResponseWriter, r *http.Request) error {
	methods, ok := routes[strings.TrimPrefix(r.URL.Path, registry.LayerPath)]
	if !ok {
		return registry.ErrNameUnknown.WithMessage("%s has no such question", registry.LayerPath)
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	ask, ok := methods[method]
	if !ok {
		allowed := slices.Sorted(maps.Keys(methods))
		w.Header().Set("Allow", strings.ReplaceAll(strings.Join(allowed, ", "), "GET", "GET, HEAD"))
		return registry.ErrUnsupported
	}
	caller, err := g.access.Caller(r)
	if err != nil {
		return err
	}
	if err := g.fits(r.Header); err != nil {
		return err
	}
	q := question{w: w, r: r, caller: caller, child: g.childOf(r.Header, caller)}
	if q.child != "" && g.o.Children != nil {
		g.o.Children.met(q.child, r.Header)
		defer g.o.Children.met(q.child, r.Header) // an answer may be held for a minute
	}
	return ask(g, q)
}

// childOf returns the name under which the caller introduces itself, when its token may speak for that name.
func (g *gateway) childOf(h http.Header, caller registry.LayerCaller) string {
	name := strings.ToLower(h.Get(registry.HeaderChildName))
	if name == "" || !caller.MayGateway(name, registry.MessageWrite) && !caller.MayGateway(name, registry.ConfigRead) {
		return ""
	}
	return name
}

// active checks that who asks is the one active instance of its name, where one was activated.
func (g *gateway) active(q question) error {
	if q.child == "" || g.o.Children == nil {
		return nil
	}
	return g.o.Children.check(q.child, q.r.Header.Get(registry.HeaderChildInstance))
}

// fits checks that the child that introduces itself may stand below this registry.
func (g *gateway) fits(h http.Header) error {
	info := g.o.Info()
	child, instance := h.Get(registry.HeaderChildName), h.Get(registry.HeaderChildInstance)
	if text := h.Get(registry.HeaderChildMode); text != "" {
		mode, err := registry.ParseMode(text)
		if err != nil {
			return registry.ErrConflict.WithMessage("%s: %v", registry.HeaderChildMode, err)
		}
		if err := hierarchy.CheckModes(info.Name, info.Mode, child, mode); err != nil {
			return err
		}
	}
	if instance == "" {
		return nil
	}
	return hierarchy.CheckAncestry(instance, info)
}

// info answers what this registry is, and what it can do for who asks.
func (g *gateway) info(q question) error {
	info := g.o.Info()
	info.Capabilities = append(slices.Clone(info.Capabilities), registry.CapabilityChanges)
	for _, c := range []struct {
		word   string
		action registry.Action
		offers bool
	}{
		{registry.CapabilityActivation, registry.ConfigWrite, g.o.Children != nil},
		{registry.CapabilityTokens, registry.ConfigRead, g.o.Relays != nil},
		{registry.CapabilityStatus, registry.MessageWrite, g.o.Children != nil},
	} {
		if c.offers && q.child != "" && q.caller.MayGateway(q.child, c.action) {
			info.Capabilities = append(info.Capabilities, c.word)
		}
	}
	g.tellRelay(q)
	return reply(q.w, q.r, info)
}

// changes answers what changed since the cursor, or 304 when nothing did for as long as the caller lets it wait.
func (g *gateway) changes(q question) error {
	if err := g.active(q); err != nil {
		return err
	}
	w, r, values := q.w, q.r, q.r.URL.Query()
	wait, err := parseWait(values.Get("wait"))
	if err != nil {
		return err
	}
	rules, err := parseScope(values["repository"])
	if err != nil {
		return err
	}
	match := func(repo string) bool {
		return (len(rules) == 0 || rules.MatchRepository(repo)) && q.caller.MayRead(repo)
	}
	since := values.Get("since")
	relay := g.tellRelay(q)
	if heard := r.Header.Get(registry.HeaderRelay); heard != "" && relay != nil && heard != w.Header().Get(registry.HeaderRelay) {
		wait = 0 // it changed between this question and the one before
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		changed := g.source.Changed() // before the question, so that no change falls between the two
		c, err := g.source.Changes(r.Context(), since, pageEntries, match)
		if err != nil {
			return err
		}
		if c.Full || len(c.Entries) > 0 || c.More {
			return reply(w, r, c)
		}
		select {
		case <-changed:
		case <-relay:
			if next, other := g.retellRelay(q); !other {
				relay = next
				continue
			}
			return g.unchanged(w, c.Cursor, since)
		case <-timer.C:
			return g.unchanged(w, c.Cursor, since)
		case <-g.o.Closing:
			return g.unchanged(w, c.Cursor, since)
		case <-r.Context().Done():
			return registry.ErrUnavailable.Wrap(r.Context().Err())
		}
	}
}

// unchanged answers 304; where something changed outside what the caller asked for, with the cursor that is past it.
func (g *gateway) unchanged(w http.ResponseWriter, cursor, since string) error {
	if cursor != since {
		w.Header().Set("ETag", strconv.Quote(cursor))
	}
	w.WriteHeader(http.StatusNotModified)
	return nil
}

func parseWait(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	seconds, err := strconv.Atoi(s)
	if err != nil || seconds < 0 {
		return 0, registry.ErrPageInvalid.WithMessage("wait=%q: want whole seconds, at most %d", s, int(maxWait.Seconds()))
	}
	return min(time.Duration(min(seconds, 3600))*time.Second, maxWait), nil
}

func parseScope(names []string) (registry.Scope, error) {
	if len(names) > maxPatterns {
		return nil, registry.ErrNameInvalid.WithMessage("%d repository parameters: at most %d", len(names), maxPatterns)
	}
	var scope registry.Scope
	for _, name := range names {
		if bare := strings.TrimSuffix(strings.TrimSuffix(name, "*"), "/"); bare != "" {
			if err := registry.ValidateRepository(bare); err != nil {
				return nil, err
			}
		}
		scope = append(scope, registry.RepositoryRule{Repository: name})
	}
	return scope, nil
}

// reply writes the answer, compressed when that is worth it: the names and digests of a list repeat.
func reply(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if len(body) < zipAbove || !slices.Contains(strings.Split(strings.ReplaceAll(r.Header.Get("Accept-Encoding"), " ", ""), ","), "gzip") {
		h.Set("Content-Length", strconv.Itoa(len(body)))
		_, err = w.Write(body)
		return ignoreGone(err)
	}
	h.Set("Content-Encoding", "gzip")
	z := gzip.NewWriter(w)
	_, err = z.Write(body)
	return ignoreGone(errors.Join(err, z.Close()))
}

// ignoreGone drops the error of a client that went away in the middle of an answer: there is nobody left to tell.
func ignoreGone(error) error { return nil }
