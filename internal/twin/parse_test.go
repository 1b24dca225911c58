package twin_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

var hexSum = strings.Repeat("0123456789abcdef", 4)

// example is the document of the architecture, with a sum where that has a placeholder.
const example = `{ "schemaVersion": "1.0",
  "mode": "ReadOnly",
  "parent": { "gatewayEndpoint": "$IOTEDGE_PARENTHOSTNAME:8000", "protocol": "https",
              "syncProperties": { "schedule": "*/15 * * * *", "syncWindow": "PT4H", "messageTtl": "P2D" } },
  "repositories": { "bootstrap": "azureiotedge-agent:1.6 azureiotedge-hub:1.6 azureiotedge-api-proxy:1.1", "lineA": "acme/vision:1.* acme/plc-gw@linux/arm64" },
  "transfer": { "maxKiBps": 0, "parallel": 3, "chunkKiB": 512 },
  "serve": { "pullThrough": true },
  "scopeMaps": { "pull-all": "repositories/*/content/read repositories/*/metadata/read" },
  "clientTokens": { "line-a": { "scopeMap": "pull-all", "status": "enabled", "password1": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "expiry1": "2027-01-01T00:00:00Z" } },
  "connectedRegistries": { "Line3": { "clientTokens": "line-a dev" } },
  "notifications": { "all": "*:*" },
  "garbageCollection": { "enabled": true, "schedule": "0 5 * * *" },
  "storage": { "maxMiB": 20480, "reserveMiB": 1024 },
  "logging": { "logLevel": "Information", "auditLogStatus": "Enabled" } }`

