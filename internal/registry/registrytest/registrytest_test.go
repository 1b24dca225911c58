package registrytest_test

import (
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
)

func TestMemory(t *testing.T) {
	registrytest.Test(t, func(*testing.T) registry.Registry { return registrytest.NewMemory() })
}

func TestSameSeedSameImage(t *testing.T) {
	if a, b := registrytest.NewImage(7, 100, 200), registrytest.NewImage(7, 100, 200); a.Digest != b.Digest {
		t.Errorf("%s and %s: want the same", a.Digest, b.Digest)
	}
	if a, b := registrytest.NewImage(7, 100), registrytest.NewImage(8, 100); a.Digest == b.Digest || a.Blobs[1].Digest == b.Blobs[1].Digest {
		t.Error("other seeds give the same image or layer")
	}
}
