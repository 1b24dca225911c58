package registry

import (
	"regexp"
	"strings"
)

// Limits of names. A repository name is bounded because clients put host and name into 255 bytes.
const (
	MaxRepositoryLength = 255 // bytes
	MaxTagLength        = 128 // bytes, OCI distribution spec, "Pulling manifests"
)

var (
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// ValidateRepository checks the grammar of a repository name (OCI distribution spec, "Pulling manifests").
//
// Errors: NAME_INVALID.
func ValidateRepository(name string) error {
	if len(name) > MaxRepositoryLength || !repositoryPattern.MatchString(name) {
		return ErrNameInvalid.WithMessage("repository name %q: want lower-case letters, digits and single . _ - inside path parts, at most %d bytes", clip(name), MaxRepositoryLength).
			WithDetail(map[string]string{"name": clip(name)})
	}
	return nil
}

// ValidateTag checks the grammar of a tag.
//
// Errors: TAG_INVALID.
func ValidateTag(tag string) error {
	if !tagPattern.MatchString(tag) {
		return ErrTagInvalid.WithMessage("tag %q: want a letter, digit or _ and then at most 127 letters, digits, . _ -", clip(tag)).
			WithDetail(map[string]string{"tag": clip(tag)})
	}
	return nil
}

// Reference names a manifest within a repository: by tag or by digest, never both.
type Reference struct {
	Tag    string
	Digest Digest
}

// TagReference and DigestReference make the two kinds of Reference.
func TagReference(tag string) Reference { return Reference{Tag: tag} }

// DigestReference refers to exactly one content.
func DigestReference(d Digest) Reference { return Reference{Digest: d} }

// ParseReference reads the last path element of a manifest request.
//
// Errors: DIGEST_INVALID where it holds a colon, TAG_INVALID otherwise.
func ParseReference(s string) (Reference, error) {
	if strings.Contains(s, ":") {
		d, err := ParseDigest(s)
		return Reference{Digest: d}, err
	}
	return Reference{Tag: s}, ValidateTag(s)
}

// String returns the tag or the digest.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}
