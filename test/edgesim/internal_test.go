package edgesim

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

func nested(depth int, inner string) string {
	return strings.Repeat(`{"a":`, depth) + inner + strings.Repeat(`}`, depth)
}

func TestValidator(t *testing.T) {
	long := strings.Repeat("x", 4096)
	name := strings.Repeat("n", 1024)
	for _, tt := range []struct {
		name, doc, want string
	}{
		{"empty", `{}`, ""},
		{"everything", `{"a":null,"b":true,"c":1.5,"d":"x","e":[1,"x",{"f":[]}],"g":{"h":{}}}`, ""},
		{"longest string", `{"a":"` + long + `"}`, ""},
		{"longer string", `{"a":"` + long + `x"}`, "4097"},
		{"longer in bytes", `{"a":"` + long[:4095] + `é"}`, "4097"},
		{"longest name", `{"` + name + `":1}`, ""},
		{"longer name", `{"` + name + `n":1}`, "property name"},
		{"largest integer", `{"a":4503599627370495,"b":-4503599627370496}`, ""},
		{"larger integer", `{"a":4503599627370496}`, "out of bound"},
		{"smaller integer", `{"a":-4503599627370497}`, "out of bound"},
		{"huge integer", `{"a":99999999999999999999}`, "out of bound"},
		{"huge float", `{"a":1e300}`, ""},
		{"deepest", nested(11, "1"), ""},
		{"deeper", nested(12, "1"), "depth"},
		{"deepest array", nested(10, "["+`1`+"]"), ""},
		{"deeper array", nested(11, "[1]"), "depth"},
		{"arrays in arrays", `{"a":` + strings.Repeat("[", 10) + strings.Repeat("]", 10) + `}`, ""},
		{"too many arrays", `{"a":` + strings.Repeat("[", 13) + strings.Repeat("]", 13) + `}`, "depth"},
		{"null in an array", `{"a":[1,null]}`, "null"},
		{"null in an object in an array", `{"a":[{"b":null}]}`, "null"},
		{"null in an object", `{"a":{"b":null}}`, ""},
		{"dot", `{"a.b":1}`, "'.'"},
		{"dollar", `{"$version":1}`, "'$'"},
		{"hash", `{"a#":1}`, "'#'"},
		{"space", `{"a b":1}`, "' '"},
		{"control", `{"a\u0007":1}`, "invalid character"},
		{"other space", `{"a\u00a0":1}`, "invalid character"},
		{"largest document", document(maxTwinDocument), ""},
		{"larger document", document(maxTwinDocument + 1), "size"},
	} {
		o, err := decodeObject([]byte(tt.doc))
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		err = validateTwin(o)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// document makes an object of exactly that many bytes.
func document(size int) string {
	var parts []string
	left := size - 2
	for i := 0; left > 0; i++ {
		frame := len(fmt.Sprintf(`,"k%d":""`, i))
		if i == 0 {
			frame--
		}
		n := min(left-frame, 4000)
		if rest := left - frame - n; rest > 0 && rest < 12 {
			n -= 12
		}
		parts = append(parts, fmt.Sprintf(`"k%d":"%s"`, i, strings.Repeat("x", n)))
		left -= frame + n
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// TestDiffIsWhatMergeNeeds checks that the difference of two documents makes one of the other.
func TestDiffIsWhatMergeNeeds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		a, b := randomObject(r, 3), randomObject(r, 3)
		before := fmt.Sprint(a)
		if got := mergePatch(a, diffPatch(a, b)); !reflect.DeepEqual(got, b) {
			t.Fatalf("%v with %v is %v, want %v", a, diffPatch(a, b), got, b)
		}
		if fmt.Sprint(a) != before {
			t.Fatal("merge changed its input")
		}
		if len(diffPatch(a, a)) != 0 {
			t.Fatalf("%v differs from itself", a)
		}
	}
}

// randomObject makes an object without nulls and without empty objects, which a patch cannot make.
func randomObject(r *rand.Rand, depth int) map[string]any {
	o := map[string]any{"k": json.Number(fmt.Sprint(r.IntN(3)))}
	for range r.IntN(4) {
		key := string(rune('a' + r.IntN(4)))
		switch n := r.IntN(4); {
		case n == 0 && depth > 0:
			o[key] = randomObject(r, depth-1)
		case n == 1:
			o[key] = []any{json.Number(fmt.Sprint(r.IntN(2)))}
		default:
			o[key] = fmt.Sprint(r.IntN(3))
		}
	}
	return o
}

func TestMergeOfPendingKeepsNulls(t *testing.T) {
	a := map[string]any{"x": map[string]any{"y": "1", "z": "2"}, "w": "1"}
	p := mergePending(nil, map[string]any{"x": map[string]any{"y": nil}})
	p = mergePending(p, map[string]any{"w": nil, "x": map[string]any{"z": "3"}})
	if got := mergePatch(a, p); !reflect.DeepEqual(got, map[string]any{"x": map[string]any{"z": "3"}}) {
		t.Errorf("got %v", got)
	}
}

func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true},
		{"a/b", "a/b/c", false},
		{"a/b/c", "a/b", false},
		{"a/#", "a/b/c", true},
		{"a/#", "a", true},
		{"a/+/c", "a/b/c", true},
		{"a/+", "a/b/c", false},
		{"#", "a/b", true},
		{"#", "$iothub/x", false},
		{"+/x", "$iothub/x", false},
		{"$iothub/#", "$iothub/x", true},
		{"$iothub/twin/res/#", "$iothub/twin/res/200/?$rid=1", true},
	} {
		if _, got := match(map[string]byte{tt.filter: 1}, tt.topic); got != tt.want {
			t.Errorf("%s on %s: %v", tt.filter, tt.topic, got)
		}
	}
}

