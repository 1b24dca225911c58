package twin_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
	"github.com/connected-registry/connected-registry/internal/twin"
)

func anyRule(t *rapid.T) registry.RepositoryRule {
	rule := registry.RepositoryRule{
		Repository: rapid.OneOf(rapid.StringMatching(`[a-z0-9]{1,5}([._-][a-z0-9]{1,3})?(/[a-z0-9]{1,5}){0,2}(/\*)?`), rapid.Just("*")).Draw(t, "repository"),
		Platform:   rapid.OneOf(rapid.Just(""), rapid.StringMatching(`(linux|windows)/(amd64|arm64|arm/v7)`)).Draw(t, "platform"),
	}
	rule.Tag = rapid.OneOf(rapid.Just(""), rapid.StringMatching(`v?[0-9]{1,2}(\.[0-9*?]{1,2}){0,2}`)).Draw(t, "tag")
	return rule
}

func anyConfig(t *rapid.T) registry.Config {
	c := twin.Defaults()
	key := rapid.StringMatching(`[a-z0-9_-]{1,12}`)
	c.Mode = rapid.SampledFrom([]registry.Mode{registry.ReadOnly, registry.ReadWrite}).Draw(t, "mode")
	c.Parent.GatewayEndpoint = rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[a-z]{1,9}(\.[a-z]{2,5})?(:[1-9][0-9]{1,3})?`)).Draw(t, "endpoint")
	c.Parent.Protocol = rapid.SampledFrom([]string{"https", "http"}).Draw(t, "protocol")
	c.Parent.SyncProperties.Schedule = rapid.SampledFrom([]string{"* * * * *", "*/15 * * * *", "0 0/10 * * *", "0 5 1-7,20 */2 sun"}).Draw(t, "schedule")
	if c.Parent.SyncProperties.Schedule != schedule.Everything {
		c.Parent.SyncProperties.SyncWindow = time.Duration(rapid.Int64Range(int64(twin.MinSyncWindow), int64(twin.MaxSyncWindow)).Draw(t, "window"))
	}
	c.Parent.SyncProperties.Conflict = rapid.SampledFrom([]registry.Conflict{registry.NewestWins, registry.ParentWins}).Draw(t, "conflict")
	c.Parent.SyncProperties.MessageTTL = time.Duration(rapid.Int64Range(int64(twin.MinMessageTTL), int64(twin.MaxMessageTTL)).Draw(t, "ttl"))
	for range rapid.IntRange(0, 3).Draw(t, "groups") {
		scope := registry.Scope{}
		for range rapid.IntRange(0, 3).Draw(t, "rules") {
			scope = append(scope, anyRule(t))
		}
		c.Repositories[key.Draw(t, "group")] = scope
	}
	c.Transfer = registry.TransferConfig{MaxKiBps: rapid.IntRange(0, 1<<20).Draw(t, "rate"), Parallel: rapid.IntRange(1, 64).Draw(t, "parallel"), ChunkKiB: rapid.IntRange(64, 4096).Draw(t, "chunk")}
	c.Transfer.Budget = registry.BudgetConfig{HourMiB: rapid.IntRange(0, 9).Draw(t, "hour"), DayMiB: rapid.IntRange(0, 99).Draw(t, "day"), MonthMiB: rapid.IntRange(0, 999).Draw(t, "month")}
	if rapid.Bool().Draw(t, "rates") {
		c.Transfer.Rates = map[string]registry.RateWindow{"shift": {From: rapid.IntRange(0, 1439).Draw(t, "from"), To: 60, Days: rapid.Uint8Range(1, 127).Draw(t, "days"), KiBps: 7}}
	}
	c.Serve.PullThrough = rapid.Bool().Draw(t, "pullThrough")
	for range rapid.IntRange(0, 2).Draw(t, "maps") {
		c.ScopeMaps[key.Draw(t, "map")] = rapid.SliceOfDistinct(rapid.SampledFrom([]string{"repositories/*/content/read", "repositories/acme/*/metadata/read", "gateway/line5/config/read"}), rapid.ID[string]).Draw(t, "actions")
	}
	if rapid.Bool().Draw(t, "long") { // more than a string of a twin takes
		var lines registry.ScopeMap
		for i := range rapid.IntRange(30, 300).Draw(t, "lines") {
			lines = append(lines, fmt.Sprintf("repositories/acme/%0*d/content/read", rapid.IntRange(3, 60).Draw(t, "width"), i))
		}
		c.ScopeMaps["long"] = lines
	}
	for name := range c.ScopeMaps {
		c.ClientTokens[key.Draw(t, "token")] = anyToken(t, name)
	}
	for range rapid.IntRange(0, 2).Draw(t, "notifications") {
		c.Notifications[key.Draw(t, "notification")] = rapid.SampledFrom([]string{"*:*", "a/b:1:push", "a/*@*:delete"}).Draw(t, "pattern")
	}
	c.GarbageCollection.Enabled = rapid.Bool().Draw(t, "gc")
	c.GarbageCollection.Schedule = rapid.SampledFrom([]string{"0 5 * * *", "* * * * *"}).Draw(t, "gcSchedule")
	c.Storage = registry.StorageConfig{MaxMiB: rapid.IntRange(0, 1<<20).Draw(t, "max"), ReserveMiB: rapid.IntRange(0, 1<<20).Draw(t, "reserve")}
	c.Logging.LogLevel = rapid.SampledFrom([]string{"Debug", "Information", "Warning", "Error", "None"}).Draw(t, "level")
	c.Logging.AuditLogStatus = rapid.SampledFrom([]string{"Enabled", "Disabled"}).Draw(t, "audit")
	return c
}

func anyToken(t *rapid.T, scopeMap string) registry.ClientToken {
	token := registry.ClientToken{ScopeMap: scopeMap, Enabled: rapid.Bool().Draw(t, "enabled")}
	for range rapid.IntRange(0, 2).Draw(t, "passwords") {
		var p registry.TokenPassword
		copy(p.SHA256[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "sum"))
		if rapid.Bool().Draw(t, "expires") {
			p.Expiry = time.Unix(rapid.Int64Range(0, 1<<37).Draw(t, "expiry"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC()
		}
		token.Passwords = append(token.Passwords, p)
	}
	return token
}

func TestMarshalRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyConfig(t)
		doc, err := twin.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, errs := twin.Parse(doc, twin.ParseOptions{})
		if len(errs) > 0 || !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\n%q\ngot  %+v\nwant %+v", doc, errs, got, want)
		}
	})
}

func TestDefaultsAreADocument(t *testing.T) {
	doc, err := twin.Marshal(twin.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	if c := parseGood(t, string(doc)); !reflect.DeepEqual(c, twin.Defaults()) {
		t.Errorf("Parse = %+v", c)
	}
}

// FuzzConfig checks that whatever is written, Parse returns a configuration that is itself a good document, and
// reports an error for each section that is not as written.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		"", "{}", example, `{"mode":null}`, `{"parent":{"gatewayEndpoint":"$IOTEDGE_PARENTHOSTNAME:8000"}}`, `{"$version":1,"mode":"x","mode":1}`,
		`{"repositories":{"a":"b:[ c@d *"},"scopeMaps":{"m":"repositories/a/content/read"}}`, `[[[[`, `{"storage":{"maxMiB":1e999}}`, `{"parent":{"syncProperties":{"schedule":"TZ=0","syncWindow":"P","messageTtl":"PT9999999999999999999H"}}}`,
		`{"clientTokens":{"a":{"scopeMap":"m","password1":"sha256:","expiry2":""}},"notifications":{"n":"@:*"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		c, errs := twin.Parse(doc, twin.ParseOptions{Env: nested})
		for _, e := range errs {
			if e.Message == "" || len(e.Error()) > 4096 || !utf8.ValidString(e.Error()) || strings.Contains(e.Error(), "%!") {
				t.Errorf("error %q", e)
			}
		}
		again, err := twin.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		c2, errs2 := twin.Parse(again, twin.ParseOptions{Env: nested})
		if len(again) < twin.MaxDocument && (len(errs2) > 0 || !reflect.DeepEqual(c, c2)) {
			t.Errorf("%q gives %s, which is no good document: %q\n%+v\n%+v", doc, again, errs2, c, c2)
		}
	})
}
