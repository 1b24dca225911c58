package twin

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// maxErrors bounds what one document can have reported: the report travels in properties of a few KB.
const maxErrors = 50

// keyPattern is what a name that the document's author chooses may be: the key of a group, scope map, token or
// notification.
var keyPattern = registry.Pattern(`^[A-Za-z0-9_-]{1,64}$`)

// problems collects what is wrong with a document, in the order of the document.
type problems struct {
	list    []registry.FieldError
	count   int
	maxText int // bytes of one string; 0 is MaxString
}

func (p *problems) add(path, format string, args ...any) {
	p.count++
	if p.count <= maxErrors {
		p.list = append(p.list, registry.FieldError{Path: path, Message: fmt.Sprintf(format, args...)})
	}
}

func (p *problems) errors() []registry.FieldError {
	if p.count > maxErrors {
		return append(p.list, registry.FieldError{Message: fmt.Sprintf("%d more errors", p.count-maxErrors)})
	}
	return p.list
}

// object reads the members of a JSON object. Whatever does not fit becomes a problem with its path; absent members
// and null leave the default in place.
type object struct {
	problems *problems
	path     string
	members  []member
}

// asObject checks that v is an object.
func asObject(p *problems, path string, v value) (object, bool) {
	if v.kind != isObject {
		p.add(path, "want an object, got %s", v.kind)
		return object{}, false
	}
	o := object{problems: p, path: path, members: v.members}
	for _, m := range v.members {
		if m.repeated {
			p.add(o.at(m.key), "stands here twice")
		}
	}
	return o, true
}

// record is asObject for an object with fixed members.
func record(p *problems, path string, v value, known ...string) (object, bool) {
	o, ok := asObject(p, path, v)
	for _, m := range o.members {
		if !slices.Contains(known, m.key) {
			p.add(o.at(m.key), "%s", unknown("property", m.key, known))
		}
	}
	return o, ok
}

// entries calls f for each member of an object whose keys the author chose.
func entries(p *problems, path string, v value, f func(path, key string, v value)) {
	o, _ := asObject(p, path, v)
	for _, m := range o.members {
		switch {
		case m.value.kind == isNull: // how a layered deployment takes an entry away
		case !keyPattern().MatchString(m.key):
			p.add(o.at(m.key), "name: want 1 to 64 letters, digits, _ or -")
		default:
			f(o.at(m.key), m.key, m.value)
		}
	}
}

// at is the path of a member. Keys are clipped: a path is for people.
func (o object) at(key string) string {
	if o.path == "" {
		return clip(key)
	}
	return o.path + "." + clip(key)
}

func (o object) find(key string) (value, bool) {
	for _, m := range o.members {
		if m.key == key && m.value.kind != isNull {
			return m.value, true
		}
	}
	return value{}, false
}

// text hands a string to set and reports what set refuses.
func (o object) text(key string, set func(string) error) {
	v, ok := o.find(key)
	if !ok {
		return
	}
	s, ok := asText(o.problems, o.at(key), v)
	if !ok {
		return
	}
	if err := set(s); err != nil {
		o.problems.add(o.at(key), "%s", err)
	}
}

func asText(p *problems, path string, v value) (string, bool) {
	if v.kind != isText {
		p.add(path, "want a string, got %s", v.kind)
		return "", false
	}
	if most := max(p.maxText, MaxString); len(v.text) > most {
		p.add(path, "string has %d bytes: want at most %d", len(v.text), most)
		return "", false
	}
	return v.text, true
}

// words hands on a list that is one string with blanks between, or an object of several: for more than one string of a
// twin takes. The names in the object mean nothing; null takes one away.
func words(p *problems, path string, v value, take func(path string, list []string)) {
	one := func(path string, v value) {
		if s, ok := asText(p, path, v); ok {
			take(path, strings.Fields(s))
		}
	}
	if v.kind != isObject {
		one(path, v)
		return
	}
	entries(p, path, v, func(path, _ string, v value) { one(path, v) })
}

// choice takes one of some words, in any case, and keeps their spelling.
func (o object) choice(key string, target *string, words ...string) {
	o.text(key, func(s string) error {
		for _, w := range words {
			if strings.EqualFold(w, s) {
				*target = w
				return nil
			}
		}
		return fmt.Errorf("%q: want %s", clip(s), strings.Join(words, ", "))
	})
}

func (o object) flag(key string, target *bool) {
	v, ok := o.find(key)
	if !ok {
		return
	}
	if v.kind != isFlag {
		o.problems.add(o.at(key), "want true or false, got %s", v.kind)
		return
	}
	*target = v.flag
}

// number takes a whole number within limits.
func (o object) number(key string, target *int, lowest, highest int) {
	v, ok := o.find(key)
	if !ok {
		return
	}
	if v.kind != isNumber {
		o.problems.add(o.at(key), "want a whole number, got %s", v.kind)
		return
	}
	n, err := strconv.Atoi(v.text)
	if err != nil || n < lowest || n > highest {
		o.problems.add(o.at(key), "%s: want a whole number from %d to %d", clip(v.text), lowest, highest)
		return
	}
	*target = n
}

// unknown is the message for a word that is none of the known ones. The word itself is not in it: it may be a secret.
func unknown(what, word string, known []string) string {
	best, distance := "", 4
	for _, k := range known {
		d := editDistance(strings.ToLower(word), strings.ToLower(k), distance)
		if d < distance && 3*d <= len(k) {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("unknown %s; did you mean %s?", what, best)
	}
	return fmt.Sprintf("unknown %s; known are %s", what, strings.Join(known, ", "))
}

// editDistance is Levenshtein's, or limit if it is not below it.
func editDistance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}

// clip makes what an author wrote fit into an error: on one line of a log, and short.
func clip(s string) string {
	const most = 64
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '.'
	}, s)
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
