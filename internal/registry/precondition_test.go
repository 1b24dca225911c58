package registry_test

import (
	"errors"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// TestPrecondition has the comparisons of RFC 9110, 13.1: strong for If-Match, weak for If-None-Match.
func TestPrecondition(t *testing.T) {
	const a, b registry.Digest = "sha256:a", "sha256:b"
	for _, tt := range []struct {
		match, noneMatch string
		at               registry.Digest
		fails            bool
	}{
		{at: a},
		{},
		{match: "*", at: a},
		{match: "*", fails: true},
		{match: `"sha256:a"`, at: a},
		{match: `"x" , "sha256:a"`, at: a},
		{match: `"sha256:a"`, at: b, fails: true},
		{match: `"sha256:a"`, fails: true},
		{match: `W/"sha256:a"`, at: a, fails: true},
		{match: "sha256:a", at: a, fails: true},
		{match: `""`, fails: true},
		{noneMatch: "*"},
		{noneMatch: "*", at: a, fails: true},
		{noneMatch: `"sha256:a"`, at: b},
		{noneMatch: `"sha256:a"`},
		{noneMatch: `"x",W/"sha256:a"`, at: a, fails: true},
		{match: "*", noneMatch: `"sha256:a"`, at: b},
		{match: `"sha256:a"`, noneMatch: "*", at: a, fails: true},
	} {
		err := registry.Precondition{Match: tt.match, NoneMatch: tt.noneMatch}.Check(tt.at)
		if (err != nil) != tt.fails || err != nil && !errors.Is(err, registry.ErrPrecondition) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	for _, at := range []registry.Digest{"", a, b} {
		for _, now := range []registry.Digest{"", a, b} {
			if err := registry.StandsAt(at).Check(now); (err == nil) != (at == now) {
				t.Errorf("%q where %q is wanted: %v", now, at, err)
			}
		}
	}
}
