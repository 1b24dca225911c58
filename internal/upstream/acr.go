package upstream

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// tagPage is the page size of Azure Container Registry, in tags.
	tagPage = 100
	// newTagPage is how many tags are asked for first where few have changed: an entry has about 300 bytes.
	newTagPage = 5
)

// RecentTags asks Azure Container Registry's metadata API for the tags of a repository that were updated at since or
// later, newest first, with their digests; a zero since takes all. about has how many tags and manifests the repository
// has.
//
// Errors: UNSUPPORTED for a parent that is none, or that does not let the credential read metadata; NAME_UNKNOWN; and as
// Probe.
func (p *Parent) RecentTags(ctx context.Context, repo string, since time.Time) (tags []registry.TagInfo, about registry.RepositoryInfo, err error) {
	if err := registry.ValidateRepository(repo); err != nil {
		return nil, about, err
	}
	p.mu.Lock()
	kind := p.kind
	p.mu.Unlock()
	if kind != registry.KindACR {
		return nil, about, p.noMetadata(nil)
	}
	var doc struct {
		ImageName     string `json:"imageName"`
		TagCount      *int   `json:"tagCount"`
		ManifestCount int    `json:"manifestCount"`
	}
	if err := p.metadata(ctx, "/acr/v1/"+repo, nil, &doc); err != nil {
		return nil, about, err
	}
	if doc.ImageName == "" || doc.TagCount == nil || *doc.TagCount < 0 {
		return nil, about, p.noMetadata(nil)
	}
	about = registry.RepositoryInfo{Name: repo, Tags: *doc.TagCount, Manifests: doc.ManifestCount}
	tags, err = p.tagsByTime(ctx, repo, since)
	return tags, about, err
}

// tagsByTime reads pages until one has a tag that was not updated since.
func (p *Parent) tagsByTime(ctx context.Context, repo string, since time.Time) ([]registry.TagInfo, error) {
	var all []registry.TagInfo
	query := url.Values{"orderby": {"timedesc"}, "n": {strconv.Itoa(tagPage)}}
	if !since.IsZero() {
		query.Set("n", strconv.Itoa(newTagPage))
	}
	seen := map[string]bool{}
	for range maxPages {
		key := query.Encode()
		if seen[key] {
			return nil, registry.ErrSizeInvalid.WithMessage("%s: the list of tags of %s comes back to the page %s", p.host, repo, clip(key))
		}
		seen[key] = true
		page, next, err := p.tagPage(ctx, repo, query)
		if err != nil {
			return nil, err
		}
		for _, t := range page {
			if len(all) > 0 && t.Updated.After(all[len(all)-1].Updated) {
				return nil, p.noMetadata(nil) // not in the order that was asked for: where to stop is not known
			}
			if t.Updated.Before(since) {
				return all, nil
			}
			all = append(all, t)
		}
		if len(page) == 0 || next == nil {
			return all, nil
		}
		query = next
		query.Set("n", strconv.Itoa(tagPage))
	}
	return nil, registry.ErrSizeInvalid.WithMessage("%s: the list of tags of %s has more than %d pages", p.host, repo, maxPages)
}

// tagPage reads one page, without entries that are not well formed, and the query of the next; nil for none.
func (p *Parent) tagPage(ctx context.Context, repo string, query url.Values) ([]registry.TagInfo, url.Values, error) {
	var doc struct {
		Tags []struct {
			Name           string    `json:"name"`
			Digest         string    `json:"digest"`
			LastUpdateTime time.Time `json:"lastUpdateTime"`
		} `json:"tags"`
	}
	c, err := p.metadataCall(ctx, "/acr/v1/"+repo+"/_tags", query)
	if err != nil {
		return nil, nil, err
	}
	if json.Unmarshal(c.body, &doc) != nil {
		return nil, nil, p.noMetadata(c)
	}
	var tags []registry.TagInfo
	for _, t := range doc.Tags {
		d, err := registry.ParseDigest(t.Digest)
		if err != nil || registry.ValidateTag(t.Name) != nil || t.LastUpdateTime.IsZero() {
			continue
		}
		tags = append(tags, registry.TagInfo{Name: t.Name, Digest: d, Updated: t.LastUpdateTime})
	}
	return tags, nextQuery(c.header), nil
}

// nextQuery reads the query of a Link to the next page (RFC 8288). Its host and path are not looked at: they are those of
// the page before it.
func nextQuery(h http.Header) url.Values {
	for _, link := range h.Values("Link") {
		target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
		if !ok || !strings.Contains(params, "next") {
			continue
		}
		if u, err := url.Parse(target); err == nil && len(u.RawQuery) <= maxScopeQuery {
			return u.Query()
		}
	}
	return nil
}

// metadata reads one document of the metadata API.
func (p *Parent) metadata(ctx context.Context, path string, query url.Values, into any) error {
	c, err := p.metadataCall(ctx, path, query)
	if err != nil {
		return err
	}
	if json.Unmarshal(c.body, into) != nil {
		return p.noMetadata(c)
	}
	return nil
}

func (p *Parent) metadataCall(ctx context.Context, path string, query url.Values) (*call, error) {
	c, err := p.ask(ctx, path, query, true)
	if err != nil {
		return nil, err
	}
	if c.body, err = unzip(c); err != nil {
		return nil, p.noMetadata(c)
	}
	switch said := parseError(c.body); {
	case c.status == http.StatusOK:
		return c, nil
	case c.status == http.StatusNotFound && said.Code == registry.CodeNameUnknown:
		return nil, registry.ErrNameUnknown.WithMessage("the repository is not known to %s", p.host)
	case c.status >= 500, c.status == http.StatusTooManyRequests:
		return nil, p.refusal(c, registry.ErrUnsupported)
	}
	return nil, p.noMetadata(c)
}

// noMetadata is the error of a parent whose metadata API cannot be used; other ways are left.
func (p *Parent) noMetadata(c *call) error {
	e := registry.ErrUnsupported.WithMessage("%s has no metadata API that can be used", p.host)
	if c == nil {
		return e
	}
	return e.Wrap(p.refusal(c, registry.ErrUnsupported))
}
