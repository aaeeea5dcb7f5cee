package sinks

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	// longestConnection is how long a connection takes new requests: so soon a vendor that has moved is found where it is now, and its
	// load balancer can shift us.
	longestConnection = 5 * time.Minute
	// A connection of HTTP/2 that is silent while a request waits is asked for a sign of life, and given up without one.
	silence    = 15 * time.Second
	signOfLife = 15 * time.Second
)

// connections is a transport whose connections have a maximum age.
type connections struct {
	open func() *http.Transport

	mu      sync.Mutex
	current *http.Transport
	until   time.Time // no new requests on current's connections after it
}

// newConnections keeps as many connections as requests are made at a time, so that none is dialled in vain.
func newConnections(concurrency int) *connections {
	return &connections{open: func() *http.Transport { return newTransport(concurrency) }}
}

func newTransport(concurrency int) *http.Transport {
	const buffer = 64 << 10 // of a connection: a request of 1 MiB in 16 writes and not in 256
	return &http.Transport{
		Proxy:               proxy,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: concurrency + 1, // one more for Confirm and Check
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: signOfLife},
		DisableCompression:  true, // answers are small
		WriteBufferSize:     buffer,
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, response *http.Response) error {
			return proxyAnswered(response.StatusCode)
		},
	}
}

// proxy is the environment's, whose address may hold a password that the standard error would quote.
func proxy(req *http.Request) (*url.URL, error) {
	address, err := http.ProxyFromEnvironment(req)
	if err != nil {
		return nil, errors.New("the proxy's address in the environment is not a URL")
	}
	return address, nil
}

// RoundTrip implements http.RoundTripper.
func (c *connections) RoundTrip(req *http.Request) (*http.Response, error) {
	return c.young().RoundTrip(req)
}

// young is a transport whose connections are not too old. Those of the one before end as they become idle.
func (c *connections) young() *http.Transport {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && now.Before(c.until) {
		return c.current
	}
	if c.current != nil {
		c.current.CloseIdleConnections()
	}
	c.current, c.until = c.open(), now.Add(longestConnection)
	return c.current
}

// renew makes new requests use new connections, after one that was not answered: the others may be as dead, through a firewall that forgot
// them, or to an address that has moved. Requests under way go on.
func renew(transport http.RoundTripper) {
	closeIdle(transport)
	if c, ok := transport.(*connections); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.until = time.Time{}
	}
}

// CloseIdleConnections ends the connections that no request uses.
func (c *connections) CloseIdleConnections() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil {
		c.current.CloseIdleConnections()
	}
}
