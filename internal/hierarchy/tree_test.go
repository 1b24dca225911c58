package hierarchy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
)

func node(name, parent string, mode registry.Mode) hierarchy.Node {
	return hierarchy.Node{Name: name, Parent: parent, Mode: mode}
}

func grown(t *testing.T, steps ...hierarchy.Node) hierarchy.Tree {
	t.Helper()
	var tree hierarchy.Tree
	for _, n := range steps {
		var err error
		if tree, err = tree.Add(n, []string{"of/" + n.Name}); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

func names(nodes []hierarchy.Node) (list []string) {
	for _, n := range nodes {
		list = append(list, n.Name)
	}
	return list
}

// TestDescendantsOfEveryBranch: a tree in which a walk that forgets a branch is seen.
func TestDescendantsOfEveryBranch(t *testing.T) {
	tree := grown(t, node("parent", "", "ReadOnly"), node("childA", "Parent", "ReadOnly"), node("childB", "parent", "ReadOnly"), node("childC", "parent", "ReadOnly"),
		node("leafA1", "childa", "ReadOnly"), node("leafC1", "childc", "ReadOnly"))
	if got := names(tree.Descendants("parent")); !slices.Equal(got, []string{"childa", "leafa1", "childb", "childc", "leafc1"}) {
		t.Errorf("descendants %q", got)
	}
	if got := names(tree.Ancestors("leafC1")); !slices.Equal(got, []string{"childc", "parent"}) {
		t.Errorf("ancestors %q", got)
	}
}

func TestRules(t *testing.T) {
	tree := grown(t, node("line5", "", "ReadOnly"), node("line4", "line5", "ReadOnly"))
	deep := grown(t, node("layer0", "", "ReadOnly"))
	for i := 1; i < hierarchy.MaxDepth; i++ {
		var err error
		if deep, err = deep.Add(node(fmt.Sprint("layer", i), fmt.Sprint("layer", i-1), "ReadOnly"), nil); err != nil {
			t.Fatal(err)
		}
	}
	for what, tt := range map[string]struct {
		tree hierarchy.Tree
		n    hierarchy.Node
		text string
	}{
		"a mode that does not fit": {tree, node("line3", "line4", "ReadWrite"), "Can't create the registry 'line3' with mode 'ReadWrite' when the connected registry parent 'line4' mode is 'ReadOnly'."},
		"no such parent":           {tree, node("line3", "line9", "ReadOnly"), "The parent connected registry 'line9' could not be found."},
		"its own parent":           {tree, node("line3", "LINE3", "ReadOnly"), "its own parent"},
		"a name that is taken":     {tree, node("Line4", "line5", "ReadOnly"), "exists already"},
		"a short name":             {tree, node("abc", "", "ReadOnly"), "argument error: connected registry name must be at least 5 characters long"},
		"no mode":                  {tree, node("line3", "", "Both"), "usage error: --mode supports only 'ReadWrite' and 'ReadOnly' values."},
		"too deep":                 {deep, node("layer16", "layer15", "ReadOnly"), "at most 16 layers"},
	} {
		if _, err := tt.tree.Add(tt.n, nil); err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %q", what, err, tt.text)
		}
	}
	for what, nodes := range map[string][]hierarchy.Node{
		"a loop of two":   {node("line5", "line4", "ReadOnly"), node("line4", "line5", "ReadOnly")},
		"a loop of three": {node("line5", "line3", "ReadOnly"), node("line4", "line5", "ReadOnly"), node("line3", "line4", "ReadOnly")},
		"twice":           {node("line5", "", "ReadOnly"), node("LINE5", "", "ReadOnly")},
		"no parent":       {node("line4", "line5", "ReadOnly")},
	} {
		if _, err := hierarchy.NewTree(nodes); err == nil {
			t.Errorf("%s is a tree", what)
		}
	}
	if _, err := tree.Delete("line5"); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("delete with children: %v", err)
	}
	if _, err := tree.Update("line4", []string{"a"}, []string{"A"}); err == nil || !strings.Contains(err.Error(), "Update ambiguity.") {
		t.Errorf("in both lists: %v", err)
	}
	if _, err := tree.Update("line4", []string{"a*b"}, nil); err == nil {
		t.Error("a repository that is none")
	}
}

