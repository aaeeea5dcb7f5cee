package config

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes.
type Size int64

// Rate is how often something may happen; the zero Rate is without a limit.
type Rate struct {
	Count float64
	Per   time.Duration
}

// PerSecond is the rate in Hertz, infinite for the zero Rate.
func (r Rate) PerSecond() float64 {
	if r.Per == 0 {
		return math.Inf(1)
	}
	return r.Count / r.Per.Seconds()
}

// mistake is why a text is not a value, and the way out.
type mistake struct{ message, hint string }

func (m *mistake) Error() string { return m.message }

// sizeUnits in the order in which they are offered: powers of 1024, then of 1000.
var sizeUnits = []struct {
	name  string
	bytes float64
}{
	{"B", 1},
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
}

const sizePattern = `^[0-9]+(\.[0-9]+)? ?(B|[KMGT]iB|[kKMGT]B)$`

// ParseSize reads "10GiB", "1.5 MB" or "4096B".
func ParseSize(text string) (Size, error) {
	number, unit := splitUnit(text)
	for _, u := range sizeUnits {
		if u.name != unit {
			continue
		}
		value, err := strconv.ParseFloat(number, 64)
		if err != nil || value*u.bytes >= math.MaxInt64 {
			break
		}
		return Size(value * u.bytes), nil
	}
	return 0, &mistake{"is not a size", "write a number and its unit, such as 512KiB, 10GiB or 5GB"}
}

// splitUnit parts the digits at the beginning of text from what follows them.
func splitUnit(text string) (number, unit string) {
	end := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		return text, ""
	}
	return text[:end], strings.TrimPrefix(text[end:], " ")
}

const durationPattern = `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`

// parseDuration reads "500ms", "30s", "10m" or "1h30m".
func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || text == "0" {
		return 0, &mistake{"is not a duration", "write a number and its unit, such as 500ms, 30s, 10m or 1h30m"}
	}
	return d, nil
}

const (
	unlimited   = "unlimited"
	ratePattern = `^(unlimited|[0-9]+(\.[0-9]+)?/(s|m|h))$`
)

var rateUnits = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}

// parseRate reads "50/s", "100/m", "0.5/s" or "unlimited".
func parseRate(text string) (Rate, error) {
	if text == unlimited {
		return Rate{}, nil
	}
	number, unit, _ := strings.Cut(text, "/")
	count, err := strconv.ParseFloat(number, 64)
	per, known := rateUnits[unit]
	if err != nil || !known || count <= 0 || math.IsInf(count, 0) || math.IsNaN(count) {
		return Rate{}, &mistake{"is not a rate", "write how many a second, minute or hour, such as 50/s or 100/m, or unlimited"}
	}
	return Rate{Count: count, Per: per}, nil
}
