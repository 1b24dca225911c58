// Package gateway answers what the registry of the layer below asks of its parent: who are you, and what changed since
// I last asked. It lives below /v2/ because that is all that the API proxy of a layer without a registry forwards.
package gateway

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
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

// Access says what a caller may see.
type Access interface {
	// Reader authenticates the caller and returns which repositories it may read. Errors: UNAUTHORIZED.
	Reader(r *http.Request) (may func(repo string) bool, err error)
	// Challenge adds what a client needs to know to authenticate to an answer 401.
	Challenge(h http.Header)
}

// Options are the parts that a gateway is given.
type Options struct {
	Info    func() registry.LayerInfo // what this registry is now
	Closing <-chan struct{}           // closed when the server drains: held answers are given at once
	Logger  *slog.Logger
}

type gateway struct {
	source Changes
	access Access
	o      Options
}

// New returns the handler of everything below registry.LayerPath.
func New(source Changes, access Access, o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &gateway{source: source, access: access, o: o}
}

// routes are the questions, by the path below registry.LayerPath.
var routes = map[string]func(g *gateway, w http.ResponseWriter, r *http.Request, may func(string) bool) error{
	"":        (*gateway).info,
	"changes": (*gateway).changes,
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
	route, ok := routes[strings.TrimPrefix(r.URL.Path, registry.LayerPath)]
	if !ok {
		return registry.ErrNameUnknown.WithMessage("%s has no such question", registry.LayerPath)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return registry.ErrUnsupported
	}
	may, err := g.access.Reader(r)
	if err != nil {
		return err
	}
	if err := g.fits(r.Header); err != nil {
		return err
	}
	return route(g, w, r, may)
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

func (g *gateway) info(w http.ResponseWriter, r *http.Request, _ func(string) bool) error {
	return reply(w, r, g.o.Info())
}

// changes answers what changed since the cursor, or 304 when nothing did for as long as the caller lets it wait.
func (g *gateway) changes(w http.ResponseWriter, r *http.Request, may func(string) bool) error {
	q := r.URL.Query()
	wait, err := parseWait(q.Get("wait"))
	if err != nil {
		return err
	}
	rules, err := parseScope(q["repository"])
	if err != nil {
		return err
	}
	match := func(repo string) bool { return (len(rules) == 0 || rules.MatchRepository(repo)) && may(repo) }
	since := q.Get("since")
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
