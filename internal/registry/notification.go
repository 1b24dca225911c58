package registry

import (
	"errors"
	"fmt"
	"strings"
)

// Notification is a pattern that selects events: name[:tag][@digest]:action (ARM connectedRegistries,
// notificationsList). The name is a repository, a path and /* for every repository below it, or * for all; * stands for
// all values of the other parts too. A part that is given wants events that have one: *:*:* takes events of tags,
// *@*:* those of digests, *:* all.
type Notification struct {
	Repository string
	Tag        string // empty: with any tag and without
	Digest     string // empty: any
	Action     string // push, delete, expired, refused, conflict or *
}

// ParseNotification reads a pattern.
func ParseNotification(s string) (Notification, error) {
	fail := func(reason string) (Notification, error) {
		return Notification{}, fmt.Errorf("pattern %q: %s", clip(s), reason)
	}
	i := strings.LastIndex(s, ":") // a digest has a colon too
	if i < 0 {
		return fail("want name[:tag][@digest]:action")
	}
	n := Notification{Action: s[i+1:]}
	if n.Action != "*" && eventTypes[EventAction(n.Action)] == "" {
		return fail("want it to end in :push, :delete, :expired, :refused, :conflict or :*")
	}
	target, digest, hasDigest := strings.Cut(s[:i], "@")
	n.Digest = digest
	if hasDigest && digest != "*" {
		if _, err := ParseDigest(digest); err != nil {
			return fail("want a digest or * after the @")
		}
	}
	name, tag, hasTag := strings.Cut(target, ":")
	n.Repository, n.Tag = name, tag
	if hasTag && tag != "*" && ValidateTag(tag) != nil {
		return fail("want a tag or * after the name")
	}
	if err := validateRepositoryPattern(name); err != nil {
		return fail(err.Error())
	}
	return n, nil
}

// validateRepositoryPattern accepts a repository name, name/* and *: the wildcard of scope maps, nothing in the middle.
func validateRepositoryPattern(s string) error {
	name, _ := strings.CutSuffix(s, "/*")
	switch {
	case s == "*":
		return nil
	case strings.Contains(name, "*"):
		return errors.New("want * only alone or as the last part of the repository, as in acme/*")
	case strings.ToLower(name) != name:
		return errors.New("want the repository in lower case")
	}
	var invalid *Error
	if err := ValidateRepository(name); errors.As(err, &invalid) {
		return errors.New(invalid.Message)
	}
	return nil
}

// String returns the pattern.
func (n Notification) String() string {
	s := n.Repository
	if n.Tag != "" {
		s += ":" + n.Tag
	}
	if n.Digest != "" {
		s += "@" + n.Digest
	}
	return s + ":" + n.Action
}

// Match reports whether the pattern takes the event.
func (n Notification) Match(e Event) bool {
	if prefix, ok := strings.CutSuffix(n.Repository, "*"); ok {
		if !strings.HasPrefix(e.Repository, prefix) {
			return false
		}
	} else if n.Repository != e.Repository {
		return false
	}
	return matchPart(n.Tag, e.Tag) && matchPart(n.Digest, e.Target.Digest.String()) && (n.Action == "*" || n.Action == string(e.Action))
}

// matchPart compares an optional part of a pattern.
func matchPart(pattern, s string) bool {
	return pattern == "" || pattern == s || pattern == "*" && s != ""
}

// Notifications are the patterns of a configuration, by the author's name for each. An event is told of when any takes
// it.
type Notifications []Notification

// ParseNotifications reads the patterns of a configuration, whose syntax was checked when it was parsed: one that is
// not good is left out.
func ParseNotifications(patterns map[string]string) Notifications {
	all := make(Notifications, 0, len(patterns))
	for _, s := range patterns {
		if n, err := ParseNotification(s); err == nil {
			all = append(all, n)
		}
	}
	return all
}

// Match reports whether any of the patterns takes the event.
func (n Notifications) Match(e Event) bool {
	for _, p := range n {
		if p.Match(e) {
			return true
		}
	}
	return false
}