func environment(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

var nested = environment("IOTEDGE_PARENTHOSTNAME", "Edge-L4")

func parseGood(t *testing.T, doc string) registry.Config {
	t.Helper()
	c, errs := twin.Parse([]byte(doc), twin.ParseOptions{Env: nested})
	if len(errs) > 0 {
		t.Fatalf("Parse: %v", errs)
	}
	return c
}

func TestParseExample(t *testing.T) {
	c := parseGood(t, example)
	token := registry.ClientToken{ScopeMap: "pull-all", Enabled: true, Passwords: []registry.TokenPassword{{Expiry: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}}}
	for i := range token.Passwords[0].SHA256 {
		token.Passwords[0].SHA256[i] = []byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}[i%8]
	}
	want := registry.Config{
		SchemaVersion: "1.0",
		Mode:          registry.ReadOnly,
		Parent: registry.ParentConfig{
			GatewayEndpoint: "edge-l4:8000", Protocol: "https",
			SyncProperties: registry.SyncProperties{Schedule: "*/15 * * * *", SyncWindow: 4 * time.Hour, MessageTTL: 48 * time.Hour, Conflict: registry.NewestWins},
		},
		Repositories: map[string]registry.Scope{
			"bootstrap": {{Repository: "azureiotedge-agent", Tag: "1.6"}, {Repository: "azureiotedge-hub", Tag: "1.6"}, {Repository: "azureiotedge-api-proxy", Tag: "1.1"}},
			"lineA":     {{Repository: "acme/vision", Tag: "1.*"}, {Repository: "acme/plc-gw", Platform: "linux/arm64"}},
		},
		Transfer:          registry.TransferConfig{Parallel: 3, ChunkKiB: 512},
		Serve:             registry.ServeConfig{PullThrough: true},
		ScopeMaps:         map[string]registry.ScopeMap{"pull-all": {"repositories/*/content/read", "repositories/*/metadata/read"}},
		ClientTokens:      map[string]registry.ClientToken{"line-a": token},
		Children:          map[string]registry.ChildConfig{"line3": {ClientTokens: []string{"line-a", "dev"}}},
		Notifications:     map[string]string{"all": "*:*"},
		GarbageCollection: registry.GarbageCollectionConfig{Enabled: true, Schedule: "0 5 * * *"},
		Storage:           registry.StorageConfig{MaxMiB: 20480, ReserveMiB: 1024},
		Logging:           registry.LoggingConfig{LogLevel: "Information", AuditLogStatus: "Enabled"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("Parse = %+v\nwant    %+v", c, want)
	}
}

func TestAbsentAndNullAreDefaults(t *testing.T) {
	var sections map[string]any
	if err := json.Unmarshal([]byte(example), &sections); err != nil {
		t.Fatal(err)
	}
	for _, doc := range []string{`{"mode": null}`, `{"mode":"ReadOnly"}`, `{"$version": 3, "mode": "ReadOnly", "parent": {"$x": [1]}}`} {
		if c := parseGood(t, doc); !reflect.DeepEqual(c, twin.Defaults()) {
			t.Errorf("Parse(%s) = %+v", doc, c)
		}
	}
	for name := range sections {
		doc := fmt.Sprintf(`{"schemaVersion": "1.0", %q: null}`, name)
		if name == "schemaVersion" {
			doc = `{"schemaVersion": null, "mode": "ReadOnly"}`
		}
		if c := parseGood(t, doc); !reflect.DeepEqual(c, twin.Defaults()) {
			t.Errorf("Parse(%s) = %+v", doc, c)
		}
	}
	c := parseGood(t, `{"repositories": {"lineA": "acme/a", "lineB": null}, "clientTokens": {"old": null}, "storage": {"maxMiB": null}}`)
	if len(c.Repositories) != 1 || len(c.ClientTokens) != 0 {
		t.Errorf("null entries stand: %+v", c)
	}
}

func TestFieldErrors(t *testing.T) {
	sync := func(s string) string { return `{"parent": {"syncProperties": {` + s + `}}}` }
	token := func(s string) string { return `{"scopeMaps": {"m": ""}, "clientTokens": {"line-a": {` + s + `}}}` }
	tests := []struct{ name, doc, path, message string }{
		{"mode", `{"mode": "Sometimes"}`, "mode", "want ReadOnly or ReadWrite"},
		{"mode's type", `{"mode": 5}`, "mode", "want a string, got a number"},
		{"section's type", `{"parent": "x"}`, "parent", "want an object, got a string"},
		{"array", `{"repositories": ["a"]}`, "repositories", "want an object, got an array"},
		{"entry's type", `{"repositories": {"lineA": ["a"]}}`, "repositories.lineA", "want a string, got an array"},
		{"flag's type", `{"serve": {"pullThrough": "yes"}}`, "serve.pullThrough", "want true or false, got a string"},
		{"number's type", `{"storage": {"maxMiB": "5"}}`, "storage.maxMiB", "want a whole number, got a string"},
		{"fraction", `{"storage": {"maxMiB": 1.5}}`, "storage.maxMiB", "from 0 to"},
		{"negative", `{"storage": {"reserveMiB": -1}}`, "storage.reserveMiB", "from 0 to"},
		{"huge", `{"transfer": {"parallel": 1e400}}`, "transfer.parallel", "from 1 to 64"},
		{"none at once", `{"transfer": {"parallel": 0}}`, "transfer.parallel", "from 1 to 64"},
		{"bad rate", `{"transfer": {"rates": {"shift": "06:00-22:00 fast"}}}`, "transfer.rates.shift", "HH:MM-HH:MM"},
		{"rates in a list", `{"transfer": {"rates": ["06:00-22:00 1"]}}`, "transfer.rates", "want an object"},
		{"budget below nothing", `{"transfer": {"budget": {"dayMiB": -1}}}`, "transfer.budget.dayMiB", "from 0 to"},
		{"budget of a year", `{"transfer": {"budget": {"yearMiB": 1}}}`, "transfer.budget.yearMiB", "unknown property"},
		{"tiny chunk", `{"transfer": {"chunkKiB": 1}}`, "transfer.chunkKiB", "from 64 to"},
		{"unknown section", `{"repository": {}, "mode": "ReadOnly"}`, "repository", "did you mean repositories?"},
		{"unknown, nothing near", `{"zzz": {}, "mode": "ReadOnly"}`, "zzz", "known are schemaVersion, mode"},
		{"unprintable name", `{"mode": "ReadOnly", "a\nb\u001b": 1}`, "a.b.", "unknown property"},
		{"case of a name", `{"Mode": "ReadOnly"}`, "Mode", "did you mean mode?"},
		{"unknown property", sync(`"shedule": "* * * * *"`), "parent.syncProperties.shedule", "did you mean schedule?"},
		{"repeated section", `{"mode": "ReadWrite", "mode": "ReadOnly"}`, "mode", "twice"},
		{"repeated entry", `{"repositories": {"a": "x", "a": "y"}}`, "repositories.a", "twice"},
		{"schedule", sync(`"schedule": "0 0 31 2 *"`), "parent.syncProperties.schedule", "never occurs"},
		{"zone", sync(`"schedule": "TZ=0"`), "parent.syncProperties.schedule", "UTC"},
		{"no window", sync(`"schedule": "0 5 * * *"`), "parent.syncProperties.syncWindow", "is required"},
		{"short window", sync(`"schedule": "0 5 * * *", "syncWindow": "PT59M"`), "parent.syncProperties.syncWindow", "want PT1H to P7D"},
		{"long window", sync(`"schedule": "0 5 * * *", "syncWindow": "P8D"`), "parent.syncProperties.syncWindow", "want PT1H to P7D"},
		{"window of a continuous schedule is checked too", sync(`"syncWindow": "4h"`), "parent.syncProperties.syncWindow", "ISO 8601"},
		{"ttl", sync(`"messageTtl": "P91D"`), "parent.syncProperties.messageTtl", "want P1D to P90D"},
		{"ttl that wraps around", sync(`"messageTtl": "PT999999999999999999H"`), "parent.syncProperties.messageTtl", "ISO 8601"},
		{"endpoint with a scheme", `{"parent": {"gatewayEndpoint": "https://edge:8000"}}`, "parent.gatewayEndpoint", "without http://"},
		{"endpoint placeholder", `{"parent": {"gatewayEndpoint": "<registry>.azurecr.io"}}`, "parent.gatewayEndpoint", "placeholder"},
		{"endpoint $upstream", `{"parent": {"gatewayEndpoint": "$upstream:8000"}}`, "parent.gatewayEndpoint", "want $IOTEDGE_PARENTHOSTNAME:8000"},
		{"endpoint's variable", `{"parent": {"gatewayEndpoint": "$NOT_THERE:8000"}}`, "parent.gatewayEndpoint", "NOT_THERE is not set"},
		{"protocol", `{"parent": {"protocol": "ftp"}}`, "parent.protocol", "want https, http"},
		{"cloud over http", `{"parent": {"gatewayEndpoint": "acme.azurecr.io", "protocol": "http"}}`, "parent.protocol", "must be 'https'"},
		{"rule", `{"repositories": {"lineA": "acme/x acme/Vision:1"}}`, "repositories.lineA", "lower case"},
		{"group's name", `{"repositories": {"line.A": "acme/x"}}`, "repositories.line.A", "name: want"},
		{"action", `{"scopeMaps": {"m": "repositories/a/content/fly"}}`, "scopeMaps.m", "content/read"},
		{"no scope map", token(`"password1": "sha256:` + hexSum + `"`), "clientTokens.line-a.scopeMap", "is required"},
		{"unknown scope map", token(`"scopeMap": "n"`), "clientTokens.line-a.scopeMap", `no scope map "n"`},
		{"password in clear", token(`"scopeMap": "m", "password1": "hunter2"`), "clientTokens.line-a.password1", "want sha256:"},
		{"short sum", token(`"scopeMap": "m", "password2": "sha256:00"`), "clientTokens.line-a.password2", "want sha256:"},
		{"expiry", token(`"scopeMap": "m", "password1": "sha256:` + hexSum + `", "expiry1": "tomorrow"`), "clientTokens.line-a.expiry1", "2027-01-01T00:00:00Z"},
		{"expiry of nothing", token(`"scopeMap": "m", "expiry2": "2027-01-01T00:00:00Z"`), "clientTokens.line-a.expiry2", "no password2"},
		{"status", token(`"scopeMap": "m", "status": "on"`), "clientTokens.line-a.status", "want enabled, disabled"},
		{"token's type", `{"clientTokens": {"line-a": "x"}}`, "clientTokens.line-a", "want an object"},
		{"notification", `{"notifications": {"all": "*:pull"}}`, "notifications.all", ":push, :delete, :expired, :refused, :conflict or :*"},
		{"gc schedule", `{"garbageCollection": {"schedule": "@daily"}}`, "garbageCollection.schedule", "not a name"},
		{"log level", `{"logging": {"logLevel": "Loud"}}`, "logging.logLevel", "want Debug, Information, Warning, Error, None"},
		{"audit", `{"logging": {"auditLogStatus": true}}`, "logging.auditLogStatus", "want a string, got true or false"},
		{"long string", `{"repositories": {"a": "` + strings.Repeat("x", 4097) + `"}}`, "repositories.a", "at most 4096"},
		{"long string of several", `{"repositories": {"a": {"x": "b", "y": "` + strings.Repeat("x", 4097) + `"}}}`, "repositories.a.y", "at most 4096"},
		{"rule of several", `{"repositories": {"a": {"x": "b", "y": "acme/Vision:1"}}}`, "repositories.a.y", "lower case"},
		{"action of several", `{"scopeMaps": {"m": {"x": "repositories/a/content/fly", "y": null}}}`, "scopeMaps.m.x", "content/read"},
		{"several in an array", `{"scopeMaps": {"m": ["repositories/a/content/read"]}}`, "scopeMaps.m", "want a string"},
		{"tokens of several", `{"connectedRegistries": {"line4": {"clientTokens": {"x": 1}}}}`, "connectedRegistries.line4.clientTokens.x", "want a string"},
		{"other schema", `{"schemaVersion": "2.0", "mode": "ReadWrite"}`, "schemaVersion", `want "1.0"`},
		{"schema's type", `{"schemaVersion": 1, "mode": "ReadWrite"}`, "schemaVersion", "want a string"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, errs := twin.Parse([]byte(tt.doc), twin.ParseOptions{Env: nested})
			if len(errs) != 1 || errs[0].Path != tt.path || !strings.Contains(errs[0].Message, tt.message) {
				t.Errorf("Parse(%s): %q, want %s: %s", tt.doc, errs, tt.path, tt.message)
			}
			if strings.Contains(fmt.Sprint(errs), "hunter2") {
				t.Error("an error holds the password")
			}
			c.ScopeMaps = map[string]registry.ScopeMap{} // some documents have a good one
			if want := twin.Defaults(); !reflect.DeepEqual(c, want) {
				t.Errorf("Parse = %+v\nwant    %+v", c, want)
			}
		})
	}
}

