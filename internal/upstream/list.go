package upstream

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/regclient/regclient/scheme"
	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/descriptor"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Tags implements registry.Lister; see page.
//
// Errors: NAME_UNKNOWN; SIZE_INVALID for a list that does not end (10,000 pages, or a page that comes again).
func (p *Parent) Tags(ctx context.Context, repo, after string, limit int) ([]string, error) {
	if err := registry.ValidateRepository(repo); err != nil {
		return nil, err
	}
	fetch := func(last string, n int) ([]string, error) {
		var tags []string
		err := p.run(ctx, &call{pages: true}, registry.ErrNameUnknown, func(ctx context.Context, r *reg.Reg) error {
			list, err := r.TagList(ctx, p.ref(repo, registry.Reference{}), scheme.WithTagLast(last), scheme.WithTagLimit(n))
			if err == nil {
				tags = list.Tags
			}
			return err
		})
		return tags, err
	}
	return p.page("tags "+repo, after, limit, fetch, registry.ValidateTag)
}

// Repositories implements registry.Lister.
//
// Errors: UNSUPPORTED for a parent without a catalog; UNAUTHORIZED or DENIED for a credential that may not read it.
func (p *Parent) Repositories(ctx context.Context, after string, limit int) ([]string, error) {
	fetch := func(last string, n int) (all []string, err error) {
		err = p.run(ctx, &call{pages: true}, registry.ErrUnsupported.WithMessage("%s has no catalog", p.host), func(ctx context.Context, r *reg.Reg) error {
			all, err = catalog(ctx, r, p.host, last, n)
			return err
		})
		return all, err
	}
	return p.page("repositories", after, limit, fetch, registry.ValidateRepository)
}

// catalog collects pages until there are n entries (0: all) or no next page.
func catalog(ctx context.Context, r *reg.Reg, host, last string, n int) ([]string, error) {
	var all []string
	for {
		list, err := r.RepoList(ctx, host, scheme.WithRepoLast(last), scheme.WithRepoLimit(n))
		if err != nil {
			return nil, err
		}
		all = append(all, list.Repositories...)
		h, _ := list.RawHeaders() // always there for an answer
		if len(list.Repositories) == 0 || (n > 0 && len(all) >= n) || h.Get("Link") == "" {
			return all, nil
		}
		last = list.Repositories[len(list.Repositories)-1]
	}
}

// maxLists bounds the lists that are kept.
const maxLists = 16

// wholeFor is how long a list that was fetched whole serves the pages after the first.
const wholeFor = time.Minute

// wholeList is a list of more than one page, in order of bytes.
type wholeList struct {
	entries []string
	at      time.Time
}

// page makes one page of a list as registry.Lister promises it of whatever a registry answers. fetch asks for n
// entries after last; n of 0 asks for all. A list of more than one page is fetched whole, once for all of its pages: the
// order of the specification is without regard to case, many registries have that of bytes, and some have none, so that
// the pages of two registries have no place in common to go on from.
func (p *Parent) page(key, after string, limit int, fetch func(last string, n int) ([]string, error), valid func(string) error) ([]string, error) {
	if limit < 1 || limit > registry.MaxPage {
		return nil, registry.ErrPageInvalid.WithMessage("limit %d: want 1 to %d", limit, registry.MaxPage)
	}
	list, known := p.knownList(key)
	fetched := after == "" || !known
	if fetched {
		n := 0
		if after == "" {
			n = limit
		}
		got, err := fetch("", n)
		if err == nil && n > 0 && len(got) >= n && !ended(got, fetch) {
			got, err = fetch("", 0)
		}
		if err != nil {
			return nil, err
		}
		list = slices.DeleteFunc(slices.Clone(got), func(s string) bool { return valid(s) != nil })
		slices.Sort(list)
		list = slices.Compact(list)
	}
	from, found := slices.BinarySearch(list, after)
	if found {
		from++
	}
	page := list[from:min(len(list), from+limit)]
	p.keepList(key, list, fetched, len(page) == limit)
	return slices.Clone(page), nil
}

// ended asks whether nothing comes after a page that is just full: a few hundred bytes, where the list again would be
// many KiB. The question names the entry that the registry itself put last.
func ended(page []string, fetch func(last string, n int) ([]string, error)) bool {
	rest, err := fetch(page[len(page)-1], 1)
	return err == nil && len(rest) == 0
}

func (p *Parent) knownList(key string) ([]string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.lists[key]
	return l.entries, ok && p.clock.Now().Sub(l.at).Abs() < wholeFor
}

// keepList keeps a list that was just fetched for its next page, and drops one that has no next page.
func (p *Parent) keepList(key string, list []string, fetched, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !more:
		delete(p.lists, key)
	case fetched:
		if len(p.lists) >= maxLists {
			clear(p.lists)
		}
		p.lists[key] = wholeList{list, p.clock.Now()}
	}
}

// Referrers implements registry.Lister, by the referrers API or by the tag that stands in for it. An answer that is
// only missing because something failed is an error and never an empty list.
func (p *Parent) Referrers(ctx context.Context, repo string, d registry.Digest, artifactType string) ([]registry.Descriptor, error) {
	if err := registry.ValidateRepository(repo); err != nil {
		return nil, err
	}
	c := call{pages: true}
	var found []descriptor.Descriptor
	err := p.run(ctx, &c, registry.ErrNameUnknown, func(ctx context.Context, r *reg.Reg) error {
		// Asked without the type, and filtered here: the fall-back ignores it anyway, and one answer serves all types.
		list, err := r.ReferrerList(ctx, p.ref(repo, registry.DigestReference(d)))
		found = list.Descriptors
		if err == nil && c.trouble != nil {
			err = c.trouble
		}
		return err
	})
	if errors.Is(err, registry.ErrNameUnknown) || errors.Is(err, registry.ErrManifestUnknown) {
		return nil, nil
	}
	if err != nil {
		p.forget()
		return nil, err
	}
	if text, ok := strings.CutPrefix(c.header.Get("Warning"), `299 - "`); ok {
		registry.Warn(ctx, strings.TrimSuffix(text, `"`))
	}
	return referrers(found, artifactType), nil
}

// forget drops what regclient believes of the parent: after a failure it takes the referrers API for missing.
func (p *Parent) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reg = p.newReg(p.refresh)
}

// referrers filters, sorts and checks a list.
func referrers(found []descriptor.Descriptor, artifactType string) []registry.Descriptor {
	byDigest := map[registry.Digest]registry.Descriptor{}
	for _, f := range found {
		d, err := registry.ParseDigest(string(f.Digest))
		if err != nil || f.Size < 0 || (artifactType != "" && f.ArtifactType != artifactType) {
			continue
		}
		byDigest[d] = registry.Descriptor{MediaType: f.MediaType, Digest: d, Size: f.Size, ArtifactType: f.ArtifactType, Annotations: f.Annotations}
	}
	return slices.SortedFunc(maps.Values(byDigest), func(a, b registry.Descriptor) int {
		return strings.Compare(string(a.Digest), string(b.Digest))
	})
}
