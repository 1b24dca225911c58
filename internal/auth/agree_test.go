package auth_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// TestTwinAndPermissionsAgree: a line that the configuration accepts grants what it says, and one that it refuses
// grants nothing either.
func TestTwinAndPermissionsAgree(t *testing.T) {
	part := rapid.SampledFrom([]string{
		"repositories", "gateway", "Repositories", "content", "read", "content/read", "config/read", "message/write", "metadata/write",
		"a", "acme", "Acme", "lineA", "a_b", "a-b", "a.b", "*", "a*", "", "..", strings.Repeat("n", 64), strings.Repeat("n", 65), strings.Repeat("n", 256),
	})
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom([]string{"", "repositories/", "gateway/"}).Draw(t, "start") +
			strings.Join(rapid.SliceOfN(part, 1, 4).Draw(t, "parts"), "/") +
			rapid.SampledFrom([]string{"", "/content/read", "/config/read"}).Draw(t, "end")
		line, twinErr := twin.ParseAction(s)
		p, err := registry.ParsePermission(s)
		switch {
		case twinErr == nil && (err != nil || p.String() != line):
			t.Fatalf("%.300q: the configuration takes it as %.300q, the permission is %v, %v", s, line, p, err)
		case twinErr != nil && err == nil && !strings.HasPrefix(s, "R"): // only the start of the line may differ in case
			t.Fatalf("%.300q: the configuration refuses it (%v), the permission is %v", s, twinErr, p)
		}
	})
}
