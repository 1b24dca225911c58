package twin_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/twin"
)

func TestParseTokens(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	set, errs := twin.ParseTokens([]byte(`{"scopeMaps":{"pull":"repositories/Acme/*/content/read"},
		"clientTokens":{"Line-A":{"scopeMap":"pull","password1":"sha256:` + hash + `","expiry1":"2027-01-01T00:00:00Z"}}}`))
	if len(errs) > 0 || len(set.ClientTokens["line-a"].Passwords) != 1 || set.ScopeMaps["pull"][0] != "repositories/acme/*/content/read" {
		t.Fatalf("%+v, %v", set, errs)
	}
	for name, tt := range map[string]struct{ doc, path, text string }{
		"no JSON":           {`{`, "", "line 1"},
		"another property":  {`{"mode":"ReadOnly"}`, "mode", "unknown property"},
		"no such scope map": {`{"clientTokens":{"a":{"scopeMap":"x"}}}`, "clientTokens.a.scopeMap", "no scope map"},
		"a password":        {`{"scopeMaps":{"x":""},"clientTokens":{"a":{"scopeMap":"x","password1":"hunter2"}}}`, "clientTokens.a.password1", "never the password"},
		"a bad action":      {`{"scopeMaps":{"x":"repositories/a*/content/read"}}`, "scopeMaps.x", "want * only alone"},
	} {
		t.Run(name, func(t *testing.T) {
			set, errs := twin.ParseTokens([]byte(tt.doc))
			if len(errs) == 0 || errs[0].Path != tt.path || !strings.Contains(errs[0].Message, tt.text) || strings.Contains(errs[0].Message, "hunter2") {
				t.Errorf("%v, want %s at %q", errs, tt.text, tt.path)
			}
			if len(set.ClientTokens)+len(set.ScopeMaps) > 0 {
				t.Errorf("a part of it is in force: %+v", set)
			}
		})
	}
}

// TestParseManyTokens: more than a twin can carry.
func TestParseManyTokens(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(`{"scopeMaps":{"long":"`)
	for i := range 50_000 {
		fmt.Fprintf(&doc, "repositories/site%d/app%d/content/read ", i%97, i)
	}
	doc.WriteString(`"},"clientTokens":{`)
	for i := range 10_000 {
		fmt.Fprintf(&doc, `%s"token-%d":{"scopeMap":"long","password1":"sha256:%064x"}`, strings.Repeat(",", min(i, 1)), i, i)
	}
	doc.WriteString(`}}`)
	set, errs := twin.ParseTokens([]byte(doc.String()))
	if len(errs) > 0 || len(set.ClientTokens) != 10_000 || len(set.ScopeMaps["long"]) != 50_000 {
		t.Errorf("%d tokens, %d lines, %v", len(set.ClientTokens), len(set.ScopeMaps["long"]), errs)
	}
}

// TestDocumentReadsNoSecretOut: an endpoint that names the variable of a credential would send it to a resolver, and its
// error to the twin.
func TestDocumentReadsNoSecretOut(t *testing.T) {
	for _, name := range []string{"ACR_REGISTRY_CONNECTION_STRING", "SYNC_TOKEN_PASSWORD", "AZURE_CLIENT_SECRET", "API_KEY", "MY_HOST"} {
		for _, value := range []string{"hunter2", "hunter2;x=y", "hunter2 x"} {
			endpoint, err := twin.ParseEndpoint("$"+name+":443", environment(name, value))
			if name == "MY_HOST" && value == "hunter2" {
				if err != nil || endpoint != "hunter2:443" {
					t.Errorf("a variable with a host: %q, %v", endpoint, err)
				}
				continue
			}
			if err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %q, %v", name, endpoint, err)
			}
		}
	}
}
