package hierarchy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
)

func TestCheckModes(t *testing.T) {
	for _, tt := range []struct {
		parent, child registry.Mode
		ok            bool
	}{
		{registry.ReadWrite, registry.ReadWrite, true},
		{registry.ReadWrite, registry.ReadOnly, true},
		{registry.ReadOnly, registry.ReadOnly, true},
		{registry.ReadOnly, registry.ReadWrite, false},
		{"", registry.ReadWrite, false},
		{"", registry.ReadOnly, true},
	} {
		err := hierarchy.CheckModes("line5", tt.parent, "line4", tt.child)
		if (err == nil) != tt.ok {
			t.Errorf("%q above %q: %v", tt.parent, tt.child, err)
		}
		if err != nil && !errors.Is(err, registry.ErrConflict) {
			t.Errorf("%v is no conflict", err)
		}
	}
}

func TestCheckModesText(t *testing.T) {
	const want = "Can't create the registry 'line4' with mode 'ReadWrite' when the connected registry parent 'line5' mode is 'ReadOnly'. " +
		"For more information on connected registries please visit https://aka.ms/acr/connected-registry."
	var e *registry.Error
	if err := hierarchy.CheckModes("line5", registry.ReadOnly, "line4", registry.ReadWrite); !errors.As(err, &e) || e.Message != want {
		t.Errorf("CheckModes = %v\nwant %s", err, want)
	}
}

func TestCheckAncestry(t *testing.T) {
	for _, tt := range []struct {
		name, self string
		parent     registry.LayerInfo
		want       string
	}{
		{"top", "a", registry.LayerInfo{InstanceID: "b"}, ""},
		{"chain", "a", registry.LayerInfo{InstanceID: "b", Ancestors: []string{"c", "d"}}, ""},
		{"itself", "a", registry.LayerInfo{InstanceID: "a"}, "leads to this registry itself"},
		{"loop of two", "a", registry.LayerInfo{InstanceID: "b", Name: "line5", Ancestors: []string{"a"}}, "'line5' stands below this registry (1 layers"},
		{"loop of three", "a", registry.LayerInfo{InstanceID: "b", Ancestors: []string{"c", "a"}}, "'b' stands below this registry (2 layers"},
		{"nothing known", "", registry.LayerInfo{Ancestors: []string{""}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := hierarchy.CheckAncestry(tt.self, tt.parent)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("CheckAncestry = %v, want %q", err, tt.want)
			}
			if err != nil && !errors.Is(err, registry.ErrConflict) {
				t.Errorf("%v is no conflict", err)
			}
		})
	}
}

func TestParseName(t *testing.T) {
	for name, want := range map[string]string{
		"line5": "line5", "Line_5-East": "line_5-east", strings.Repeat("a", 40): strings.Repeat("a", 40),
		"": "", "abcd": "", strings.Repeat("a", 41): "", "5line": "", "-line": "", "line 5": "", "liné5": "", "line.5": "", "<name>": "",
	} {
		got, err := hierarchy.ParseName(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseName(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	if !hierarchy.SameName("Line5", "line5") || hierarchy.SameName("line5", "line6") {
		t.Error("names are compared in lower case")
	}
}
