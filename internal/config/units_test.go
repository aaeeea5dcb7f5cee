package config

import (
	"math"
	"testing"
	"time"
)

func TestUnits(t *testing.T) {
	sizes := map[string]Size{
		"1B": 1, "512KiB": 512 << 10, "1.5 MiB": 3 << 19, "10GiB": 10 << 30, "2TiB": 2 << 40, "1kB": 1000, "1KB": 1000, "5GB": 5e9,
		"": -1, "1": -1, "GiB": -1, "1gib": -1, "-1B": -1, "1.2.3B": -1, "9999999TiB": -1, "1  B": -1,
	}
	for text, want := range sizes {
		if got, err := ParseSize(text); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("size %q: %d, %v", text, got, err)
		}
	}
	durations := map[string]time.Duration{
		"0s": 0, "500ms": 500 * time.Millisecond, "1h30m": 90 * time.Minute,
		"": -1, "0": -1, "5": -1, "-1s": -1, "1d": -1, "1 s": -1,
	}
	for text, want := range durations {
		if got, err := parseDuration(text); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("duration %q: %d, %v", text, got, err)
		}
	}
	rates := map[string]float64{
		"50/s": 50, "120/m": 2, "1800/h": 0.5, "0.5/s": 0.5, unlimited: math.Inf(1),
		"": -1, "50": -1, "50/d": -1, "0/s": -1, "-1/s": -1, "Inf/s": -1, "NaN/s": -1, "1/s/s": -1,
	}
	for text, want := range rates {
		if got, err := parseRate(text); (err != nil) != (want < 0) || err == nil && got.PerSecond() != want {
			t.Errorf("rate %q: %v, %v", text, got, err)
		}
	}
}

func TestTables(t *testing.T) {
	tables := map[string]Table{
		"users": {"public", "users"}, "app.Users": {"app", "Users"}, `"a.b"."c""d"`: {"a.b", `c"d`}, `"a b"`: {"public", "a b"},
		"": {}, ".": {}, "a.": {}, ".a": {}, "a.b.c": {}, `"a`: {}, `""`: {}, `a"b`: {}, "a b": {},
	}
	for text, want := range tables {
		if got, err := parseTable(text); (err != nil) != (want == Table{}) || err == nil && got != want {
			t.Errorf("table %q: %v, %v", text, got, err)
		}
	}
}