// TestTreesOfAllKinds plays changes on random trees, and looks after each that what an operator relies on holds.
func TestTreesOfAllKinds(t *testing.T) {
	pool := []string{"alpha", "bravo", "charlie", "delta1", "echo1", "foxtrot", "golf1", "hotel"}
	name := rapid.SampledFrom(pool)
	repos := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c/d", "e/*", "*", long("w"), long("x"), long("y"), long("z")}), 0, 5)
	words := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"dev", "line-a", long("t") + long("u") + long("v"), long("u") + long("v") + long("w"), strings.Repeat("r", 3000)}), 0, 6, rapid.ID)
	rapid.Check(t, func(t *rapid.T) {
		var tree hierarchy.Tree
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			before := tree
			frozen, _ := json.Marshal(tree.Nodes())
			who := name.Draw(t, "who")
			switch rapid.SampledFrom([]string{"add", "add", "grow", "shrink", "set", "delete"}).Draw(t, "what") {
			case "set":
				tree, _ = tree.Set(who, func(n *hierarchy.Node) {
					n.ClientTokens, n.Notifications = words.Draw(t, "tokens"), words.Draw(t, "notifications")
					n.Schedule, n.Window = rapid.SampledFrom([]string{"* * * * *", "0 1 * * *"}).Draw(t, "schedule"), rapid.SampledFrom([]string{"", "PT1H"}).Draw(t, "window")
					n.GCEnabled, n.LogLevel = rapid.Ptr(rapid.Bool(), true).Draw(t, "gc"), rapid.SampledFrom([]string{"", "Debug"}).Draw(t, "level")
				})
			case "add":
				n := node(who, rapid.SampledFrom(append([]string{""}, pool...)).Draw(t, "parent"), rapid.SampledFrom([]registry.Mode{"ReadOnly", "ReadWrite"}).Draw(t, "mode"))
				list := repos.Draw(t, "repositories")
				next, err := tree.Add(n, list)
				parent, missing := tree.Get(n.Parent)
				_, free := tree.Get(who)
				may := free != nil && n.Parent != who && (n.Parent == "" || missing == nil && (parent.Mode == registry.ReadWrite || n.Mode == registry.ReadOnly))
				if (err == nil) != may {
					t.Fatalf("add %s below %q: %v", who, n.Parent, err)
				}
				if err == nil {
					tree = next
					want, _ := hierarchy.ScopeOf(who, n.Mode, list)
					for _, a := range append(tree.Ancestors(who), must(tree.Get(who))) {
						contains(t, a, want)
					}
				}
			case "grow":
				list := repos.Draw(t, "repositories")
				if next, err := tree.Update(who, list, nil); err == nil {
					tree = next
					want, _ := hierarchy.ScopeOf("", must(tree.Get(who)).Mode, list)
					for _, a := range append(tree.Ancestors(who), must(tree.Get(who))) {
						contains(t, a, want)
					}
				}
			case "shrink":
				list := repos.Draw(t, "repositories")
				next, err := tree.Update(who, nil, list)
				if err != nil {
					break
				}
				gone, _ := hierarchy.ScopeOf("", registry.ReadWrite, list)
				touched := append(names(next.Descendants(who)), who)
				for _, n := range next.Nodes() {
					was := must(tree.Get(n.Name))
					if !slices.Contains(touched, n.Name) && !slices.Equal(n.Scope, was.Scope) {
						t.Fatalf("removing %q from %s changes %s", list, who, n.Name)
					}
					for _, l := range gone {
						if slices.Contains(touched, n.Name) && slices.Contains(n.Scope, l) {
							t.Fatalf("%s keeps %s", n.Name, l)
						}
					}
				}
				tree = next
			case "delete":
				if next, err := tree.Delete(who); err == nil {
					tree = next
					for _, n := range tree.Nodes() {
						if strings.Contains(strings.Join(n.Scope, " "), "gateway/"+who+"/") {
							t.Fatalf("%s speaks for %s, which is gone", n.Name, who)
						}
					}
				}
			}
			if now, _ := json.Marshal(before.Nodes()); string(now) != string(frozen) {
				t.Fatal("a change reached the tree before it")
			}
			holds(t, tree)
			applied(t, before, tree)
		}
	})
}

// long is a name of which not many fit into a string of a twin.
func long(s string) string { return "long/" + strings.Repeat(s, 245) }

func must(n hierarchy.Node, err error) hierarchy.Node {
	if err != nil {
		panic(err)
	}
	return n
}

func contains(t *rapid.T, n hierarchy.Node, lines registry.ScopeMap) {
	for _, l := range lines {
		if !slices.Contains(n.Scope, l) {
			t.Fatalf("%s lacks %s", n.Name, l)
		}
	}
}

// holds checks what is true of every tree: a child may nothing that its parent may not, the modes fit, all are found, and
// what was kept can be read again.
func holds(t *rapid.T, tree hierarchy.Tree) {
	nodes := tree.Nodes()
	for _, n := range nodes {
		if n.Parent == "" {
			continue
		}
		parent := must(tree.Get(n.Parent))
		contains(t, parent, n.Scope)
		if parent.Mode == registry.ReadOnly && n.Mode == registry.ReadWrite {
			t.Fatalf("%s is ReadWrite below %s", n.Name, parent.Name)
		}
	}
	again, err := hierarchy.NewTree(nodes)
	if err != nil || !reflect.DeepEqual(again.Nodes(), nodes) {
		t.Fatalf("read again: %v", err)
	}
}

// shared are the sections that a layered deployment adds entries to.
var shared = []string{"repositories", "scopeMaps", "clientTokens", "connectedRegistries", "notifications", "garbageCollection", "logging"}

// applied checks that the patches are the whole difference: merged into the twins of before, they give those of after; and
// that those hold what the registries may, in strings that a twin takes.
func applied(t *rapid.T, before, after hierarchy.Tree) {
	twins := map[string]map[string]any{}
	for _, n := range after.Nodes() { // the twin of one that is gone goes with it
		twins[n.Name] = plain(t, hierarchy.Desired(before, n.Name))
		for _, section := range shared {
			merge(twins[n.Name], map[string]any{section: map[string]any{"theirs": "stays"}})
		}
	}
	for _, p := range hierarchy.Patches(before, after) {
		if p.Registry != "" {
			merge(twins[p.Registry], plain(t, p.Properties))
		}
	}
	for _, n := range after.Nodes() {
		for _, section := range shared {
			entries, _ := twins[n.Name][section].(map[string]any)
			if entries["theirs"] != "stays" {
				t.Fatalf("what others have put into %s of %s is gone", section, n.Name)
			}
			delete(entries, "theirs")
		}
		maps.DeleteFunc(twins[n.Name], func(_ string, v any) bool { m, ok := v.(map[string]any); return ok && len(m) == 0 })
		if want := plain(t, hierarchy.Desired(after, n.Name)); !reflect.DeepEqual(twins[n.Name], want) {
			t.Fatalf("the patches make of %s %v\nwant %v", n.Name, twins[n.Name], want)
		}
		if got := listed(t, twins[n.Name], "repositories", n.Name); !slices.Equal(got, n.Repositories()) {
			t.Fatalf("%s syncs %q, want %q", n.Name, got, n.Repositories())
		}
		if n.Parent != "" {
			if got := listed(t, twins[n.Parent], "scopeMaps", n.Name); !slices.Equal(got, n.Scope) {
				t.Fatalf("the token of %s may %q, want %q", n.Name, got, n.Scope)
			}
			children, _ := twins[n.Parent]["connectedRegistries"].(map[string]any)
			child, _ := children[n.Name].(map[string]any)
			if got := listed(t, map[string]any{"": child}, "", "clientTokens"); !slices.Equal(got, n.ClientTokens) {
				t.Fatalf("the client tokens of %s are %q, want %q", n.Name, got, n.ClientTokens)
			}
		}
	}
}

// plain is the value as a twin has it.
func plain(t *rapid.T, v map[string]any) (out map[string]any) {
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// merge is JSON merge patch, but for objects that become empty: a twin has none.
func merge(doc, patch map[string]any) {
	for k, v := range patch {
		inner, isObject := v.(map[string]any)
		switch have, _ := doc[k].(map[string]any); {
		case v == nil:
			delete(doc, k)
		case isObject:
			if have == nil {
				have = map[string]any{}
			}
			merge(have, inner)
			doc[k] = have
		default:
			doc[k] = v
		}
	}
}

// listed is a list of a twin, in one string or several.
func listed(t *rapid.T, twin map[string]any, section, key string) (list []string) {
	entries, _ := twin[section].(map[string]any)
	switch v := entries[key].(type) {
	case string:
		if len(v) > hierarchy.MaxString {
			t.Fatalf("a string of %d bytes", len(v))
		}
		list = strings.Fields(v)
	case map[string]any:
		for i := range len(v) {
			part, _ := v[fmt.Sprint("part", i+1)].(string)
			if len(part) > hierarchy.MaxString || part == "" {
				t.Fatalf("a part of %d bytes", len(part))
			}
			list = append(list, strings.Fields(part)...)
		}
	}
	return list
}

func TestPatchesOfANewChild(t *testing.T) {
	before := grown(t, node("line5", "", "ReadWrite"), node("line4", "line5", "ReadWrite"))
	n := node("Line3", "line4", "ReadOnly")
	n.ClientTokens, n.Passwords, n.Endpoint, n.Protocol, n.Schedule = []string{"dev"}, [2]string{"sha256:x", ""}, "$IOTEDGE_PARENTHOSTNAME:8000", "https", "* * * * *"
	after, err := before.Add(n, []string{"acme/app"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(hierarchy.Patches(before, after))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`{"commands":["az acr scope-map update --registry \u003cregistry\u003e --name line5 --add-gateway line3 config/read config/write message/read message/write --add-repository acme/app content/read metadata/read"]}`,
		`{"connectedRegistry":"line5","desired":{"connectedRegistries":{"line3":{"clientTokens":"dev"}},"repositories":{"line5":"acme/app of/line4 of/line5"},"scopeMaps":{"line4":"`,
		`{"connectedRegistry":"line4","desired":{"clientTokens":{"line3":{"password1":"sha256:x","scopeMap":"line3","status":"enabled"}},"connectedRegistries":{"line3":`,
		`"scopeMaps":{"line3":"gateway/line3/config/read gateway/line3/config/write gateway/line3/message/read gateway/line3/message/write repositories/acme/app/content/read repositories/acme/app/metadata/read"}`,
		`{"connectedRegistry":"line3","desired":{"mode":"ReadOnly","parent":{"gatewayEndpoint":"$IOTEDGE_PARENTHOSTNAME:8000","protocol":"https","syncProperties":{"schedule":"* * * * *"}},"repositories":{"line3":"acme/app"}}}`,
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("no %s in\n%s", want, raw)
		}
	}
}

// TestWords: one string as long as it goes, and not a byte longer.
func TestWords(t *testing.T) {
	word := strings.Repeat("x", 99)
	for n, parts := range map[int]int{0: 0, 1: 0, 40: 0, 41: 0, 42: 2, 80: 2, 81: 3} { // 41 words of 99 bytes are 3 too many
		var list []string
		for range n {
			list = append(list, word)
		}
		if n == 41 {
			list[0] = word[:96]
		}
		switch v := hierarchy.Words(list).(type) {
		case string:
			if v != strings.Join(list, " ") || len(v) > hierarchy.MaxString || parts > 0 {
				t.Errorf("%d words: %d bytes, want %d parts", n, len(v), parts)
			}
		case map[string]any:
			if len(v) != parts {
				t.Errorf("%d words: %d parts, want %d", n, len(v), parts)
			}
		}
	}
}
