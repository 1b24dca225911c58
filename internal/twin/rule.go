package twin

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

var (
	tagGlobPattern  = registry.Pattern(`^[A-Za-z0-9_.*?\[\]^-]{1,128}$`)
	placeholder     = registry.Pattern(`^<[A-Za-z]`)
	platformPattern = registry.Pattern(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9_.]+)?$`)
)

// ParseRule reads one rule of a group of repositories: repository[:tag][@platform]. The repository is a name, a name
// and /* for everything below it, or * alone; the tag is a glob as of path.Match or a range of versions that begins with
// one of = < > ~ ^; the platform is os/architecture[/variant].
func ParseRule(s string) (registry.RepositoryRule, error) {
	fail := func(reason string) (registry.RepositoryRule, error) {
		return registry.RepositoryRule{}, fmt.Errorf("rule %q: %s", clip(s), reason)
	}
	if strings.Contains(s, "@sha256:") || strings.Contains(s, "@sha512:") {
		return fail("a rule selects tags, not digests")
	}
	rest, platform, hasPlatform := strings.Cut(s, "@")
	name, tag, hasTag := strings.Cut(rest, ":")
	versions := registry.IsTagRange(tag) && !placeholder().MatchString(tag)
	if strings.Contains(s, "$") || strings.ContainsAny(name+platform, "<>") || (!versions && strings.ContainsAny(tag, "<>")) {
		return fail("has a placeholder or a variable that was not replaced")
	}
	rule := registry.RepositoryRule{Repository: name, Tag: tag, Platform: platform}
	if strings.Contains(tag, "/") {
		return fail("want a repository without the host of its registry")
	}
	if err := checkRepositoryPattern(name); err != nil {
		return fail(err.Error())
	}
	if versions {
		if err := registry.CheckTagRange(tag); err != nil {
			return fail("after the colon " + err.Error())
		}
	} else if hasTag {
		if _, err := path.Match(tag, ""); err != nil || !tagGlobPattern().MatchString(tag) {
			return fail("after the colon want a tag or a glob of tags, such as 1.* or v[0-9]*, or a range of versions, such as ~1.4 or >=1.2,<2")
		}
	}
	if hasPlatform && !platformPattern().MatchString(platform) {
		return fail("after the @ want a platform, such as linux/arm64 or linux/arm/v7")
	}
	return rule, nil
}

// checkRepositoryPattern accepts a repository name, name/* and *: the wildcard of scope maps, nothing in the middle.
func checkRepositoryPattern(s string) error {
	name, below := strings.CutSuffix(s, "/*")
	switch {
	case s == "*":
		return nil
	case strings.Contains(name, "*"):
		return errors.New("want * only alone or as the last part of the repository, as in acme/*")
	case below && len(name) > registry.MaxRepositoryLength:
		return errors.New("repository name is too long")
	case strings.ToLower(name) != name:
		return errors.New("want the repository in lower case")
	}
	var invalid *registry.Error
	if err := registry.ValidateRepository(name); errors.As(err, &invalid) {
		return errors.New(invalid.Message)
	}
	return nil
}

// repositoryActions are what a scope map can allow on a repository, gatewayActions on a connected registry below.
var (
	repositoryActions = []string{"content/read", "content/write", "content/delete", "metadata/read", "metadata/write"}
	gatewayActions    = []string{"config/read", "config/write", "message/read", "message/write"}
)

// ParseAction reads one action of a scope map, repositories/<name>/content/read or gateway/<registry>/config/read, and
// returns it with the name in lower case, as Azure Container Registry keeps them.
func ParseAction(s string) (string, error) {
	kind, rest, _ := strings.Cut(s, "/")
	known := map[string][]string{"repositories": repositoryActions, "gateway": gatewayActions}[kind]
	if known == nil {
		return "", fmt.Errorf("action %q: want repositories/<name>/<action> or gateway/<name>/<action>", clip(s))
	}
	for _, action := range known {
		name, ok := strings.CutSuffix(rest, "/"+action)
		if !ok {
			continue
		}
		name = strings.ToLower(name)
		if kind == "gateway" {
			if !keyPattern().MatchString(name) {
				return "", fmt.Errorf("action %q: want the name of a connected registry after gateway/", clip(s))
			}
		} else if err := checkRepositoryPattern(name); err != nil {
			return "", fmt.Errorf("action %q: %w", clip(s), err)
		}
		return kind + "/" + name + "/" + action, nil
	}
	return "", fmt.Errorf("action %q: want it to end in one of %s", clip(s), strings.Join(known, ", "))
}