func TestDocumentErrors(t *testing.T) {
	big := `{"mode": "ReadWrite", "repositories": {`
	for i := range 8 {
		big += fmt.Sprintf(`"g%d": "%s",`, i, strings.Repeat("x", 4000))
	}
	big += `"z": ""}}`
	tests := []struct{ name, doc, message string }{
		{"empty", "", "document is empty"},
		{"blank", " \n ", "document is empty"},
		{"no properties", "{}", "no properties"},
		{"an edge hub without its cloud", `{"$version": 1}`, "no properties"},
		{"cut", `{"mode": "ReadWrite",`, "line 1, column 22: unexpected end"},
		{"comma", "{\n  \"mode\": \"ReadWrite\"\n  \"serve\": {}\n}", "line 3, column 3: invalid character '\"' after object"},
		{"column in letters", "{\"ä\": x}", "line 1, column 7: invalid character 'x'"},
		{"two documents", `{"mode": "ReadWrite"} {}`, "line 1, column 23: invalid character"},
		{"not an object", `["ReadWrite"]`, "document is an array: want an object"},
		{"null", `null`, "document is null: want an object"},
		{"not UTF-8", "{\"mode\": \"\xff\"}", "not UTF-8"},
		{"too big", big, "want at most 24576"},
		{"much too big", strings.Repeat(" ", 100_000) + `{"mode": "ReadWrite"}`, "more than 98304 bytes"},
		{"deep", strings.Repeat(`{"a":`, 11) + "1" + strings.Repeat("}", 11), "nested more than 10 deep"},
		{"very deep", strings.Repeat(`[`, 20000) + strings.Repeat(`]`, 20000), "exceeded max depth"},
	}
	base := twin.Defaults()
	base.Storage.MaxMiB = 7
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, errs := twin.Parse([]byte(tt.doc), twin.ParseOptions{Base: base})
			if len(errs) != 1 || errs[0].Path != "" || !strings.Contains(errs[0].Message, tt.message) {
				t.Errorf("errors %q, want one with %q", errs, tt.message)
			}
			if !reflect.DeepEqual(c, base) {
				t.Errorf("the configuration in force did not stay: %+v", c)
			}
		})
	}
}

