package registry_test

import (
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

func TestParsePermission(t *testing.T) {
	for _, tt := range []struct{ in, want, wrong string }{
		{in: "repositories/acme/app/content/read", want: "repositories/acme/app/content/read"},
		{in: "Repositories/Acme/App/Content/Read", want: "repositories/acme/app/content/read"},
		{in: "repositories/*/metadata/write", want: "repositories/*/metadata/write"},
		{in: "repositories/acme/*/content/delete", want: "repositories/acme/*/content/delete"},
		{in: "repositories/content/read/content/read", want: "repositories/content/read/content/read"},
		{in: "gateway/lineA/message/write", want: "gateway/linea/message/write"},
		{in: "repositories/sample/*/teamA/content/read", wrong: "wildcard"},
		{in: "repositories/sample/teamA*/content/read", wrong: "wildcard"},
		{in: "repositories/sample/teamA/*/projectB/*/content/read", wrong: "wildcard"},
		{in: "repositories/**/content/read", wrong: "wildcard"},
		{in: "repositories//*/content/read", wrong: "not a repository name"},
		{in: "repositories//content/read", wrong: "not a repository name"},
		{in: "repositories/a/../b/content/read", wrong: "not a repository name"},
		{in: "repositories/a/content/admin", wrong: "end in one of"},
		{in: "repositories/a/config/read", wrong: "end in one of"},
		{in: "repositories/content/read", wrong: "end in one of"},
		{in: "gateway/*/config/read", wrong: "not the name"},
		{in: "gateway/a/content/read", wrong: "end in one of"},
		{in: "registry/catalog/*", wrong: "want repositories/"},
		{in: "repositories", wrong: "want repositories/"},
		{in: "", wrong: "want repositories/"},
	} {
		got, err := registry.ParsePermission(tt.in)
		if tt.wrong == "" {
			if err != nil || got.String() != tt.want {
				t.Errorf("%q: %q, %v, want %q", tt.in, got, err, tt.want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.wrong) {
			t.Errorf("%q: error %v, want one with %q", tt.in, err, tt.wrong)
		}
	}
}

func TestPermissionAllows(t *testing.T) {
	for _, tt := range []struct {
		line, name string
		want       bool
	}{
		{"repositories/acme/*/content/read", "acme/app", true},
		{"repositories/acme/*/content/read", "acme/app/deep", true},
		{"repositories/acme/*/content/read", "acme", false},
		{"repositories/acme/*/content/read", "acmes/app", false},
		{"repositories/acme/*/content/write", "acme/app", false},
		{"repositories/*/content/read", "a", true},
		{"repositories/acme/content/read", "acme", true},
		{"repositories/acme/content/read", "acme/app", false},
		{"gateway/acme/config/read", "acme", false},
	} {
		p, err := registry.ParsePermission(tt.line)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Allows(registry.ResourceRepositories, tt.name, registry.ContentRead); got != tt.want {
			t.Errorf("%s allows content/read of %s: %v", tt.line, tt.name, got)
		}
	}
}

func TestActionsOf(t *testing.T) {
	if got := registry.ActionsOf(registry.ReadOnly); len(got) != 2 {
		t.Errorf("ReadOnly: %v", got)
	}
	if got := registry.ActionsOf(registry.ReadWrite); len(got) != 5 {
		t.Errorf("ReadWrite: %v", got)
	}
}
