package sinks

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// longestAfter bounds Retry-After: a slip of the vendor's must not stop a sink for a year. The configuration's bound is lower.
const longestAfter = 24 * time.Hour

// retryAfter reads the header in both forms of RFC 9110, 10.2.3: seconds, with a fraction as some servers send them, or a date, which is
// compared with the answer's own Date where there is one, since the vendor's clock may differ from ours. What is neither, or is
// past, is 0.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789.") == "" {
		seconds, err := strconv.ParseFloat(value, 64)
		switch {
		case seconds > longestAfter.Seconds(): // or out of range
			return longestAfter
		case err != nil:
			return 0
		}
		return time.Duration(seconds * float64(time.Second))
	}
	at, err := parseDate(value)
	if err != nil {
		return 0
	}
	if date, err := parseDate(header.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), longestAfter)
}

// parseDate takes the forms of RFC 9110, and those that servers write instead.
func parseDate(value string) (time.Time, error) {
	at, err := http.ParseTime(value)
	for _, layout := range []string{time.RFC1123Z, time.RFC1123, time.RFC3339} {
		if err == nil {
			break
		}
		at, err = time.Parse(layout, value)
	}
	return at, err
}
