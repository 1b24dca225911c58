package registry_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

func TestTagRange(t *testing.T) {
	for text, tags := range map[string]string{ // a tag with ! in front is not in the range
		"~1.4":           "1.4 1.4.0 v1.4.9 !1.5.0 !1.3.9 !1.4.0-rc1 !1 !latest !2.0",
		"^2":             "2.0 2.9.9 v2.1 !3.0.0 !1.9 !2 !20240101 !2.1.x",
		"=1.x":           "1.0.0 1.99 !2.0.0 !0.9",
		"=1.2.3":         "1.2.3 v1.2.3 !1.2.4",
		">=1.2,<2":       "1.2 1.2.0 1.99.1 !2.0.0 !1.1.9",
		"^1.2||^3":       "1.2.0 3.1.0 !2.0.0",
		">=1.4-0,<1.5-0": "1.4.0 1.4.2-alpine !1.5.0-rc1 !1.3.0",
		"<0.2":           "0.1.9 !0.2.0",
	} {
		if err := registry.CheckTagRange(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		rule := registry.RepositoryRule{Repository: "app", Tag: text}
		for _, tag := range strings.Fields(tags) {
			tag, not := strings.CutPrefix(tag, "!")
			if got := rule.MatchTag(tag); got == not {
				t.Errorf("%s takes %s: %v", text, tag, got)
			}
		}
	}
	for _, text := range []string{"", "1.x", "1.*", ">=", "~", "^x", ">=1.2 <2", ">=1.2,", "||1", "^1||", "=1.2.3.4", ">=1&&<2", "<name>", "~1..2", "=" + strings.Repeat("1", 200)} {
		if registry.CheckTagRange(text) == nil {
			t.Errorf("%q is taken for a range", text)
		}
	}
}

// TestTagRangeNeverPanics gives ranges and tags that nobody would write.
func TestTagRangeNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[=<>~^][0-9vx.*<>=~^,|-]{0,20}`).Draw(t, "range")
		tag := rapid.StringMatching(`v?[0-9.]{1,24}(-[a-z0-9.]+)?`).Draw(t, "tag")
		good := registry.CheckTagRange(text) == nil
		if (registry.RepositoryRule{Repository: "a", Tag: text}).MatchTag(tag) && !good {
			t.Fatalf("%q is no range and takes %q", text, tag)
		}
	})
}
