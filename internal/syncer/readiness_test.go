package syncer_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/syncer"
)

func TestReadiness(t *testing.T) {
	p := newParent()
	base := registrytest.NewBlob(1, 50_000)
	here, next := registrytest.NewImageOf(1, base), registrytest.NewImageOf(2, base, registrytest.NewBlob(3, 7_000))
	push(t, p, "app", "1", here)
	r, _ := newReplica(t, t.TempDir(), settings(t, p, "app"), syncer.Options{})
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	push(t, p, "app", "2", next)
	lacks := next.Blobs[0].Size + 7_000 + next.Size
	ask := func(free int64, images ...string) registry.Readiness {
		return r.Readiness(t.Context(), images, free)
	}
	got := ask(lacks, "$upstream:8000/app:1", "contoso.azurecr.io/app@"+here.Digest.String(), "app:2", "localhost/app:3", "other:1", "UPPER/x:1")
	want := registry.Readiness{
		FreeBytes: lacks, MissingBytes: lacks, Fits: true,
		Images: []registry.ImageReadiness{
			{Image: "$upstream:8000/app:1", State: registry.Complete, Digest: here.Digest},
			{Image: "contoso.azurecr.io/app@" + here.Digest.String(), State: registry.Complete, Digest: here.Digest},
			{Image: "app:2", State: registry.Partially, Digest: next.Digest, MissingBytes: lacks, MissingBlobs: 3},
			{Image: "localhost/app:3", State: registry.Absent, Reason: "x"},
			{Image: "other:1", State: registry.OutOfScope, Reason: "x"},
			{Image: "UPPER/x:1", State: registry.Absent, Reason: "x"},
		},
	}
	reason := cmpopts.AcyclicTransformer("anyReason", func(r registry.ImageReadiness) registry.ImageReadiness {
		if r.Reason != "" {
			r.Reason = "x"
		}
		return r
	})
	if diff := cmp.Diff(want, got, reason); diff != "" {
		t.Errorf("readiness (-want +got):\n%s", diff)
	}
	if got := ask(lacks-1, "app:2"); got.Fits || got.Ready {
		t.Errorf("one byte too few: %+v", got)
	}
	if got := ask(0, "app:1"); !got.Ready || !got.Fits {
		t.Errorf("all here: %+v", got)
	}
	p.set(func(p *parent) { p.away = away })
	if got := ask(0, "app:2"); got.Images[0].State != registry.Unknown || got.Images[0].Reason == "" {
		t.Errorf("with the parent away: %+v", got.Images)
	}
}
