package access

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/module"
	"github.com/connected-registry/connected-registry/internal/registry"
)

// trail reads the audit log.
func (s *site) trail() (list []registry.AuditRecord) {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.data, "audit", "audit.log"))
	if os.IsNotExist(err) {
		return nil
	}
	must(s.t, err)
	for line := range strings.Lines(string(raw)) {
		var r registry.AuditRecord
		must(s.t, json.Unmarshal([]byte(line), &r))
		if len(list) > 0 && r.Seq != list[len(list)-1].Seq+1 {
			s.t.Errorf("record %d follows %d", r.Seq, list[len(list)-1].Seq)
		}
		list = append(list, r)
	}
	return list
}

// TestAudit does all that the audit log tells of, and looks for who, what, digest, result and from where; then it switches
// the log off and on by the document.
func TestAudit(t *testing.T) {
	doc := document(registry.ReadWrite)
	doc["logging"] = map[string]any{"auditLogStatus": "Enabled"}
	s := start(t, doc, nil)
	s.ready()
	manifest := digest(empty)
	blob := s.push(t, "all", "acme/app", "a layer")
	for _, r := range []request{
		{method: "PUT", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all", body: empty, contentType: indexType},
		{method: "PUT", path: "/v2/acme/app/manifests/v2", user: "only-content-read", password: "pw-only-content-read", body: empty, contentType: indexType},
		{method: "PATCH", path: "/acr/v1/acme/app", user: "all", password: "pw-all", body: `{"deleteEnabled":true}`, contentType: "application/json"},
		{method: "DELETE", path: "/v2/acme/app/manifests/v1", user: "all", password: "pw-all"},
		{method: "DELETE", path: "/v2/acme/app/blobs/" + blob, user: "all", password: "pw-all"},
		{method: "DELETE", path: "/v2/acme/app/manifests/" + manifest, user: "all", password: "pw-all", header: map[string]string{"X-Forwarded-For": "10.1.2.3"}},
		{method: "GET", path: "/v2/", user: "all", password: "wrong"},
		{method: "PUT", path: "/v2/_connected/v1/activation", user: "all", password: "pw-all", body: `{"name":"lower","instanceId":"1","mode":"ReadOnly"}`},
		{method: "PUT", path: "/v2/_connected/v1/activation", user: "all", password: "pw-all", body: `{"name":"lower","instanceId":"2","mode":"ReadOnly"}`},
	} {
		s.ask(r)
	}
	var out any
	must(t, module.Control(t.Context(), s.data, http.MethodPost, "/methods/gc", nil, &out))
	want := []registry.AuditRecord{
		{Category: registry.AuditConfiguration, Operation: "apply", Principal: "operator", Result: registry.AuditSuccess, From: filepath.Join(s.dir, "config.json")},
		{Category: registry.AuditLogin, Operation: "signIn", Principal: "all", Result: registry.AuditSuccess, From: "127.0.0.1"},
		{Category: registry.AuditContent, Operation: "push", Principal: "all", Repository: "acme/app", Tag: "v1", Digest: registry.Digest(manifest), Result: registry.AuditSuccess, From: "127.0.0.1"},
		{Category: registry.AuditContent, Operation: "push", Principal: "only-content-read", Repository: "acme/app", Result: registry.AuditDenied, Code: registry.CodeDenied, From: "127.0.0.1"},
		{Category: registry.AuditContent, Operation: "change", Principal: "all", Repository: "acme/app", Result: registry.AuditSuccess, From: "127.0.0.1"},
		{Category: registry.AuditContent, Operation: "untag", Principal: "all", Repository: "acme/app", Tag: "v1", Result: registry.AuditSuccess, From: "127.0.0.1"},
		{Category: registry.AuditContent, Operation: "deleteBlob", Principal: "all", Repository: "acme/app", Digest: registry.Digest(blob), Result: registry.AuditSuccess, From: "127.0.0.1"},
		{Category: registry.AuditContent, Operation: "delete", Principal: "all", Repository: "acme/app", Digest: registry.Digest(manifest), Result: registry.AuditSuccess, From: "127.0.0.1 for 10.1.2.3"},
		{Category: registry.AuditLogin, Operation: "signIn", Principal: "all", Result: registry.AuditDenied, Code: registry.CodeUnauthorized, From: "127.0.0.1"},
		{Category: registry.AuditHierarchy, Operation: "activate", Principal: "all", Result: registry.AuditSuccess, From: "127.0.0.1"},
		{Category: registry.AuditHierarchy, Operation: "activate", Principal: "all", Result: registry.AuditFailed, Code: registry.CodeActivated, From: "127.0.0.1"},
		{Category: registry.AuditAdministration, Operation: "gc", Principal: "operator", Result: registry.AuditSuccess},
	}
	missing := func() (list []string) {
		have := s.trail()
		for _, w := range want {
			if !slices.ContainsFunc(have, func(r registry.AuditRecord) bool {
				told := !r.Time.IsZero() && (w.From == "" || r.From == w.From)
				r.Seq, r.Time, r.Detail, r.Count, r.From = w.Seq, w.Time, w.Detail, w.Count, w.From
				return told && r == w
			}) {
				list = append(list, fmt.Sprintf("%+v", w))
			}
		}
		return list
	}
	s.until("all of it is in the log", func() bool { return len(missing()) == 0 })

	ends := func(operation string) func() bool {
		return func() bool {
			list := s.trail()
			return len(list) > 0 && list[len(list)-1].Operation == operation
		}
	}
	doc["logging"] = map[string]any{"auditLogStatus": "Disabled"}
	s.configure(doc)
	s.until("the log says that it is off", ends("disabled"))
	s.ask(request{method: "PUT", path: "/v2/acme/app/manifests/unseen", user: "all", password: "pw-all", body: empty, contentType: indexType})
	doc["logging"] = map[string]any{"auditLogStatus": "Enabled"}
	s.configure(doc)
	s.until("it is on again", func() bool {
		return slices.ContainsFunc(s.trail(), func(r registry.AuditRecord) bool { return r.Operation == "enabled" && r.Seq > 2 })
	})
	if slices.ContainsFunc(s.trail(), func(r registry.AuditRecord) bool { return r.Tag == "unseen" }) {
		t.Error("a push is in the log that was off")
	}
}