func TestBadSectionKeepsItsOldValue(t *testing.T) {
	base := parseGood(t, example)
	const doc = `{
		"mode": "ReadWrite",
		"parent": {"gatewayEndpoint": "other:9000", "syncProperties": {"schedule": "0 0 31 2 *", "messageTtl": "P1Y"}},
		"repositories": {"lineB": "acme/new", "lineC": "acme/**"},
		"transfer": {"parallel": 5},
		"extra": 1,
		"storage": {"maxMiB": 1, "typo": 2},
		"logging": {"logLevel": "debug"}}`
	c, errs := twin.Parse([]byte(doc), twin.ParseOptions{Base: base})
	var paths []string
	for _, e := range errs {
		paths = append(paths, e.Path)
	}
	if want := []string{"extra", "parent.syncProperties.schedule", "parent.syncProperties.messageTtl", "repositories.lineC", "storage.typo"}; !reflect.DeepEqual(paths, want) {
		t.Errorf("errors %q, want at %q", errs, want)
	}
	want := twin.Defaults()
	want.Mode, want.Transfer.Parallel, want.Logging.LogLevel = registry.ReadWrite, 5, "Debug"
	want.Parent, want.Repositories, want.Storage = base.Parent, base.Repositories, base.Storage
	if !reflect.DeepEqual(c, want) {
		t.Errorf("Parse = %+v\nwant    %+v", c, want)
	}
}

