package cdc_test

import (
	"testing"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

func TestParseTable(t *testing.T) {
	for text, want := range map[string][2]string{
		"users": {"public", "users"}, "app.Users": {"app", "Users"}, `"My Schema"."T"`: {"My Schema", "T"}, `"a.b"."c""d"`: {"a.b", `c"d`},
		`"a b"`: {"public", "a b"}, `app."100%"`: {"app", "100%"}, `"app".users`: {"app", "users"},
		"": {}, ".": {}, "a.": {}, ".a": {}, "a.b.c": {}, `"a`: {}, `""`: {}, `a"b`: {}, "a b": {}, `"a"b`: {},
	} {
		schema, name, ok := cdc.ParseTable(text)
		if ok != (want != [2]string{}) || [2]string{schema, name} != want {
			t.Errorf("table %q: got %q, %q, %v, want %q", text, schema, name, ok, want)
		}
	}
}
