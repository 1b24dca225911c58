package module

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestPagesAreTheWholeList: page by page one gets each item once, in order, and a last page says so.
func TestPagesAreTheWholeList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []string
		for i := range rapid.IntRange(0, 20).Draw(t, "items") {
			all = append(all, fmt.Sprintf("acme/%03d", i))
		}
		p := paging{Limit: rapid.IntRange(1, 7).Draw(t, "limit")}
		var got []string
		for more := true; more; more = p.After != "" {
			items, after, err := page(p, all, func(s string) string { return s })
			if err != nil || items == nil || len(items) > p.Limit || after != "" && len(items) == 0 {
				t.Fatalf("%+v: %v, %q, %v", p, items, after, err)
			}
			got, p.After = append(got, items...), after
		}
		if !slices.Equal(got, all) {
			t.Fatalf("got %v", got)
		}
	})
	for _, limit := range []int{-1, 0, registry.MaxPage + 1} {
		if _, _, err := page(paging{Limit: limit}, []string{"a"}, func(s string) string { return s }); registry.AsError(err).HTTPStatus() != 400 {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}
