package filter_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

func always(m registry.Mode) func() registry.Mode { return func() registry.Mode { return m } }

func TestConformance(t *testing.T) {
	open := map[string]func(registry.Registry) registry.Registry{
		"Switch": func(r registry.Registry) registry.Registry { return filter.Switch(always(registry.ReadWrite), r) },
		"Scoped": func(r registry.Registry) registry.Registry {
			return filter.Scoped(r, func(context.Context, string) bool { return true })
		},
		"both, nested": func(r registry.Registry) registry.Registry {
			return filter.Scoped(filter.Switch(always(registry.ReadWrite), r), func(context.Context, string) bool { return true })
		},
	}
	for name, decorate := range open {
		t.Run(name, func(t *testing.T) {
			registrytest.Test(t, func(*testing.T) registry.Registry { return decorate(registrytest.NewMemory()) })
		})
	}
}

// closed are the decorators that refuse changes, over a registry with content.
func closed(t *testing.T) (map[string]registry.Registry, registrytest.Content) {
	t.Helper()
	inner := registrytest.NewMemory()
	content, err := registrytest.Seed(t.Context(), inner)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]registry.Registry{
		"ReadOnly":           filter.ReadOnly(inner),
		"Switch":             filter.Switch(always(registry.ReadOnly), inner),
		"Switch, no mode":    filter.Switch(always(""), inner),
		"Switch, odd mode":   filter.Switch(always("readwrite"), inner),
		"ReadOnly of Switch": filter.ReadOnly(filter.Switch(always(registry.ReadWrite), inner)),
	}, content
}

func TestReadOnlyReads(t *testing.T) {
	registries, content := closed(t)
	for name, r := range registries {
		t.Run(name, func(t *testing.T) {
			registrytest.TestReader(t, content, func(*testing.T) registrytest.ReadLister { return r })
		})
	}
}

func TestReadOnlyRefusesEveryChange(t *testing.T) {
	registries, content := closed(t)
	image := content.Repositories["acme/base"].Tags["latest"]
	for name, r := range registries {
		ctx := t.Context()
		_, start := r.StartUpload(ctx, "acme/base")
		_, resume := r.ResumeUpload(ctx, "acme/base", "id")
		_, mount := r.MountBlob(ctx, "acme/base", "acme/app", image.Blobs[0].Digest)
		_, put := r.PutManifest(ctx, "acme/base", registry.TagReference("new"), image.Manifest)
		for what, err := range map[string]error{
			"StartUpload": start, "ResumeUpload": resume, "MountBlob": mount, "PutManifest": put,
			"DeleteManifest": r.DeleteManifest(ctx, "acme/base", image.Digest),
			"DeleteTag":      r.DeleteTag(ctx, "acme/base", "latest"),
			"DeleteBlob":     r.DeleteBlob(ctx, "acme/base", image.Blobs[0].Digest),
		} {
			if !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), "This operation is not allowed on this registry.") {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		if _, err := r.GetManifest(ctx, "acme/base", registry.TagReference("latest")); err != nil {
			t.Errorf("%s: the manifest is gone: %v", name, err)
		}
	}
}

func TestSwitchWhileAnUploadIsOpen(t *testing.T) {
	mode := registry.ReadWrite
	r := filter.Switch(func() registry.Mode { return mode }, registrytest.NewMemory())
	b := registrytest.NewBlob(1, 100)
	u, err := r.StartUpload(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(b.Bytes); err != nil {
		t.Fatal(err)
	}
	mode = registry.ReadOnly
	if _, err := u.Commit(t.Context(), b.Digest); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("Commit in ReadOnly mode: %v", err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	mode = registry.ReadWrite
	u, err = r.ResumeUpload(t.Context(), "a", u.ID())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), b.Digest); err != nil {
		t.Errorf("Commit after the mode came back: %v", err)
	}
}

// numbered is a catalog of n repositories; no other method may be called.
type numbered struct {
	registry.Unsupported
	n int
}

func (c numbered) Repositories(_ context.Context, after string, limit int) ([]string, error) {
	var got []string
	for i := 0; i < c.n && len(got) < limit; i++ {
		if name := fmt.Sprintf("r%05d", i); name > after {
			got = append(got, name)
		}
	}
	return got, nil
}

func TestScopedPagesAreFull(t *testing.T) {
	const n = 3500
	want := []string{}
	for i := 0; i < n; i += 700 {
		want = append(want, fmt.Sprintf("r%05d", i))
	}
	r := filter.Scoped(numbered{n: n}, func(_ context.Context, repo string) bool { return slices.Contains(want, repo) })
	for limit := 1; limit <= len(want)+1; limit++ {
		var all []string
		for after := ""; ; after = all[len(all)-1] {
			got, err := r.Repositories(t.Context(), after, limit)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, got...)
			if len(got) < limit {
				break
			}
		}
		if !slices.Equal(all, want) {
			t.Errorf("limit %d: %v, want %v", limit, all, want)
		}
	}
}

func TestScopedAsksForTheCaller(t *testing.T) {
	r := filter.Scoped(numbered{n: 3}, func(ctx context.Context, _ string) bool { return registry.PrincipalFrom(ctx).Name == "line-a" })
	if got, err := r.Repositories(t.Context(), "", 10); err != nil || len(got) != 0 {
		t.Errorf("anonymous: %v, %v", got, err)
	}
	if got, err := r.Repositories(registry.WithPrincipal(t.Context(), registry.Principal{Name: "line-a"}), "", 10); err != nil || len(got) != 3 {
		t.Errorf("line-a: %v, %v", got, err)
	}
}
