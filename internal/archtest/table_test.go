package archtest

import (
	"bufio"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// table is what internal/README.md says: the tier of each package, and the third-party modules that it owns.
type table struct {
	tier   map[string]int      // directory below internal, slashes -> tier
	owners map[string][]string // name of a module -> directories that may import it
}

var (
	tierCell = regexp.MustCompile(`^T(\d+)$`)
	codeCell = regexp.MustCompile("^`([a-z/-]+)`$")
)

// parseTable reads the rows "| tier | `package` | what | owner of |". A row without a tier has that of the row above.
func parseTable(page string) (table, error) {
	t := table{tier: map[string]int{}, owners: map[string][]string{}}
	tier := -1
	for sc := bufio.NewScanner(strings.NewReader(page)); sc.Scan(); {
		cells := strings.Split(strings.Trim(strings.TrimSpace(sc.Text()), "|"), "|")
		if len(cells) != 4 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if m := tierCell.FindStringSubmatch(cells[0]); m != nil {
			tier, _ = strconv.Atoi(m[1])
		}
		name := codeCell.FindStringSubmatch(cells[1])
		if name == nil || tier < 0 {
			continue
		}
		if _, again := t.tier[name[1]]; again {
			return t, fmt.Errorf("package %s stands twice in the table", name[1])
		}
		t.tier[name[1]] = tier
		for owned := range strings.FieldsFuncSeq(cells[3], func(r rune) bool { return r == ',' || r == ' ' || r == '`' }) {
			t.owners[owned] = append(t.owners[owned], name[1])
		}
	}
	if len(t.tier) == 0 {
		return t, fmt.Errorf("no table of tiers found")
	}
	return t, nil
}

// mayImport reports whether package from may import package to, both directories below internal.
func (t table) mayImport(from, to string) bool {
	return t.tier[to] < t.tier[from] || strings.HasPrefix(from, to+"/")
}

// shared are modules without an owner: types and small tools of the standard library's kind.
var shared = []string{"github.com/opencontainers/", "golang.org/x/"}

// cmdOwns are the modules of the command, which stands above all tiers (rule 7 of the page).
var cmdOwns = []string{"cobra", "pflag", "logrus"}

// ownersOf returns who may import a third-party package, by the element of its path that names the module;
// ok is false when nobody owns it.
func (t table) ownersOf(path string) (dirs []string, ok bool) {
	for elem := range strings.SplitSeq(path, "/") {
		if d, found := t.owners[elem]; found {
			return d, true
		}
		for _, name := range cmdOwns {
			if elem == name {
				return nil, true
			}
		}
	}
	return nil, false
}
