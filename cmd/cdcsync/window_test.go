package main

import (
	"testing"

	"github.com/cdcsync/cdcsync/internal/admin"
)

func TestShownKey(t *testing.T) {
	for key, want := range map[string]string{
		"public.users":                              "public.users",
		"public.users\x00\x0117":                    "17",
		"public.orders\x00\x01acme\x00\x02":         "acme,null",
		"account_tenant_fanid\x00\x01a\x00\x01\x01": "a,\x01",
	} {
		if got := shownKey(key); got != want {
			t.Errorf("%q is shown as %q, want %q", key, got, want)
		}
	}
}

// Names in quotes are taken as the configuration takes them, and as the list of letters shows them.
func TestLetterFilterTable(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "users": "public.users", "app.users": "app.users", `"My Schema"."T"`: "My Schema.T", "My Schema.T": "My Schema.T",
	} {
		if got := letterFilter(admin.LetterFilter{Table: text}).Table; got != want {
			t.Errorf("table %s: filter has %q, want %q", text, got, want)
		}
	}
}

// The key of a filter is what a list shows, whatever scope the stored key has.
func TestLetterFilterTakesTheShownKey(t *testing.T) {
	for stored, shown := range map[string]string{
		"public.users\x00\x014711":           "4711",
		"public.users\x00\x014711\x00\x01br": "4711,br",
		"public.users\x00":                   "null",
		"fan 4711":                           "fan 4711",
	} {
		f := letterFilter(admin.LetterFilter{Key: shown})
		if !f.Key(stored) {
			t.Errorf("key %q does not select the letter that is stored under %q", shown, stored)
		}
		if other := stored + "\x00\x011"; f.Key(other) {
			t.Errorf("key %q selects the letter that is stored under %q", shown, other)
		}
	}
	if f := letterFilter(admin.LetterFilter{}); f.Key != nil {
		t.Error("a filter without a key looks at keys")
	}
}
