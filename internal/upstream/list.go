package upstream

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/regclient/regclient/scheme"
	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/descriptor"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Tags implements registry.Lister. Where the parent's pages are not in lexical order, or not those that were asked
// for, the whole list is fetched.
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
	return p.page(after, limit, fetch, registry.ValidateTag)
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
	return p.page(after, limit, fetch, registry.ValidateRepository)
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

// page makes one page of a list as registry.Lister promises it of whatever a registry answers. fetch asks for n
// entries after last; n of 0 asks for all. From a registry that was once seen to be out of order, which the
// specification forbids and some do, the whole list is taken each time: its pages have no place to go on from.
func (p *Parent) page(after string, limit int, fetch func(last string, n int) ([]string, error), valid func(string) error) ([]string, error) {
	if limit < 1 || limit > registry.MaxPage {
		return nil, registry.ErrPageInvalid.WithMessage("limit %d: want 1 to %d", limit, registry.MaxPage)
	}
	beyond := func(list []string) []string {
		return slices.DeleteFunc(list, func(s string) bool { return s <= after || valid(s) != nil })
	}
	var list []string
	whole := p.disordered.Load()
	if !whole {
		got, err := fetch(after, limit)
		if err != nil {
			return nil, err
		}
		n := len(got)
		if !slices.IsSorted(got) {
			p.disordered.Store(true)
		}
		whole = p.disordered.Load() && (n >= limit || after != "")
		list = beyond(got)
		whole = whole || (n >= limit && len(list) < limit) // it does not know where to go on
	}
	if whole {
		got, err := fetch("", 0)
		if err != nil {
			return nil, err
		}
		list = beyond(got)
	}
	slices.Sort(list)
	list = slices.Compact(list)
	return list[:min(limit, len(list))], nil
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
	return referrers(found, artifactType), nil
}

// forget drops what regclient believes of the parent: after a failure it takes the referrers API for missing.
func (p *Parent) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reg = p.newReg()
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
