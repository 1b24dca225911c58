package registry

import "time"

// Attributes are what is switched off for a repository, a tag or a manifest (ACR, changeableAttributes: there each is
// switched on). The zero value switches nothing off.
type Attributes struct {
	NoDelete bool // deleteEnabled false: neither deleted nor untagged
	NoWrite  bool // writeEnabled false: neither overwritten nor deleted; in a repository nothing is pushed
	NoRead   bool // readEnabled false: not pulled
	NoList   bool // listEnabled false: not in lists
}

// Fixed reports whether nobody may delete it: ACR's lock is writeEnabled false alone, too.
func (a Attributes) Fixed() bool { return a.NoDelete || a.NoWrite }

// AttributeChange sets some of the attributes; nil leaves one as it is.
type AttributeChange struct {
	NoDelete, NoWrite, NoRead, NoList *bool
}

// Apply returns a with the change.
func (c AttributeChange) Apply(a Attributes) Attributes {
	for _, f := range []struct {
		to   *bool
		from *bool
	}{{&a.NoDelete, c.NoDelete}, {&a.NoWrite, c.NoWrite}, {&a.NoRead, c.NoRead}, {&a.NoList, c.NoList}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	return a
}

// Locks are the attributes of a repository and of what is in it, where any is switched off. A nil *Locks is none.
type Locks struct {
	Repository Attributes
	Tags       map[string]Attributes
	Manifests  map[Digest]Attributes
}

// Of returns the attributes of the repository itself.
func (l *Locks) Of() Attributes {
	if l == nil {
		return Attributes{}
	}
	return l.Repository
}

// Tag returns those of a tag.
func (l *Locks) Tag(tag string) Attributes {
	if l == nil {
		return Attributes{}
	}
	return l.Tags[tag]
}

// Manifest returns those of a manifest.
func (l *Locks) Manifest(d Digest) Attributes {
	if l == nil {
		return Attributes{}
	}
	return l.Manifests[d]
}

// RepositoryInfo is what is known of a repository.
type RepositoryInfo struct {
	Name             string
	Created, Updated time.Time // of the oldest and the newest that is in it
	Manifests, Tags  int
	Attributes       Attributes
}

// TagInfo is what is known of a tag.
type TagInfo struct {
	Name             string
	Digest           Digest
	Created, Updated time.Time // made, and moved last
	Attributes       Attributes
}

// ManifestInfo is what is known of a manifest in a repository.
type ManifestInfo struct {
	Descriptor
	Created, Updated time.Time // first here, and pushed or fetched last
	ImageSize        int64     // bytes of the manifest and the blobs that it refers to
	Tags             []string  // in lexical order
	Attributes       Attributes
}
