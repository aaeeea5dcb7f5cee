// Package cdcsync_test holds what must be true of the repository as a whole.
package cdcsync_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// files walks the repository and returns the paths that keep wants, without what git does not hold.
func files(t *testing.T, keep func(path string) bool) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == ".git" || path == "bin" || d.Name() == "cdcsync-data"):
			return filepath.SkipDir
		case d.Type().IsRegular() && keep(path):
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatal("no files found: the test looks in the wrong folder")
	}
	return found
}

// A package without a comment leaves the reader to guess its role.
func TestEveryPackageHasADoc(t *testing.T) {
	documented := make(map[string]bool)
	for _, path := range files(t, func(path string) bool { return filepath.Ext(path) == ".go" && !strings.Contains(path, "testdata") }) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		dir := filepath.Dir(path)
		documented[dir] = documented[dir] || file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment", dir)
		}
	}
}

// Packages of one word each, one level below internal/.
func TestPackagesAreNamedForTheirRole(t *testing.T) {
	vague := []string{"util", "utils", "common", "helpers", "helper", "types", "misc", "base", "shared"}
	for _, path := range files(t, func(path string) bool { return filepath.Ext(path) == ".go" && !strings.Contains(path, "testdata") }) {
		dir := filepath.ToSlash(filepath.Dir(path))
		if slices.Contains(vague, filepath.Base(dir)) {
			t.Errorf("%s: a package is named for what it is about", dir)
		}
		if strings.HasPrefix(dir, "internal/") && strings.Count(dir, "/") > 1 {
			t.Errorf("%s: packages are one level below internal/", dir)
		}
	}
}

var markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// Links between documents lead somewhere, and so do those into the code.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	for _, path := range files(t, func(path string) bool { return filepath.Ext(path) == ".md" }) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range markdownLink.FindAllStringSubmatch(string(text), -1) {
			target, fragment, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			if target == "" {
				target = filepath.Base(path)
			}
			checkLink(t, path, filepath.Join(filepath.Dir(path), target), fragment)
		}
	}
}

func checkLink(t *testing.T, from, target, fragment string) {
	t.Helper()
	if _, err := os.Stat(target); err != nil {
		t.Errorf("%s: link to %s, which does not exist", from, target)
		return
	}
	if fragment == "" || filepath.Ext(target) != ".md" {
		return
	}
	text, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(anchors(string(text)), fragment) {
		t.Errorf("%s: link to %s#%s, which has no such heading", from, target, fragment)
	}
}

var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)

// anchors lists the fragments that GitHub gives the headings of a document.
func anchors(text string) []string {
	var found []string
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		heading := strings.TrimLeft(line, "#")
		if fenced || heading == line || !strings.HasPrefix(heading, " ") {
			continue
		}
		name := notInAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
		found = append(found, strings.ReplaceAll(name, " ", "-"))
	}
	return found
}

// What is left to do stands in the issue tracker, and a path of one developer's machine helps nobody.
func TestNothingUnfinishedOrLocal(t *testing.T) {
	forbidden := regexp.MustCompile(strings.Join([]string{
		`\b(TODO|FIXME|XXX|HACK)\b`, `lorem ip` + `sum`, `<<<<` + `<<<`, `/ho` + `me/[a-z]`, `/wo` + `rk/`, `\.\./sha` + `red/`,
	}, "|"))
	texts := func(path string) bool {
		return slices.Contains([]string{".go", ".md", ".yaml", ".yml", ".sql", ".html", ".txtar", ""}, filepath.Ext(path)) &&
			path != "LICENSE" && path != "repo_test.go" && !strings.Contains(path, "testdata/fuzz")
	}
	for _, path := range files(t, texts) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for number, line := range strings.Split(string(text), "\n") {
			if found := forbidden.FindString(line); found != "" {
				t.Errorf("%s:%d: %q", path, number+1, found)
			}
		}
	}
}

var metricName = regexp.MustCompile(`cdcsync_([a-z]+)_([a-z_]+)`)

// The metrics that the documents name are those that the packages have.
func TestDocumentedMetricsExist(t *testing.T) {
	sources := make(map[string]string) // by package
	for _, path := range files(t, func(path string) bool { return filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go") }) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sources[filepath.Base(filepath.Dir(path))] += string(text)
	}
	for _, path := range files(t, func(path string) bool { return filepath.Ext(path) == ".md" }) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range metricName.FindAllStringSubmatch(string(text), -1) {
			source, isPackage := sources[match[1]]
			if isPackage && !strings.Contains(source, `"`+match[2]+`"`) && !strings.Contains(source, `"`+match[0]+`"`) {
				t.Errorf("%s: internal/%s has no metric %s", path, match[1], match[0])
			}
		}
	}
}
