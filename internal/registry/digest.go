package registry

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Digest names content by its hash, for example "sha256:<64 lower-case hex digits>". Strings that come from
// outside become a Digest only through [ParseDigest].
type Digest = digest.Digest

// Descriptor points at content: media type, digest, size in bytes (OCI image spec, descriptor.md).
type Descriptor = ocispec.Descriptor

// Platform selects one image of an index (OCI image spec, image-index.md).
type Platform = ocispec.Platform

// isDigest reports whether a text is sha256:[a-f0-9]{64} or sha512:[a-f0-9]{128} and no more: a digest becomes part of a
// file name.
func isDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(hex) != 64 {
		if hex, ok = strings.CutPrefix(s, "sha512:"); !ok || len(hex) != 128 {
			return false
		}
	}
	for i := range len(hex) {
		if c := hex[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// ParseDigest accepts sha256 and sha512 digests in lower-case hex and nothing else.
//
// Errors: DIGEST_INVALID.
func ParseDigest(s string) (Digest, error) {
	if !isDigest(s) {
		return "", ErrDigestInvalid.WithMessage("digest %q is not sha256:<64 hex> or sha512:<128 hex> in lower case", clip(s)).
			WithDetail(map[string]string{"digest": clip(s)})
	}
	return Digest(s), nil
}

// clip bounds a client's text before it goes into a message.
func clip(s string) string {
	const limit = 160
	if len(s) > limit {
		return fmt.Sprintf("%s... (%d bytes)", s[:limit], len(s))
	}
	return s
}