func TestTokensThatAreKeptLoseTheirScopeMap(t *testing.T) {
	base := parseGood(t, example)
	c, errs := twin.Parse([]byte(`{"scopeMaps": {"other": ""}, "clientTokens": {"x": {}}}`), twin.ParseOptions{Base: base})
	if len(errs) != 2 || errs[0].Path != "clientTokens.x.scopeMap" || errs[1].Path != "clientTokens.line-a.scopeMap" {
		t.Errorf("errors %q", errs)
	}
	if !reflect.DeepEqual(c.ClientTokens, base.ClientTokens) || len(c.ScopeMaps["pull-all"]) != 0 {
		t.Errorf("tokens %v, scope maps %v", c.ClientTokens, c.ScopeMaps)
	}
}

func TestTokensMayUseScopeMapsThatAreKept(t *testing.T) {
	base := parseGood(t, example)
	c, errs := twin.Parse([]byte(`{"scopeMaps": {"bad": "x"}, "clientTokens": {"new": {"scopeMap": "pull-all"}}}`), twin.ParseOptions{Base: base})
	if len(errs) != 1 || errs[0].Path != "scopeMaps.bad" || c.ClientTokens["new"].ScopeMap != "pull-all" {
		t.Errorf("errors %q, tokens %v", errs, c.ClientTokens)
	}
}

func TestErrorsAreBounded(t *testing.T) {
	doc := `{"mode": "ReadOnly"`
	for i := range 500 {
		doc += fmt.Sprintf(`, "unknown-%d": 1`, i)
	}
	_, errs := twin.Parse([]byte(doc+"}"), twin.ParseOptions{})
	if len(errs) != 51 || errs[50].Message != "450 more errors" {
		t.Errorf("%d errors, the last %q", len(errs), errs[len(errs)-1])
	}
}

func TestSpellings(t *testing.T) {
	c := parseGood(t, "\ufeff"+`{"schemaVersion": "1.7", "mode": "mirror", "logging": {"logLevel": "WARNING", "auditLogStatus": "enabled"},
		"parent": {"protocol": "HTTP", "gatewayEndpoint": "", "syncProperties": {"schedule": " *  * * * * ", "syncWindow": "PT4H"}},
		"repositories": {"empty": ""}, "scopeMaps": {"m": "repositories/Acme/X/content/read repositories/acme/x/content/read gateway/Line5/config/read"},
		"clientTokens": {"Line-A": {"scopeMap": "m", "status": "Disabled", "password2": "sha256:`+strings.ToUpper(hexSum)+`", "expiry2": "2027-01-01T02:00:00+02:00"}}}`)
	if c.Mode != registry.ReadOnly || c.Logging.LogLevel != "Warning" || c.Logging.AuditLogStatus != "Enabled" || c.Parent.Protocol != "http" || c.Parent.GatewayEndpoint != "" {
		t.Errorf("Parse = %+v", c)
	}
	if p := c.Parent.SyncProperties; p.SyncWindow != 0 || p.Schedule != "* * * * *" {
		t.Errorf("a continuous schedule has no window: %+v", p)
	}
	if want := (registry.ScopeMap{"repositories/acme/x/content/read", "gateway/line5/config/read"}); !reflect.DeepEqual(c.ScopeMaps["m"], want) {
		t.Errorf("scope map %q", c.ScopeMaps["m"])
	}
	if token, ok := c.ClientTokens["line-a"]; !ok || token.Enabled || len(token.Passwords) != 1 || token.Passwords[0].Expiry != time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC) {
		t.Errorf("tokens %+v", c.ClientTokens)
	}
	if _, errs := twin.Parse([]byte(`{"scopeMaps": {"m": ""}, "clientTokens": {"A": {"scopeMap": "m"}, "a": {"scopeMap": "m"}}}`), twin.ParseOptions{}); len(errs) != 1 || errs[0].Path != "clientTokens.a" {
		t.Errorf("names that differ in case only: %q", errs)
	}
}
