package acr

import (
	"net/http"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// route is one row of the table. What changes something is refused in ReadOnly mode.
type route struct {
	kind    kind
	method  string
	action  registry.Action
	changes bool
	handle  func(*server, http.ResponseWriter, *http.Request, request) (answer, error)
}

// routes is the whole surface, with the permissions that ACR wants ("Repository-scoped permissions").
var routes = []route{
	{kindCatalog, http.MethodGet, registry.CatalogList, false, (*server).listRepositories},

	{kindRepository, http.MethodGet, registry.MetadataRead, false, (*server).getRepository},
	{kindRepository, http.MethodPatch, registry.MetadataWrite, true, (*server).patchRepository},
	{kindRepository, http.MethodDelete, registry.ContentDelete, true, (*server).deleteRepository},

	{kindTags, http.MethodGet, registry.MetadataRead, false, (*server).listTags},
	{kindTag, http.MethodGet, registry.MetadataRead, false, (*server).getTag},
	{kindTag, http.MethodPatch, registry.MetadataWrite, true, (*server).patchTag},
	{kindTag, http.MethodDelete, registry.MetadataWrite, true, (*server).deleteTag},

	{kindManifests, http.MethodGet, registry.MetadataRead, false, (*server).listManifests},
	{kindManifest, http.MethodGet, registry.MetadataRead, false, (*server).getManifest},
	{kindManifest, http.MethodPatch, registry.MetadataWrite, true, (*server).patchManifest},
}

// find returns the row, or the methods that there are. HEAD is GET without the body, which net/http leaves out.
func find(k kind, method string) (*route, string) {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var methods []string
	for i := range routes {
		if routes[i].kind != k {
			continue
		}
		if routes[i].method == method {
			return &routes[i], ""
		}
		methods = append(methods, routes[i].method)
	}
	return nil, strings.Join(methods, ", ")
}
