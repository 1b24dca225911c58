package registry

import "context"

// Unsupported refuses everything. A decorator that lets only some operations through embeds it, so that an
// operation added to Registry later is refused until somebody has decided about it.
type Unsupported struct{}

var _ Registry = Unsupported{}

// GetManifest returns UNSUPPORTED, as every method does.
func (Unsupported) GetManifest(context.Context, string, Reference) (Manifest, error) {
	return Manifest{}, ErrUnsupported
}

// ResolveManifest returns UNSUPPORTED.
func (Unsupported) ResolveManifest(context.Context, string, Reference) (Descriptor, error) {
	return Descriptor{}, ErrUnsupported
}

// GetBlob returns UNSUPPORTED.
func (Unsupported) GetBlob(context.Context, string, Digest) (BlobReader, error) {
	return nil, ErrUnsupported
}

// ResolveBlob returns UNSUPPORTED.
func (Unsupported) ResolveBlob(context.Context, string, Digest) (Descriptor, error) {
	return Descriptor{}, ErrUnsupported
}

// Repositories returns UNSUPPORTED.
func (Unsupported) Repositories(context.Context, string, int) ([]string, error) {
	return nil, ErrUnsupported
}

// Tags returns UNSUPPORTED.
func (Unsupported) Tags(context.Context, string, string, int) ([]string, error) {
	return nil, ErrUnsupported
}

// Referrers returns UNSUPPORTED.
func (Unsupported) Referrers(context.Context, string, Digest, string) ([]Descriptor, error) {
	return nil, ErrUnsupported
}

// StartUpload returns UNSUPPORTED.
func (Unsupported) StartUpload(context.Context, string) (Upload, error) { return nil, ErrUnsupported }

// ResumeUpload returns UNSUPPORTED.
func (Unsupported) ResumeUpload(context.Context, string, string) (Upload, error) {
	return nil, ErrUnsupported
}

// MountBlob returns UNSUPPORTED.
func (Unsupported) MountBlob(context.Context, string, string, Digest) (Descriptor, error) {
	return Descriptor{}, ErrUnsupported
}

// PutManifest returns UNSUPPORTED.
func (Unsupported) PutManifest(context.Context, string, Reference, Manifest) (Descriptor, error) {
	return Descriptor{}, ErrUnsupported
}

// DeleteManifest returns UNSUPPORTED.
func (Unsupported) DeleteManifest(context.Context, string, Digest) error { return ErrUnsupported }

// DeleteTag returns UNSUPPORTED.
func (Unsupported) DeleteTag(context.Context, string, string) error { return ErrUnsupported }

// DeleteBlob returns UNSUPPORTED.
func (Unsupported) DeleteBlob(context.Context, string, Digest) error { return ErrUnsupported }
