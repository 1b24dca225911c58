package twin_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// readTOML reads the part of TOML that the files use: tables, and keys with a string, a boolean or an inline table on
// one line. It fails on anything else, and on what stands twice.
func readTOML(t *testing.T, path string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(path)
	do(t, err)
	table := regexp.MustCompile(`^\[([a-z_]+(?:\.[a-z_]+)*)\]$`)
	pair := regexp.MustCompile(`^([A-Za-z_]+) = ("[^"\\]*"|true|false|\{ [a-z_]+ = "[^"\\]*" \})$`)
	found := map[string]string{}
	prefix := ""
	for i, line := range strings.Split(string(raw), "\n") {
		key, value := "", ""
		if m := table.FindStringSubmatch(line); m != nil {
			prefix, key = m[1]+".", m[1]
		} else if m := pair.FindStringSubmatch(line); m != nil {
			key, value = prefix+m[1], strings.Trim(m[2], `"`)
		} else if line == "" || strings.HasPrefix(line, "#") {
			continue
		} else {
			t.Errorf("%s:%d: %s", path, i+1, line)
		}
		if _, ok := found[key]; ok {
			t.Errorf("%s:%d: %s stands twice", path, i+1, key)
		}
		found[key] = value
	}
	return found
}

func TestEdgeConfig(t *testing.T) {
	common := []string{
		"hostname", "trust_bundle_cert", "provisioning.source", "provisioning.authentication.method", "edge_ca.cert", "edge_ca.pk", "agent.name", "agent.type",
		"agent.config.image", "moby_runtime.uri", "moby_runtime.network", "image_garbage_collection.enabled",
	}
	lower := []string{"parent_hostname", "agent.config.auth.serveraddress", "agent.config.auth.username", "agent.config.auth.password"}
	for name, keys := range map[string][]string{"top": common, "middle": append(lower, common...), "bottom": append(lower, common...)} {
		t.Run(name, func(t *testing.T) {
			c := readTOML(t, "../../edge-config/"+name+".toml")
			for _, key := range keys {
				if c[key] == "" {
					t.Errorf("%s is missing", key)
				}
			}
			image := readManifest(t, name+"-layer.template.json").Content.Agent.Desired.SystemModules["edgeAgent"].Settings.Image
			if c["agent.config.image"] != image {
				t.Errorf("the daemon starts %s and the deployment asks for %s", c["agent.config.image"], image)
			}
			if _, nested := c["parent_hostname"]; nested != (name != "top") || nested && c["agent.config.auth.serveraddress"] != "$upstream:8000" {
				t.Errorf("parent of %s: %v", name, c)
			}
			for key, value := range c {
				if strings.Contains(key, "password") && !strings.HasPrefix(value, "<") {
					t.Errorf("%s holds a secret", key)
				}
			}
		})
	}
}
