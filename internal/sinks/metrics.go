package sinks

import (
	"errors"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	tokens   *prometheus.CounterVec
	lenient  *prometheus.CounterVec
}

// newMetrics returns the same metrics to all sinks of a registerer.
func newMetrics(reg prometheus.Registerer) *metrics {
	return &metrics{
		requests: shared(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cdcsync_sinks_requests_total",
			Help: "Requests to the vendor by HTTP status; none means that there was no answer.",
		}, []string{"sink", "status"})),
		seconds: shared(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "cdcsync_sinks_request_seconds",
			Help:    "Time from sending a request to the end of the answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16), // 1 ms to 33 s, the default time-out being 30 s
		}, []string{"sink"})),
		bytes: shared(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cdcsync_sinks_request_bytes_total",
			Help: "Bytes of request bodies.",
		}, []string{"sink"})),
		tokens: shared(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cdcsync_sinks_token_requests_total",
			Help: "Requests for a token by HTTP status; none means that there was no answer.",
		}, []string{"status"})),
		lenient: shared(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cdcsync_sinks_lenient_answers_total",
			Help: "Answers that were taken for a success although the vendor documents more: without a body, or without the id of a queued object.",
		}, []string{"sink"})),
	}
}

func shared[C prometheus.Collector](reg prometheus.Registerer, collector C) C {
	if reg == nil {
		return collector
	}
	var registered prometheus.AlreadyRegisteredError
	if err := reg.Register(collector); errors.As(err, &registered) {
		if existing, ok := registered.ExistingCollector.(C); ok {
			return existing
		}
	}
	return collector
}

// statusLabel is a status of the vendor's as a label: an unbounded set of them must not become unbounded series.
func statusLabel(status int) string {
	if status < 100 || status > 599 {
		return "none"
	}
	return strconv.Itoa(status)
}
