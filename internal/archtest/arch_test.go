package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	modulePath   = "github.com/connected-registry/connected-registry"
	internalPath = modulePath + "/internal/"

	maxFuncLines = 80
	maxFileLines = 500
	maxMethods   = 8
)

func TestHouse(t *testing.T) {
	const root = "../.."
	page, err := os.ReadFile(filepath.Join(root, "internal", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := parseTable(string(page))
	if err != nil {
		t.Fatal(err)
	}
	found, err := check(root, rules)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found {
		t.Error(v)
	}
}

// source is one Go file of the tree.
type source struct {
	path  string // from the root, slashes
	dir   string
	test  bool // a _test.go file, a package of test helpers, or the test module
	lines int
	fset  *token.FileSet
	file  *ast.File
}

// check reads every Go file below root and returns what breaks the rules, sorted.
func check(root string, rules table) ([]string, error) {
	var found []string
	docs := map[string][]string{} // directory -> files with a package comment
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != root && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"testdata", "dist", "bin"}, d.Name())) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		s, err := parse(root, p)
		if err != nil {
			return err
		}
		if !strings.HasSuffix(p, "_test.go") {
			docs[s.dir] = append(docs[s.dir], s.comment()...)
		}
		found = append(found, s.imports(rules)...)
		found = append(found, s.calls()...)
		found = append(found, s.shape()...)
		return nil
	})
	for dir, files := range docs {
		if len(files) != 1 {
			found = append(found, fmt.Sprintf("%s: %d package comments %v, want exactly one", dir, len(files), files))
		}
		if in, ok := strings.CutPrefix(dir, "internal/"); ok {
			if _, known := rules.tier[in]; !known {
				found = append(found, fmt.Sprintf("%s: not in the table of internal/README.md; a new package is a visible decision", dir))
			}
		}
	}
	slices.Sort(found)
	return found, err
}

func parse(root, p string) (source, error) {
	rel, err := filepath.Rel(root, p)
	if err != nil {
		return source{}, err
	}
	body, err := os.ReadFile(p)
	if err != nil {
		return source{}, err
	}
	s := source{path: filepath.ToSlash(rel), lines: strings.Count(string(body), "\n"), fset: token.NewFileSet()}
	s.dir = path.Dir(s.path)
	s.test = strings.HasSuffix(p, "_test.go") || strings.HasSuffix(s.dir, "test") || strings.HasPrefix(s.dir, "test/")
	s.file, err = parser.ParseFile(s.fset, p, body, parser.ParseComments)
	return s, err
}

// comment returns the file's name when it has a package comment.
func (s source) comment() []string {
	if s.file.Doc == nil {
		return []string{}
	}
	return []string{path.Base(s.path)}
}

// at says where a node is.
func (s source) at(n ast.Node, format string, args ...any) string {
	return fmt.Sprintf("%s:%d: %s", s.path, s.fset.Position(n.Pos()).Line, fmt.Sprintf(format, args...))
}

// imports checks the tiers and the owners. Tests may import what they like; registry's suite is for tests only.
func (s source) imports(rules table) (found []string) {
	from, inside := strings.CutPrefix(s.dir, "internal/")
	command := strings.HasPrefix(s.dir, "cmd/")
	if strings.HasSuffix(s.path, "_test.go") || (!inside && !command) {
		return nil
	}
	for _, spec := range s.file.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		first, _, _ := strings.Cut(p, "/")
		to, ours := strings.CutPrefix(p, internalPath)
		switch {
		case ours && strings.HasSuffix(to, "test") && !s.test:
			found = append(found, s.at(spec, "imports %s, which is for tests", to))
		case ours && inside && !rules.mayImport(from, to):
			found = append(found, s.at(spec, "%s (T%d) imports %s (T%d): only lower tiers, never siblings", from, rules.tier[from], to, rules.tier[to]))
		case ours || !strings.Contains(first, ".") || slices.ContainsFunc(shared, func(pre string) bool { return strings.HasPrefix(p, pre) }):
		case strings.HasPrefix(p, modulePath+"/"):
			found = append(found, s.at(spec, "imports %s: only packages below internal", p))
		default:
			found = append(found, s.thirdParty(spec, p, from, command, rules)...)
		}
	}
	return found
}

