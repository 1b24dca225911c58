package module

import (
	"testing"

	"github.com/connected-registry/connected-registry/internal/twin"
)

// TestAcknowledgeParent: a document without parent.gatewayEndpoint takes that of the connection string, and says so.
func TestAcknowledgeParent(t *testing.T) {
	env := map[string]string{twin.EnvParentEndpoint: "edge-l5:8000"}
	m := newModule(Options{Lookup: func(name string) (string, bool) { s, ok := env[name]; return s, ok }})
	doc := twin.Document{Raw: []byte(`{"parent":{"syncProperties":{"schedule":"* * * * *"}}}`), Version: 7}
	config, errs := twin.Parse(doc.Raw, twin.ParseOptions{})
	m.acknowledge(doc, config, errs)
	if a := m.acks["parent"]; a.Value != "edge-l5:8000" || a.Code != twin.AckApplied || a.Version != 7 {
		t.Errorf("the parent is acknowledged with %+v", a)
	}
}
