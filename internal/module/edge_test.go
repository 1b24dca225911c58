package module

import (
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestProxyTrouble: whatever brings twins/ into the path of a request is told of, by its name.
func TestProxyTrouble(t *testing.T) {
	for repo, want := range map[string]bool{
		"acme/twins": true, "twins": true, "acme/digital-twins/plc": true, "acme/digital-twins/*": true,
		"acme/twinset": false, "acme/*": false, "*": false, "acme/twins-ui": false,
	} {
		list := proxyTrouble(registry.Scope{{Repository: repo}}, time.Time{})
		if got := len(list) == 1; got != want || got && !strings.Contains(list[0].Description, repo) {
			t.Errorf("%s: %+v", repo, list)
		}
	}
}
