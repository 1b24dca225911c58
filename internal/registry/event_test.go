package registry_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

var sha = "sha256:" + strings.Repeat("ab", 32)

func pushed(repo, tag string) registry.Event {
	return registry.Event{
		ID: "831e1650-001e-001b-66ab-eeb76e069631", Time: time.Date(2026, 11, 21, 22, 0, 0, 5, time.UTC), Action: registry.EventPush,
		Repository: repo, Tag: tag, Topic: registry.EventTopic("contoso", "linea"), Registry: "linea",
		Target: registry.Descriptor{MediaType: registry.MediaTypeImageManifest, Digest: registry.Digest(sha), Size: 3023},
	}
}

func TestEventJSON(t *testing.T) {
	deleted := pushed("hello-world", "")
	deleted.Action, deleted.Target.Size = registry.EventDelete, 0
	conflict, other := pushed("hello-world", "1.0"), "sha256:"+strings.Repeat("cd", 32)
	conflict.Action = registry.EventConflict
	conflict.Outbox = &registry.EventOutbox{
		Entry: 7, Action: registry.OutboxPush, Time: time.Date(2026, 11, 20, 22, 0, 0, 0, time.UTC), Principal: "line",
		Conflict: registry.NewestWins, Parent: registry.Digest(other), Overwritten: registry.Digest(other),
	}
	for _, tt := range []struct {
		name  string
		event registry.Event
		want  string
	}{
		{"push", pushed("hello-world", "1.0"), `{"id":"831e1650-001e-001b-66ab-eeb76e069631",
			"topic":"/providers/Microsoft.ContainerRegistry/registries/contoso/connectedRegistries/linea",
			"subject":"hello-world:1.0","eventType":"Microsoft.ContainerRegistry.ImagePushed",
			"data":{"id":"831e1650-001e-001b-66ab-eeb76e069631","timestamp":"2026-11-21T22:00:00.000000005Z","action":"push",
			"target":{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":3023,"digest":"` + sha + `","length":3023,"repository":"hello-world","tag":"1.0"},
			"connectedregistry":{"name":"linea"}},
			"dataVersion":"2.0","metadataVersion":"1","eventTime":"2026-11-21T22:00:00.000000005Z"}`},
		{"delete", deleted, `{"id":"831e1650-001e-001b-66ab-eeb76e069631",
			"topic":"/providers/Microsoft.ContainerRegistry/registries/contoso/connectedRegistries/linea",
			"subject":"hello-world","eventType":"Microsoft.ContainerRegistry.ImageDeleted",
			"data":{"id":"831e1650-001e-001b-66ab-eeb76e069631","timestamp":"2026-11-21T22:00:00.000000005Z","action":"delete",
			"target":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + sha + `","repository":"hello-world"},
			"connectedregistry":{"name":"linea"}},
			"dataVersion":"2.0","metadataVersion":"1","eventTime":"2026-11-21T22:00:00.000000005Z"}`},
		{"conflict", conflict, `{"id":"831e1650-001e-001b-66ab-eeb76e069631",
			"topic":"/providers/Microsoft.ContainerRegistry/registries/contoso/connectedRegistries/linea",
			"subject":"hello-world:1.0","eventType":"ConnectedRegistry.TagConflict",
			"data":{"id":"831e1650-001e-001b-66ab-eeb76e069631","timestamp":"2026-11-21T22:00:00.000000005Z","action":"conflict",
			"target":{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":3023,"digest":"` + sha + `","length":3023,"repository":"hello-world","tag":"1.0"},
			"connectedregistry":{"name":"linea"},
			"outbox":{"entry":7,"action":"push","time":"2026-11-20T22:00:00Z","principal":"line","conflict":"newestWins","parent":"` + other + `","overwritten":"` + other + `"}},
			"dataVersion":"2.0","metadataVersion":"1","eventTime":"2026-11-21T22:00:00.000000005Z"}`},
	} {
		got, err := json.Marshal(tt.event)
		if err != nil {
			t.Fatal(err)
		}
		var g, w any
		if json.Unmarshal(got, &g) != nil || json.Unmarshal([]byte(tt.want), &w) != nil || !reflect.DeepEqual(g, w) {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
		var back registry.Event
		if err := json.Unmarshal(got, &back); err != nil || !reflect.DeepEqual(back, tt.event) {
			t.Errorf("%s: back %+v, %v", tt.name, back, err)
		}
	}
	if got := pushed("a/b", "").Subject(); got != "a/b" {
		t.Errorf("subject of a push by digest: %q", got)
	}
	if got := registry.EventTopic("", "n"); got != "/providers/Microsoft.ContainerRegistry/connectedRegistries/n" {
		t.Errorf("topic without a cloud: %q", got)
	}
}

func TestNotificationMatch(t *testing.T) {
	del := pushed("path/to/repo", "")
	del.Action = registry.EventDelete
	untag := pushed("path/to/repo", "myTag")
	untag.Action, untag.Target = registry.EventDelete, registry.Descriptor{}
	push := pushed("path/to/repo", "myTag")
	refused := push
	refused.Action = registry.EventRefused
	below := pushed("path/to/repo/deep/er", "1.0")
	for _, tt := range []struct {
		pattern string
		event   registry.Event
		want    bool
	}{
		{"*:*", push, true},
		{"*:*", del, true},
		{"*:*", untag, true},
		{"*:*:*", push, true},
		{"*:*", refused, true},
		{"path/to/repo:refused", refused, true},
		{"path/to/repo:push", refused, false},
		{"path/to/repo:conflict", refused, false},
		{"*:*:*", untag, true},
		{"*:*:*", del, false},
		{"*@*:*", push, true},
		{"*@*:*", del, true},
		{"*@*:*", untag, false},
		{"path/to/repo:*", push, true},
		{"path/to/repo:*", below, false},
		{"path/to:*", push, false},
		{"path/to/repo:push", push, true},
		{"path/to/repo:push", del, false},
		{"path/to/repo:delete", del, true},
		{"path/to/repo:myTag:*", push, true},
		{"path/to/repo:myTag:delete", untag, true},
		{"path/to/repo:mytag:*", push, false},
		{"path/to/repo:other:*", push, false},
		{"path/to/repo:myTag:*", del, false},
		{"path/to/repo@" + sha + ":delete", del, true},
		{"path/to/repo@" + sha + ":delete", push, false},
		{"path/to/repo@sha256:" + strings.Repeat("0", 64) + ":*", push, false},
		{"path/to/repo:myTag@" + sha + ":push", push, true},
		{"path/to/repo:other@" + sha + ":push", push, false},
		{"path/to/repo/*:push", below, true},
		{"path/to/repo/*:push", push, false},
		{"path/*:push", push, true},
		{"pat/*:push", push, false},
	} {
		n, err := registry.ParseNotification(tt.pattern)
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		if n.String() != tt.pattern {
			t.Errorf("%s: back %s", tt.pattern, n)
		}
		if got := n.Match(tt.event); got != tt.want {
			t.Errorf("%s takes %s of %s %s: %v", tt.pattern, tt.event.Action, tt.event.Subject(), tt.event.Target.Digest, got)
		}
	}
}

func TestParseNotification(t *testing.T) {
	for pattern, wrong := range map[string]string{
		"": "want name", "repo": "want name", "repo:pull": "to end in", "repo:": "to end in", "repo:tag": "to end in",
		":push": "repository", "a/../b:push": "repository", "Acme/app:push": "lower case", "a*:push": "only alone", "a/*/b:push": "only alone",
		"a@:push": "want a digest", "a@sha256:abc:push": "want a digest", "a:.bad:push": "want a tag", "a::push": "want a tag",
		"a:b:c:push": "want a tag",
	} {
		if _, err := registry.ParseNotification(pattern); err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("%q: error %v, want one with %q", pattern, err, wrong)
		}
	}
}

func TestNotifications(t *testing.T) {
	all := registry.ParseNotifications(map[string]string{"a": "hello-world:push", "b": "sample/*:1.0:*", "bad": "x"})
	for _, tt := range []struct {
		event registry.Event
		want  bool
	}{{pushed("hello-world", "1.0"), true}, {pushed("sample/app", "1.0"), true}, {pushed("sample/app", "2.0"), false}, {pushed("other", "1.0"), false}} {
		if got := all.Match(tt.event); got != tt.want {
			t.Errorf("%s: %v", tt.event.Subject(), got)
		}
	}
	if registry.ParseNotifications(nil).Match(pushed("a", "b")) {
		t.Error("no pattern takes an event")
	}
}
