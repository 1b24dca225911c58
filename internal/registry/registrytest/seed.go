package registrytest

import (
	"context"
	"fmt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Content is what a registry was filled with, by repository and tag.
type Content struct {
	Repositories map[string]RepositoryContent
}

// RepositoryContent is one repository of a Content.
type RepositoryContent struct {
	Tags      map[string]Image
	Referrers []Image // they refer to manifests that are tagged
}

// SeedContent returns what Seed writes: images and indexes of both kinds, a layer that two repositories share,
// referrers of two types, and a repository with many tags.
func SeedContent() Content {
	base := NewBlob(1, 100_000)
	app := NewImageOf(2, base, NewBlob(3, 5000))
	index := NewIndex(NewImage(10, 2000), NewImage(11, 2100), NewImage(12, 2200))
	many := map[string]Image{}
	for i := range 25 {
		many[fmt.Sprintf("v1.%02d", i)] = NewImageOf(100+uint64(i%5), base)
	}
	return Content{Repositories: map[string]RepositoryContent{
		"acme/app": {
			Tags: map[string]Image{
				"1.0": app, "latest": app, "multi": index,
				"docker": NewDockerImage(4, 3000), "list": NewDockerList(NewDockerImage(20, 900), NewDockerImage(21, 800)),
			},
			Referrers: []Image{
				NewReferrer(30, app.Descriptor, "application/vnd.example.sbom"),
				NewReferrer(31, app.Descriptor, "application/vnd.example.signature"),
				NewReferrer(32, app.Descriptor, "application/vnd.example.sbom"),
				NewReferrer(33, index.Descriptor, "application/vnd.example.signature"),
			},
		},
		"acme/base":       {Tags: map[string]Image{"latest": NewImageOf(5, base)}},
		"acme/base-tools": {Tags: map[string]Image{"Z": NewImage(6, 10), "a": NewImage(7, 20), "_b": NewImage(8, 30)}},
		"many":            {Tags: many},
	}}
}

// Seed writes SeedContent.
func Seed(ctx context.Context, w registry.Writer) (Content, error) {
	c := SeedContent()
	for repo, r := range c.Repositories {
		for tag, image := range r.Tags {
			if err := Push(ctx, w, repo, tag, image); err != nil {
				return Content{}, err
			}
		}
		for _, image := range r.Referrers {
			if err := Push(ctx, w, repo, "", image); err != nil {
				return Content{}, err
			}
		}
	}
	return c, nil
}
