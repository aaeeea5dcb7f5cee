package sinks

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// wire is a connection in memory that can fall silent: what is written then arrives nowhere.
type wire struct {
	net.Conn
	silent func() bool
}

func (w wire) Write(p []byte) (int, error) {
	if w.silent() {
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// network serves HTTP in memory.
type network struct {
	conns  chan net.Conn
	mu     sync.Mutex
	silent bool
	dialed int
	once   sync.Once
}

func (n *network) Accept() (net.Conn, error) {
	conn, ok := <-n.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (n *network) Close() error   { n.once.Do(func() { close(n.conns) }); return nil }
func (n *network) Addr() net.Addr { return &net.UnixAddr{Name: "vendor"} }

// dial makes connections of which the ones that exist fall silent with hush.
func (n *network) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	n.mu.Lock()
	n.dialed++
	number := n.dialed
	n.mu.Unlock()
	quiet := func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.silent && number == 1
	}
	n.conns <- wire{server, quiet}
	return wire{client, quiet}, nil
}

func (n *network) hush() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent = true
}

func (n *network) dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dialed
}

// connected is a transport as production has it, over the network, and its server.
func connected(t *testing.T, http2 bool) (*network, *connections) {
	t.Helper()
	n := &network{conns: make(chan net.Conn)}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(http2)
	protocols.SetHTTP1(!http2)
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(n) })
	c := &connections{open: func() *http.Transport {
		transport := newTransport(1)
		transport.DialContext, transport.Protocols, transport.Proxy = n.dial, protocols, nil
		return transport
	}}
	t.Cleanup(func() {
		c.CloseIdleConnections()
		_ = server.Close()
		served.Wait()
	})
	return n, c
}

func send(t *testing.T, c http.RoundTripper, timeout time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://vendor.test/", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := exchange(c, request, 10)
	if err == nil {
		err = got.cut
	}
	return err
}

// A connection of HTTP/2 that has fallen silent is found out while a request waits, and not used again.
func TestSilentConnectionIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, c := connected(t, true)
		if err := send(t, c, time.Minute); err != nil {
			t.Fatal(err)
		}
		n.hush()
		start := time.Now()
		err := send(t, c, 24*time.Hour)
		if took := time.Since(start); took > silence+signOfLife+time.Second {
			t.Errorf("found out after %s: %v", took, err)
		}
		if err := send(t, c, time.Minute); err != nil || n.dials() < 2 {
			t.Errorf("%v with connection %d", err, n.dials())
		}
	})
}

// A connection takes no requests for ever: the vendor's address may change.
func TestConnectionsHaveAnAge(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n, c := connected(t, http2)
			for range 60 {
				if err := send(t, c, time.Minute); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
			}
			if n.dials() < 12 || !http2 && n.dials() > 13 {
				t.Errorf("%d connections in an hour, HTTP/2 %v", n.dials(), http2)
			}
		})
	}
}

// After a time-out no connection that was open then is used again, HTTP/2's neither.
func TestTimeoutClosesIdleConnections(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n, c := connected(t, http2)
			sink, err := New(Config{Name: "crm", Type: TypeStopChurn, URL: "http://vendor.test", Timeout: 5 * time.Second}, Deps{Transport: c})
			if err != nil {
				t.Fatal(err)
			}
			for attempt := range 3 {
				_, err := sink.Deliver(t.Context(), nil, "")
				failed, ok := err.(*RequestError) //nolint:errorlint // the error itself is returned
				if !ok || failed.Timeout != (attempt == 1) {
					t.Errorf("attempt %d: %v", attempt, err)
				}
				if attempt == 0 {
					n.hush()
				}
			}
			if n.dials() != 2 {
				t.Errorf("%d connections", n.dials())
			}
		})
	}
}
