package acr

import (
	"encoding/json"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// The JSON of the API, with the names of ACR's specification.

type attributesJSON struct {
	DeleteEnabled bool `json:"deleteEnabled"`
	WriteEnabled  bool `json:"writeEnabled"`
	ReadEnabled   bool `json:"readEnabled"`
	ListEnabled   bool `json:"listEnabled"`
}

func attributesOf(a registry.Attributes) attributesJSON {
	return attributesJSON{DeleteEnabled: !a.NoDelete, WriteEnabled: !a.NoWrite, ReadEnabled: !a.NoRead, ListEnabled: !a.NoList}
}

// patchJSON is the body of a change of attributes; what is absent or null stays.
type patchJSON struct {
	DeleteEnabled *bool `json:"deleteEnabled,omitempty"`
	WriteEnabled  *bool `json:"writeEnabled,omitempty"`
	ReadEnabled   *bool `json:"readEnabled,omitempty"`
	ListEnabled   *bool `json:"listEnabled,omitempty"`
}

func (p patchJSON) change() registry.AttributeChange {
	not := func(b *bool) *bool {
		if b == nil {
			return nil
		}
		n := !*b
		return &n
	}
	return registry.AttributeChange{NoDelete: not(p.DeleteEnabled), NoWrite: not(p.WriteEnabled), NoRead: not(p.ReadEnabled), NoList: not(p.ListEnabled)}
}

// text is the change for the audit log.
func (p patchJSON) text() string {
	raw, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

type catalogJSON struct {
	Repositories []string `json:"repositories"`
}

type repositoryJSON struct {
	Registry             string         `json:"registry"`
	ImageName            string         `json:"imageName"`
	CreatedTime          time.Time      `json:"createdTime"`
	LastUpdateTime       time.Time      `json:"lastUpdateTime"`
	ManifestCount        int            `json:"manifestCount"`
	TagCount             int            `json:"tagCount"`
	ChangeableAttributes attributesJSON `json:"changeableAttributes"`
}

type tagJSON struct {
	Name                 string          `json:"name"`
	Digest               registry.Digest `json:"digest"`
	CreatedTime          time.Time       `json:"createdTime"`
	LastUpdateTime       time.Time       `json:"lastUpdateTime"`
	Signed               bool            `json:"signed"` // of Docker Content Trust, which is not here
	ChangeableAttributes attributesJSON  `json:"changeableAttributes"`
}

func tagOf(t registry.TagInfo) tagJSON {
	return tagJSON{Name: t.Name, Digest: t.Digest, CreatedTime: t.Created, LastUpdateTime: t.Updated, ChangeableAttributes: attributesOf(t.Attributes)}
}

type manifestJSON struct {
	Digest               registry.Digest `json:"digest"`
	ImageSize            int64           `json:"imageSize"`
	CreatedTime          time.Time       `json:"createdTime"`
	LastUpdateTime       time.Time       `json:"lastUpdateTime"`
	Architecture         string          `json:"architecture,omitempty"`
	OS                   string          `json:"os,omitempty"`
	MediaType            string          `json:"mediaType"`
	ConfigMediaType      string          `json:"configMediaType,omitempty"`
	Tags                 []string        `json:"tags,omitempty"`
	ChangeableAttributes attributesJSON  `json:"changeableAttributes"`
	References           []referenceJSON `json:"references,omitempty"` // the manifests of an index
}

type referenceJSON struct {
	Digest       registry.Digest `json:"digest"`
	Architecture string          `json:"architecture,omitempty"`
	OS           string          `json:"os,omitempty"`
}

// imageJSON is one tag or manifest, or a list of them, of a repository.
type imageJSON struct {
	Registry  string         `json:"registry"`
	ImageName string         `json:"imageName"`
	Tag       *tagJSON       `json:"tag,omitempty"`
	Manifest  *manifestJSON  `json:"manifest,omitempty"`
	Tags      []tagJSON      `json:"tags,omitzero"`
	Manifests []manifestJSON `json:"manifests,omitzero"`
}

type deletedJSON struct {
	ManifestsDeleted []registry.Digest `json:"manifestsDeleted"`
	TagsDeleted      []string          `json:"tagsDeleted"`
}
