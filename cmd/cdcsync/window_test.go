package main

import "testing"

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