func TestManifest(t *testing.T) {
	const doc = `{"modulesContent":{
		"$edgeAgent":{"properties.desired":{"modules":{
			"late":{"startupOrder":2,"settings":{"image":"${MODULES.late}","createOptions":"{\"User\":","createOptions01":"\"1\"}"}},
			"early":{"startupOrder":1,"env":{"A":{"value":"${V}-$IOTEDGE_PARENTHOSTNAME"},"N":{"value":8000}},
				"settings":{"image":"$upstream:8000/x:${V}","createOptions":{"User":"2"}}}}}},
		"$edgeHub":{"properties.desired":{}},
		"early":{"properties.desired":{"list":["${V}"],"n":1,"below":{"x":1}},"properties.desired.below.y":2},
		"late":{"properties.desired.a.b":{"c":true}}}}`
	m, err := ReadManifest([]byte(doc), func(name string) (string, bool) { return "v", name == "V" })
	if err != nil || len(m.Modules) != 2 {
		t.Fatal(m, err)
	}
	early, late := m.Modules[0], m.Modules[1]
	if early.ID != "early" || early.Env["A"] != "v-$IOTEDGE_PARENTHOSTNAME" || early.Env["N"] != "8000" ||
		early.Image != "$upstream:8000/x:v" || early.CreateOptions["User"] != "2" {
		t.Errorf("%+v", early)
	}
	if late.Image != "${MODULES.late}" || late.CreateOptions["User"] != "1" {
		t.Errorf("%+v", late)
	}
	for v, want := range map[any]string{
		&early.Desired: `{"below":{"x":1,"y":2},"list":["v"],"n":1}`, &late.Desired: `{"a":{"b":{"c":true}}}`,
	} {
		if got, err := json.Marshal(v); err != nil || string(got) != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	none := func(string) (string, bool) { return "", false }
	for _, bad := range []string{
		`x`, `{}`, strings.Replace(doc, `"list":["${V}"]`, `"list":["${W}"]`, 1), strings.Replace(doc, "${V}-", "${W}-", 1),
		strings.Replace(doc, `{"c":true}`, `1`, 1) + "x", strings.Replace(doc, `"{\"User\":"`, `"{"`, 1),
		strings.Replace(doc, `"properties.desired":{"list"`, `"properties.desired":1,"x":{"list"`, 1),
		strings.Replace(doc, `"modules":{`, `"modules":1,"x":{`, 1),
	} {
		if _, err := ReadManifest([]byte(bad), func(name string) (string, bool) { return "v", name == "V" }); err == nil {
			t.Errorf("read %s", bad)
		}
	}
	if _, err := ReadManifest([]byte(doc), none); err == nil {
		t.Error("missing variables were not noticed")
	}
}
