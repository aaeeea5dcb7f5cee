package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Tables and brands whose names differ in odd characters only have files of their own.
func TestExportFileNames(t *testing.T) {
	dir := t.TempDir()
	files := newExportFiles(dir, 1<<20)
	items := []string{
		`{"brandId":1,"tableName":"a b"`, `{"brandId":1,"tableName":"a-b"`, `{"brandId":1,"tableName":"a/b"`, `{"brandId":1,"tableName":"a%2Fb"`,
		`{"brandId":1,"tableName":"ä"`, `{"brandId":1,"tableName":"ö"`, `{"brandId":"2","tableName":"t-brand-1"`, `{"brandId":"1-brand-2","tableName":"t"`,
	}
	for _, item := range items {
		if err := files.add([]byte(item + `,"data":{},"createdAt":1,"updatedAt":1}`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := files.finish(); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(found) != len(items) {
		t.Errorf("%d files for %d tables: %v %v", len(found), len(items), found, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a-b-brand-1-001.json")); err != nil {
		t.Error(err)
	}
}
