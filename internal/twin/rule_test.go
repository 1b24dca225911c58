package twin_test

import (
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

func TestParseRule(t *testing.T) {
	good := map[string]registry.RepositoryRule{
		"hello-world":                          {Repository: "hello-world"},
		"acme/vision:1.*":                      {Repository: "acme/vision", Tag: "1.*"},
		"acme/vision:v[0-9]*":                  {Repository: "acme/vision", Tag: "v[0-9]*"},
		"acme/vision:[^l]*":                    {Repository: "acme/vision", Tag: "[^l]*"},
		"acme/plc-gw@linux/arm64":              {Repository: "acme/plc-gw", Platform: "linux/arm64"},
		"acme/plc:1.0@linux/arm/v7":            {Repository: "acme/plc", Tag: "1.0", Platform: "linux/arm/v7"},
		"acme/vision:~1.4":                     {Repository: "acme/vision", Tag: "~1.4"},
		"acme/vision:>=1.2,<2||^3@linux/arm64": {Repository: "acme/vision", Tag: ">=1.2,<2||^3", Platform: "linux/arm64"},
		"acme/*":                               {Repository: "acme/*"},
		"*":                                    {Repository: "*"},
		"*:latest@windows/amd64":               {Repository: "*", Tag: "latest", Platform: "windows/amd64"},
		"acme/*:stable":                        {Repository: "acme/*", Tag: "stable"},
		"a.b_c__d--e/f/g:T_a-g.1":              {Repository: "a.b_c__d--e/f/g", Tag: "T_a-g.1"},
		"x:" + strings.Repeat("a", 128):        {Repository: "x", Tag: strings.Repeat("a", 128)},
	}
	for text, want := range good {
		got, err := twin.ParseRule(text)
		if err != nil || got != want {
			t.Errorf("ParseRule(%q) = %+v, %v, want %+v", text, got, err, want)
		}
		if got.String() != text {
			t.Errorf("%q comes back as %q", text, got)
		}
	}
	bad := map[string]string{
		"": "repository name", ":1.0": "repository name", "@linux/arm64": "repository name",
		"Acme/vision": "lower case", "acme*": "want * only", "acme/*/x": "want * only", "*/x": "want * only", "**": "want * only", "acme/**": "want * only", "/*": "repository name",
		"acme//x": "repository name", "acme/-x": "repository name", "acme/": "repository name",
		"acme/x:": "tag or a glob", "acme/x:[": "tag or a glob", "acme/x:a,b": "tag or a glob", "acme/x:" + strings.Repeat("a", 129): "tag or a glob", "acme/x:1:2": "tag or a glob", `acme/x:a\b`: "tag or a glob",
		"acme/x@": "platform", "acme/x@arm64": "platform", "acme/x@linux/": "platform", "acme/x@Linux/arm64": "platform", "acme/x@a/b/c/d": "platform",
		"acme/x@sha256:" + hexSum: "not digests", "edge:5000/acme/x": "without the host", "acme/<name>": "not replaced", "acme/x:<tag>": "not replaced", "acme/x:1.<n>": "not replaced", "acme/x:^": "range of versions", "acme/x:>=1.2,": "version is missing", "acme/x:~a1": "no range", "$REG/acme": "not replaced",
		strings.Repeat("a", 256): "at most 255", strings.Repeat("a", 256) + "/*": "too long",
	}
	for text, want := range bad {
		if _, err := twin.ParseRule(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseRule(%q) = %v, want an error with %q", text, err, want)
		}
	}
}

func TestParseAction(t *testing.T) {
	good := map[string]string{
		"repositories/acme/x/content/read": "repositories/acme/x/content/read", "repositories/Acme/X/metadata/write": "repositories/acme/x/metadata/write",
		"repositories/*/content/delete": "repositories/*/content/delete", "repositories/acme/*/content/write": "repositories/acme/*/content/write",
		"repositories/content/read/metadata/read": "repositories/content/read/metadata/read",
		"gateway/Line5/config/read":               "gateway/line5/config/read", "gateway/line5/message/write": "gateway/line5/message/write",
	}
	for text, want := range good {
		if got, err := twin.ParseAction(text); err != nil || got != want {
			t.Errorf("ParseAction(%q) = %q, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "repositories", "repositories/acme/x", "repositories/acme/x/content", "repositories/acme/x/content/fly", "repositories/acme/x/metadata/delete",
		"repositories//content/read", "repositories/content/read", "repositories/acme/*/x/content/read", "repositories/acme*/content/read", "repositories/acme/x/content/read/",
		"gateway/line5/content/read", "gateway//config/read", "gateway/a/b/config/read", "registry/catalog", "Repositories/x/content/read", "*",
	} {
		if got, err := twin.ParseAction(text); err == nil {
			t.Errorf("ParseAction(%q) = %q, want an error", text, got)
		}
	}
}

func TestNotifications(t *testing.T) {
	check := func(pattern string) error {
		_, errs := twin.Parse([]byte(`{"notifications": {"n": "`+pattern+`"}}`), twin.ParseOptions{})
		if len(errs) > 0 {
			return errs[0]
		}
		return nil
	}
	for _, pattern := range []string{
		"*:*", "*:*:*", "*@*:*", "path/to/repo:*", "path/to/repo:myTag:*", "path/to/repo@sha256:" + hexSum + ":delete", "path/to/repo/*:push", "hello-world:tag:push", "r:t@*:delete",
	} {
		if err := check(pattern); err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
	}
	for _, pattern := range []string{"", "*", "repo", "repo:pull", "repo:tag", ":push", "a*b:push", "repo@digest:push", "repo:t:t:push", "Repo:push", "repo: push", "a:* b:*"} {
		if check(pattern) == nil {
			t.Errorf("%q is accepted", pattern)
		}
	}
}
