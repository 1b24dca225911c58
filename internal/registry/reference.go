package registry

import "strings"

// Limits of names. A repository name is bounded because clients put host and name into 255 bytes.
const (
	MaxRepositoryLength = 255 // bytes
	MaxTagLength        = 128 // bytes, OCI distribution spec, "Pulling manifests"
)

// Both grammars are read by hand: each request has a name and a reference, and regexp takes longer than the rest of its
// parsing.

// isRepository reports whether a name is [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*.
func isRepository(name string) bool {
	for begin := 0; ; {
		end := begin
		for end < len(name) && isAlphanumeric(name[end]) {
			end++
		}
		if end == begin {
			return false
		}
		if end == len(name) {
			return true
		}
		begin = end + separator(name[end:])
		if begin == end {
			return false
		}
	}
}

// separator returns how long what separates two words at the beginning of s is: one of / . _ __ or any number of -.
func separator(s string) int {
	switch s[0] {
	case '/', '.':
		return 1
	case '_':
		if strings.HasPrefix(s, "__") {
			return 2
		}
		return 1
	}
	return len(s) - len(strings.TrimLeft(s, "-"))
}

func isAlphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// isTag reports whether a text is [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func isTag(tag string) bool {
	if tag == "" || len(tag) > MaxTagLength || tag[0] == '.' || tag[0] == '-' {
		return false
	}
	for i := range len(tag) {
		if c := tag[i]; !isAlphanumeric(c) && (c < 'A' || c > 'Z') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// ValidateRepository checks the grammar of a repository name (OCI distribution spec, "Pulling manifests").
//
// Errors: NAME_INVALID.
func ValidateRepository(name string) error {
	if len(name) > MaxRepositoryLength || !isRepository(name) {
		return ErrNameInvalid.WithMessage("repository name %q: want lower-case letters, digits and single . _ - inside path parts, at most %d bytes", clip(name), MaxRepositoryLength).
			WithDetail(map[string]string{"name": clip(name)})
	}
	return nil
}

// ValidateTag checks the grammar of a tag.
//
// Errors: TAG_INVALID.
func ValidateTag(tag string) error {
	if !isTag(tag) {
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
