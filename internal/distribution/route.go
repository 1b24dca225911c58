package distribution

import (
	"net/http"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// route is one row of the table: what a method does on a kind of path, and the action of a scope map that it needs on
// the repository. An empty action needs only that the client is somebody.
type route struct {
	kind   Kind
	method string
	action registry.Action
	handle func(*server, http.ResponseWriter, *http.Request, Request) error
}

// routes is the whole surface. Lists need metadata/read and untagging metadata/write, as in ACR.
var routes = []route{
	{KindPing, http.MethodGet, "", (*server).ping},
	{KindPing, http.MethodHead, "", (*server).ping},
	{KindCatalog, http.MethodGet, registry.CatalogList, (*server).listRepositories},
	{KindTags, http.MethodGet, registry.MetadataRead, (*server).listTags},
	{KindReferrers, http.MethodGet, registry.ContentRead, (*server).listReferrers},
	{KindCatalog, http.MethodHead, registry.CatalogList, (*server).listRepositories},
	{KindTags, http.MethodHead, registry.MetadataRead, (*server).listTags},
	{KindReferrers, http.MethodHead, registry.ContentRead, (*server).listReferrers},

	{KindBlob, http.MethodGet, registry.ContentRead, (*server).getBlob},
	{KindBlob, http.MethodHead, registry.ContentRead, (*server).headBlob},
	{KindBlob, http.MethodDelete, registry.ContentDelete, (*server).deleteBlob},

	{KindTag, http.MethodGet, registry.ContentRead, (*server).getManifest},
	{KindTag, http.MethodHead, registry.ContentRead, (*server).headManifest},
	{KindTag, http.MethodPut, registry.ContentWrite, (*server).putManifest},
	{KindTag, http.MethodDelete, registry.MetadataWrite, (*server).deleteTag},
	{KindManifest, http.MethodGet, registry.ContentRead, (*server).getManifest},
	{KindManifest, http.MethodHead, registry.ContentRead, (*server).headManifest},
	{KindManifest, http.MethodPut, registry.ContentWrite, (*server).putManifest},
	{KindManifest, http.MethodDelete, registry.ContentDelete, (*server).deleteManifest},

	{KindUploads, http.MethodPost, registry.ContentWrite, (*server).startUpload},
	{KindUpload, http.MethodGet, registry.ContentWrite, (*server).uploadStatus},
	{KindUpload, http.MethodHead, registry.ContentWrite, (*server).uploadStatus},
	{KindUpload, http.MethodPatch, registry.ContentWrite, (*server).patchUpload},
	{KindUpload, http.MethodPut, registry.ContentWrite, (*server).putUpload},
	{KindUpload, http.MethodDelete, registry.ContentWrite, (*server).cancelUpload},
}

// find returns the row. Errors: UNSUPPORTED, for the answer 405.
func find(k Kind, method string) (*route, error) {
	for i := range routes {
		if routes[i].kind == k && routes[i].method == method {
			return &routes[i], nil
		}
	}
	return nil, registry.ErrUnsupported
}

// allowed lists the methods of a kind of path but the one that was refused, for the Allow header.
func allowed(k Kind, refused string) string {
	var methods []string
	for _, rt := range routes {
		if rt.kind == k && rt.method != refused {
			methods = append(methods, rt.method)
		}
	}
	return strings.Join(methods, ", ")
}
