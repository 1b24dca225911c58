package nested

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// paths are those of the fields that the status reports.
func paths(s registry.Status) (list []string) {
	for _, e := range s.Configuration.Errors {
		list = append(list, e.Path)
	}
	slices.Sort(list)
	return list
}

// TestConfigurationChanges changes the file under a running registry, and breaks it.
func TestConfigurationChanges(t *testing.T) {
	cloud := startOlareg(t)
	app, tool := push(t, cloud, "acme/app:1", artifact(t, "app")), push(t, cloud, "acme/tool:1", artifact(t, "tool"))
	l := newNode(t, "layer5", newLink(t, cloud).Addr())
	l.doc["repositories"] = map[string]string{"lineA": "acme/app"}
	l.start()
	instance := l.status().InstanceID
	l.has("acme/app", "1", app)

	l.doc["repositories"] = map[string]string{"lineA": "acme/app", "lineB": "acme/tool"}
	l.configure()
	l.has("acme/tool", "1", tool)

	l.schedule(never(), "PT1H")
	l.doc["logging"] = map[string]any{"logLevel": "Debug"}
	l.configure()
	l.untilStatus("schedule and log level are in force", func(s registry.Status) bool {
		return s.Sync.NextSyncTime.After(time.Now().Add(time.Hour)) && l.level() == "Debug" && s.Sync.SyncState == registry.SyncSucceeded
	})

	l.doc["repositories"] = map[string]string{"lineB": "acme/tool"}
	l.configure()
	l.until("what left the scope is removed", func() bool { return len(l.tags("acme/app")) == 0 })

	for name, broken := range map[string]string{"no JSON": `{"mode": "ReadOnly",`, "another kind": `[1, 2]`, "empty": ``} {
		l.write([]byte(broken))
		s := l.untilStatus("the file is reported: "+name, func(s registry.Status) bool { return len(s.StatusDetails) > 0 })
		if detail(s, "InvalidConfiguration")+detail(s, "ConfigurationUnavailable") == "" || len(l.tags("acme/tool")) != 1 || s.Parent.GatewayEndpoint == "" {
			t.Errorf("%s: %+v", name, s)
		}
		l.configure()
		l.untilStatus("a good file clears it: "+name, func(s registry.Status) bool { return len(s.StatusDetails) == 0 })
	}
	must(t, os.Remove(l.configFile()))
	l.untilStatus("the file is gone and that is reported", func(s registry.Status) bool { return detail(s, "ConfigurationUnavailable") != "" })
	if next := push(t, cloud, "acme/tool:2", artifact(t, "tool 2")); true {
		_, err := l.sync()
		must(t, err)
		l.has("acme/tool", "2", next)
	}
	if got := l.status().InstanceID; got != instance {
		t.Errorf("instance %s became %s: it was started again", instance, got)
	}

	l.end()
	l.run() // without a file
	s := l.untilStatus("it starts with what was in force", func(s registry.Status) bool { return s.Configuration.Source == "last-good" })
	if s.Parent.GatewayEndpoint == "" || s.Mode != registry.ReadOnly || l.level() != "Debug" {
		t.Errorf("after a start without a file: %+v, log level %q", s, l.level())
	}
	next := push(t, cloud, "acme/tool:3", artifact(t, "tool 3"))
	_, err := l.sync()
	must(t, err)
	l.has("acme/tool", "3", next)
}

// TestConfigurationErrors gives a document with good and bad sections, to a registry that runs and to one that starts.
func TestConfigurationErrors(t *testing.T) {
	cloud := startOlareg(t)
	app, tool := push(t, cloud, "acme/app:1", artifact(t, "app")), push(t, cloud, "acme/tool:1", artifact(t, "tool"))
	l := newNode(t, "layer5", newLink(t, cloud).Addr())
	l.doc["repositories"] = map[string]string{"lineA": "acme/app"}
	l.doc["transfer"] = map[string]any{"parallel": 2}
	l.start()
	l.has("acme/app", "1", app)

	var bad map[string]any
	good, err := json.Marshal(l.doc)
	must(t, err)
	must(t, json.Unmarshal(good, &bad))
	bad["repositories"] = map[string]string{"lineA": "acme/app acme/tool"}
	bad["transfer"] = map[string]any{"parallel": "many", "maxKiBps": 0}
	bad["logging"] = map[string]any{"logLevel": "Warning", "logLevels": "Debug"}
	bad["serve"] = true
	bad["repositorys"] = map[string]any{}
	body, err := json.Marshal(bad)
	must(t, err)
	want := []string{"logging.logLevels", "repositorys", "serve", "transfer.parallel"}
	l.write(body)
	s := l.untilStatus("each bad field is reported", func(s registry.Status) bool { return slices.Equal(paths(s), want) })
	if detail(s, "InvalidConfiguration") == "" {
		t.Errorf("no detail: %+v", s.StatusDetails)
	}
	l.has("acme/tool", "1", tool) // the section repositories is good

	l.end()
	l.run() // the file still has errors: they are reported again, and what was good before is kept
	s = l.untilStatus("each bad field is reported after a start", func(s registry.Status) bool { return slices.Equal(paths(s), want) })
	if a := l.ask(http.MethodGet, "/v2/acme/tool/manifests/1"); a.status != http.StatusOK || s.Parent.GatewayEndpoint == "" {
		t.Errorf("%d, %+v", a.status, s)
	}
	l.configure()
	l.untilStatus("a good file clears them", func(s registry.Status) bool { return len(paths(s)) == 0 })
}