func (s source) thirdParty(spec ast.Node, p, from string, command bool, rules table) []string {
	owners, ok := rules.ownersOf(p)
	switch {
	case s.test && strings.HasSuffix(s.dir, "test"): // a suite of tests may use test libraries
		return nil
	case !ok:
		return []string{s.at(spec, "%s has no owner in the table of internal/README.md", p)}
	case command && slices.ContainsFunc(cmdOwns, func(name string) bool { return slices.Contains(strings.Split(p, "/"), name) }):
		return nil
	case command || !slices.Contains(owners, from):
		return []string{s.at(spec, "%s belongs to %v", p, owners)}
	}
	return nil
}

// calls checks what may be called where.
func (s source) calls() (found []string) {
	mayMakeContext := s.test || strings.HasPrefix(s.dir, "cmd/") || s.dir == "internal/module" || strings.HasPrefix(s.dir, "scripts/")
	mayAskTime := s.test || s.dir == "internal/clock" || strings.HasPrefix(s.dir, "scripts/")
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			if n.Name == "InsecureSkipVerify" {
				found = append(found, s.at(n, "InsecureSkipVerify: TLS is verified everywhere, tests too"))
			}
		case *ast.CallExpr:
			found = append(found, s.skip(n)...)
		case *ast.SelectorExpr:
			pkg, _ := n.X.(*ast.Ident)
			switch {
			case pkg == nil:
			case pkg.Name == "context" && !mayMakeContext && (n.Sel.Name == "Background" || n.Sel.Name == "TODO"):
				found = append(found, s.at(n, "context.%s: take it from the caller", n.Sel.Name))
			case pkg.Name == "time" && !mayAskTime && slices.Contains([]string{"Now", "Sleep", "After", "Tick"}, n.Sel.Name):
				found = append(found, s.at(n, "time.%s: take a clock.Clock, or a timer that is stopped", n.Sel.Name))
			}
		}
		return true
	})
	return found
}

// skip refuses a test that is skipped without a reason in words.
func (s source) skip(call *ast.CallExpr) []string {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !strings.HasSuffix(s.path, "_test.go") && !s.test {
		return nil
	}
	recv, ok := sel.X.(*ast.Ident)
	if !ok || !slices.Contains([]string{"t", "b", "f", "tb"}, recv.Name) {
		return nil
	}
	switch sel.Sel.Name {
	case "SkipNow":
		return []string{s.at(call, "%s.SkipNow gives no reason: use Skip with the missing tool", recv.Name)}
	case "Skip", "Skipf":
		if len(call.Args) == 0 {
			return []string{s.at(call, "%s.%s gives no reason: name the missing tool", recv.Name, sel.Sel.Name)}
		}
		if lit, ok := call.Args[0].(*ast.BasicLit); ok && len(lit.Value) < len(`"no tool"`) {
			return []string{s.at(call, "%s.%s(%s) gives no reason: name the missing tool", recv.Name, sel.Sel.Name, lit.Value)}
		}
	}
	return nil
}

// shape bounds the tail: the longest function and file, the widest interface. Tests are free.
func (s source) shape() (found []string) {
	if strings.HasSuffix(s.path, "_test.go") {
		return nil
	}
	if s.lines > maxFileLines {
		found = append(found, fmt.Sprintf("%s: %d lines, at most %d", s.path, s.lines, maxFileLines))
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			lines := s.fset.Position(n.End()).Line - s.fset.Position(n.Pos()).Line + 1
			if lines > maxFuncLines {
				found = append(found, s.at(n, "%s has %d lines, at most %d", n.Name.Name, lines, maxFuncLines))
			}
		case *ast.TypeSpec:
			if it, ok := n.Type.(*ast.InterfaceType); ok && len(it.Methods.List) > maxMethods {
				found = append(found, s.at(n, "interface %s has %d methods, at most %d", n.Name.Name, len(it.Methods.List), maxMethods))
			}
		}
		return true
	})
	return found
}
