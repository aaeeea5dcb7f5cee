package sinks

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// longestAfter bounds Retry-After: to ask once an hour does a vendor no harm, and a slip of theirs must not stop a sink for a year.
const longestAfter = time.Hour

// retryAfter reads the header in both forms of RFC 9110, 10.2.3: seconds, or a date, which is compared with the answer's own
// Date where there is one, since the vendor's clock may differ from ours. What is neither, or is past, is 0.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(longestAfter/time.Second) {
			return longestAfter
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), longestAfter)
}
