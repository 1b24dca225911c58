package archtest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const page = "| tier | package | what it is | owner of |\n|---|---|---|---|\n" +
	"| T0 | `registry` | nouns | |\n| | `registry/registrytest` | suite | |\n" +
	"| T1 | `schedule` | cron | go-cron, duration |\n| T2 | `store` | keeps | bbolt |\n| | `syncer` | fetches | |\n" +
	"| T3 | `module` | wiring | logrus |\n"

func TestTable(t *testing.T) {
	rules, err := parseTable(page)
	if err != nil {
		t.Fatal(err)
	}
	if got := rules.tier["syncer"]; got != 2 {
		t.Errorf("syncer is in tier %d, want that of the row above, 2", got)
	}
	if got := rules.owners["duration"]; !slices.Equal(got, []string{"schedule"}) {
		t.Errorf("owners of duration: %v", got)
	}
	for _, bad := range []string{"", "no table", page + "| | `store` | again | |\n"} {
		if _, err := parseTable(bad); err == nil {
			t.Errorf("page %.20q...: no error", bad)
		}
	}
}

// TestRules breaks each rule once.
func TestRules(t *testing.T) {
	rules, err := parseTable(page)
	if err != nil {
		t.Fatal(err)
	}
	const in = `import _ "github.com/connected-registry/connected-registry/internal/`
	for name, tc := range map[string]struct {
		path, body, want string // want is part of the one violation; empty for none
	}{
		"lower tier":         {"internal/store/a.go", in + `schedule"`, ""},
		"sibling":            {"internal/store/a.go", in + `syncer"`, "never siblings"},
		"higher tier":        {"internal/schedule/a.go", in + `store"`, "only lower tiers"},
		"suite below a noun": {"internal/registry/registrytest/a.go", in + `registry"`, ""},
		"suite in product":   {"internal/store/a.go", in + `registry/registrytest"`, "for tests"},
		"unknown imported":   {"internal/registry/a.go", in + `elsewhere"`, "only lower tiers"},
		"unknown package":    {"internal/util/a.go", "", "not in the table"},
		"owner":              {"internal/store/a.go", `import _ "go.etcd.io/bbolt"`, ""},
		"not the owner":      {"internal/syncer/a.go", `import _ "go.etcd.io/bbolt"`, "belongs to [store]"},
		"version in path":    {"internal/syncer/a.go", `import _ "github.com/netresearch/go-cron/v2"`, "belongs to [schedule]"},
		"no owner":           {"internal/syncer/a.go", `import _ "example.com/left/pad"`, "has no owner"},
		"shared":             {"internal/syncer/a.go", `import _ "golang.org/x/sync/errgroup"`, ""},
		"cmd and cobra":      {"cmd/x/a.go", `import _ "github.com/spf13/cobra"`, ""},
		"cmd and bbolt":      {"cmd/x/a.go", `import _ "go.etcd.io/bbolt"`, "belongs to [store]"},
		"module and cobra":   {"internal/module/a.go", `import _ "github.com/spf13/cobra"`, "belongs to []"},
		"test is free":       {"internal/store/a_test.go", in + `syncer"`, ""},
		"context":            {"internal/store/a.go", `var _ = context.TODO()`, "context.TODO"},
		"context in module":  {"internal/module/a.go", `var _ = context.Background()`, ""},
		"time":               {"internal/store/a.go", `var _ = time.Now`, "time.Now"},
		"timer":              {"internal/store/a.go", `var _ = time.NewTimer(1)`, ""},
		"insecure":           {"test/demo/a.go", `var _ = tls.Config{InsecureSkipVerify: true}`, "InsecureSkipVerify"},
		"skip":               {"internal/store/a_test.go", `func TestX(t *testing.T) { t.Skip() }`, "no reason"},
		"skip for a reason":  {"internal/store/a_test.go", `func TestX(t *testing.T) { t.Skip("skopeo is missing") }`, ""},
		"long function":      {"internal/store/a.go", "func f() {" + strings.Repeat("\n", maxFuncLines) + "}", "f has 81 lines"},
		"long file":          {"internal/store/a.go", strings.Repeat("\n", maxFileLines), "502 lines"},
		"wide interface":     {"internal/store/a.go", "type I interface { A();B();C();D();E();F();G();H();I() }", "9 methods"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			file := filepath.Join(root, filepath.FromSlash(tc.path))
			if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte("// Package x is x.\npackage x\n"+tc.body), 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := check(root, rules)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tc.want == "" && len(found) > 0:
				t.Errorf("found %q, want nothing", found)
			case tc.want != "" && (len(found) != 1 || !strings.Contains(found[0], tc.want)):
				t.Errorf("found %q, want one with %q", found, tc.want)
			}
		})
	}
}

func TestPackageComments(t *testing.T) {
	rules, err := parseTable(page)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"none": {map[string]string{"a.go": "package store\n"}, "0 package comments"},
		"two":  {map[string]string{"a.go": "// Package store.\npackage store\n", "b.go": "// Package store.\npackage store\n"}, "2 package comments"},
		"one":  {map[string]string{"a.go": "// Package store.\npackage store\n", "b.go": "package store\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "internal", "store")
			if err := os.MkdirAll(dir, 0o750); err != nil {
				t.Fatal(err)
			}
			for file, body := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(body), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			found, err := check(root, rules)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(found, "\n"); !strings.Contains(got, tc.want) || (tc.want == "") != (got == "") {
				t.Errorf("found %q, want %q", got, tc.want)
			}
		})
	}
}
