package registry

import (
	"errors"
	"fmt"
	"strings"

	"github.com/Masterminds/semver/v3"
)

// rangeStart are the characters that a range of versions may begin with. None of them may begin a tag or a useful glob,
// so that a range is known by its first character.
const rangeStart = "=<>~^"

// rangePattern is what a range is written with: versions, operators, a comma for "and", || for "or".
var rangePattern = Pattern(`^[0-9A-Za-z.*<>=~^,|-]{2,128}$`)

// versionTag is a tag that is taken for a version: at least major.minor, a v in front or not. A tag of one number is
// none: it is as likely a date or a build.
var versionTag = Pattern(`^v?[0-9]+\.[0-9]+(\.[0-9]+)?(-[0-9A-Za-z.-]+)?$`)

// IsTagRange reports whether the tag part of a rule is a range of semantic versions and not a glob.
func IsTagRange(s string) bool { return s != "" && strings.ContainsRune(rangeStart, rune(s[0])) }

// CheckTagRange says what is wrong with a range of versions, such as ~1.4, ^2, =1.x or >=1.2,<2||^3.
func CheckTagRange(s string) error {
	if !IsTagRange(s) || !rangePattern().MatchString(s) {
		return errors.New("want a range of versions that begins with =, <, >, ~ or ^, without blanks")
	}
	for _, alternative := range strings.Split(s, "||") {
		for _, part := range strings.Split(alternative, ",") {
			if !strings.ContainsAny(part, "0123456789") {
				return fmt.Errorf("a version is missing in %q", clip(s))
			}
		}
	}
	if _, err := semver.NewConstraint(s); err != nil {
		return fmt.Errorf("%q is no range of versions", clip(s))
	}
	return nil
}

// matchTagRange reports whether the tag is a version in the range. A pre-release, which 1.4.0-alpine is too, is in the
// range only where the range names one (>=1.4-0), as is the rule of semantic versions.
func matchTagRange(text, tag string) bool {
	if !versionTag().MatchString(tag) || CheckTagRange(text) != nil {
		return false
	}
	constraint, err := semver.NewConstraint(text)
	if err != nil {
		return false
	}
	v, err := semver.NewVersion(tag)
	return err == nil && constraint.Check(v)
}
