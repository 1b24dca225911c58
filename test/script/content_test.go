package script

import (
	"context"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/connected-registry/connected-registry/test/cloud"
)

// image makes an image of named layers, or an artifact that refers to another image.
func image(ctx context.Context, names []string) (v1.Image, error) {
	if subject, ok := strings.CutPrefix(names[0], "sbom="); ok {
		addr, ref, _ := strings.Cut(subject, "/")
		r, err := cloud.Ref(addr, ref)
		if err != nil {
			return nil, err
		}
		img, err := remote.Image(r, remote.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		return cloud.Artifact(img, "application/spdx+json", "{}")
	}
	var layers []v1.Layer
	for _, name := range names {
		l, err := cloud.Layer(name, 64<<10)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return cloud.Image(layers...)
}
