package filter_test

import (
	"context"
	"testing"

	"github.com/connected-registry/connected-registry/internal/filter"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

type records []registry.AuditRecord

func (r *records) Audit(_ context.Context, rec registry.AuditRecord) { *r = append(*r, rec) }

func TestAuditedConformance(t *testing.T) {
	registrytest.Test(t, func(*testing.T) registry.Registry {
		return filter.Audited(registrytest.NewMemory(), registry.NoAudit{})
	})
}

func TestAuditedRecordsHowItEnded(t *testing.T) {
	ctx := t.Context()
	var got records
	open := registrytest.NewMemory()
	reg := filter.Audited(open, &got)
	m := registry.Manifest{
		Descriptor: registry.Descriptor{MediaType: "application/vnd.oci.image.index.v1+json"},
		Bytes:      []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`),
	}
	d, err := reg.PutManifest(ctx, "acme/app", registry.TagReference("1"), m)
	if err != nil {
		t.Fatal(err)
	}
	_ = reg.DeleteTag(ctx, "acme/app", "1")
	_ = reg.DeleteTag(ctx, "acme/app", "1")
	_ = reg.DeleteManifest(ctx, "acme/app", d.Digest)
	shut := filter.Audited(filter.ReadOnly(open), &got)
	_, _ = shut.StartUpload(ctx, "acme/app")
	_, _ = shut.PutManifest(ctx, "acme/app", registry.TagReference("2"), m)
	want := records{
		{Operation: "push", Tag: "1", Digest: d.Digest, Result: registry.AuditSuccess},
		{Operation: "untag", Tag: "1", Result: registry.AuditSuccess},
		{Operation: "untag", Tag: "1", Result: registry.AuditFailed, Code: registry.CodeManifestUnknown},
		{Operation: "delete", Digest: d.Digest, Result: registry.AuditSuccess},
		{Operation: "push", Result: registry.AuditDenied, Code: registry.CodeDenied},
		{Operation: "push", Tag: "2", Result: registry.AuditDenied, Code: registry.CodeDenied},
	}
	if len(got) != len(want) {
		t.Fatalf("%d records: %+v", len(got), got)
	}
	for i, w := range want {
		w.Category, w.Repository = registry.AuditContent, "acme/app"
		if got[i] != w {
			t.Errorf("record %d is %+v\nwant %+v", i, got[i], w)
		}
	}
}
