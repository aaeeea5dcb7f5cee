package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/problem"
)

// Load reads the configuration at path and the files that it includes. lookupEnv is os.LookupEnv but for tests.
//
// Its error is a problem.List with everything that is wrong in all files. The Config then holds what could be read: it serves to
// find further problems, and nothing else.
func Load(path string, lookupEnv func(name string) (value string, ok bool)) (*Config, error) {
	path = filepath.Clean(path)
	l := loader{
		config: &Config{File: path}, env: lookupEnv, readFile: os.ReadFile, glob: filepath.Glob, stat: os.Stat,
		places: map[place]*yaml.Node{},
	}
	return l.load(path)
}

// loader gathers one configuration from its files.
type loader struct {
	config   *Config
	env      func(string) (string, bool)
	readFile func(path string) ([]byte, error)
	glob     func(pattern string) ([]string, error)
	stat     stater
	problems problem.List
	places   map[place]*yaml.Node
}

func (l *loader) load(path string) (*Config, error) {
	whole := l.file(path, file{l.config}) && l.includes(path)
	l.derive()
	// Checks across files would complain about what an unreadable file holds.
	if whole {
		c := checker{config: l.config, places: l.places, stat: l.stat}
		c.run()
		l.problems = append(l.problems, c.problems...)
		c.warnings.Sort()
		l.config.Warnings = c.warnings
	}
	if len(l.problems) > 0 {
		l.config.Warnings = nil // they may be consequences
	}
	return l.config, l.problems.Err()
}

// file decodes one file into s. It returns false when there is no tree to speak of.
func (l *loader) file(path string, s section) bool {
	data, err := l.readFile(path)
	if err != nil {
		p := &problem.Problem{File: path, Message: reason(err)}
		if errors.Is(err, fs.ErrNotExist) && path == l.config.File {
			p.Hint = "copy config.example.yaml, or name another file with --config"
		}
		l.problems = append(l.problems, p)
		return false
	}
	root, problems := parseTree(path, data)
	l.problems = append(l.problems, problems...)
	if root == nil {
		if problems == nil {
			l.problems = append(l.problems, &problem.Problem{File: path, Message: "the file is empty"})
		}
		return false
	}
	d := decoder{
		file: path, env: l.env, problems: &l.problems, places: l.places,
		readFile: func(name string) ([]byte, error) { return l.readFile(relativeTo(path, name)) },
	}
	d.section(root, "", s)
	return root.Kind == yaml.MappingNode
}

// includes decodes the files that the globs of the configuration at path name, each once.
func (l *loader) includes(path string) bool {
	whole := true
	seen := []string{filepath.Clean(path)}
	for i, pattern := range l.config.include {
		matches, err := l.glob(relativeTo(path, pattern))
		if err != nil || len(matches) == 0 {
			l.noMatch(path, fmt.Sprintf("include[%d]", i), pattern)
			continue
		}
		slices.Sort(matches)
		for _, match := range matches {
			if !slices.Contains(seen, match) {
				seen = append(seen, match)
				whole = l.file(match, mappingFile{&l.config.Mappings}) && whole
			}
		}
	}
	return whole
}

func (l *loader) noMatch(path, at, pattern string) {
	p := &problem.Problem{File: path, Path: at, Message: fmt.Sprintf("no file matches %q", pattern), Hint: "globs are relative to this file's folder"}
	if n := l.places[place{path, at}]; n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	l.problems = append(l.problems, p)
}

// derive fills in the defaults that depend on other keys.
func (l *loader) derive() {
	c := l.config
	if c.Source.QueryURL.IsZero() {
		c.Source.QueryURL = c.Source.URL
	}
	if c.Source.Publication == "" {
		c.Source.Publication = c.Source.Slot
	}
	for i := range c.Sinks {
		if c.Sinks[i].Account == "" {
			c.Sinks[i].Account = c.Sinks[i].Name
		}
	}
	for i := range c.Mappings {
		m := &c.Mappings[i]
		m.Index = i
		if m.Name == "" && m.Table != (Table{}) {
			m.Name = m.Table.String() + ":" + m.Sink
		}
	}
}

func relativeTo(file, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(filepath.Dir(file), name)
}

// reason is why a file could not be read, without its name where the error begins with it.
func reason(err error) string {
	if pathErr := new(fs.PathError); errors.As(err, &pathErr) {
		return pathErr.Err.Error()
	}
	return err.Error()
}
