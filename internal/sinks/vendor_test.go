package sinks_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/secret"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// What must show nowhere.
const (
	plantedKey    = "key+planted/0815"
	plantedSecret = "s3cret planted&0815"
	plantedToken  = "token-planted-" // with a number after it
)

// vendor is a vendor in memory: its connections are pipes, so that synctest's clock governs every time-out.
type vendor struct {
	*http.Transport
	// answer is what the endpoint does. n counts its requests from 1.
	answer func(w http.ResponseWriter, r *http.Request, n int)
	// grant is what the token service does, the default being an hour's token. n counts its requests from 1.
	grant func(w http.ResponseWriter, r *http.Request, n int)

	mu       sync.Mutex
	requests []request // to the endpoint
	grants   []request // to the token service
}

type request struct {
	*http.Request
	body string
}

// newVendor serves until the test ends.
func newVendor(t *testing.T) *vendor {
	t.Helper()
	v := &vendor{}
	listener := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	v.Transport = &http.Transport{DialContext: listener.dial}
	server := &http.Server{Handler: v}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		v.CloseIdleConnections()
		_ = server.Close()
		served.Wait()
	})
	return v
}

func (v *vendor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	content, _ := io.ReadAll(r.Body)
	v.mu.Lock()
	list, handle := &v.requests, v.answer
	if strings.HasPrefix(r.URL.Path, "/token") {
		list, handle = &v.grants, v.grant
		if handle == nil {
			handle = func(w http.ResponseWriter, _ *http.Request, n int) {
				fmt.Fprintf(w, `{"access_token":"%s%d","token_type":"Bearer","expires_in":3600}`, plantedToken, n)
			}
		}
	}
	*list = append(*list, request{r, string(content)})
	n := len(*list)
	v.mu.Unlock()
	handle(w, r, n)
}

func (v *vendor) counts() (requests, grants int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.requests), len(v.grants)
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.done) }); return nil }

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "vendor"} }

// kind is one type of sink as the contract test drives it.
type kind struct {
	cfg   sinks.Config
	most  int                      // items that Deliver is given
	item  func(n int) string       // the body of item n
	ok    func(items []int) string // the answer that says that all are taken
	path  string
	token bool // a token service stands behind it
}

var kinds = map[string]kind{
	sinks.TypeStopChurn: {
		cfg: sinks.Config{APIKey: secret.New(plantedKey)}, most: 3, path: "/client-data/update",
		item: func(n int) string {
			return fmt.Sprintf(`{"brandId":1,"tableName":"user","data":{"id":%d},"createdAt":1,"updatedAt":1}`, n)
		},
		ok: func([]int) string { return `{"statusCode":200,"message":"Updates received"}` },
	},
	sinks.TypeFanbaseQueue: {
		cfg: sinks.Config{Confirm: sinks.ConfirmAccepted}, most: 1, path: "/api/v1/integration/queue", token: true,
		item: func(n int) string { return fmt.Sprintf(`{"id":"%d"}`, n) },
		ok:   func([]int) string { return `{"id":"uuid","iCode":0,"processStatus":"pending"}` },
	},
	sinks.TypeFanbaseBatch: {
		cfg: sinks.Config{SystemID: 42}, most: 3, path: "/api/v2/IF_ID_Batch", token: true,
		item: func(n int) string {
			return fmt.Sprintf(`{"data":{},"numbers":[{"numberType":1,"number":"0000000000%d"}]}`, n)
		},
		ok: func(items []int) string {
			results := make([]string, len(items))
			for i, n := range items {
				results[i] = fmt.Sprintf(`{"success":true,"cpf":"0000000000%d"}`, n)
			}
			return `{"header":{"codigo":1,"msg":"Ok"},"data":{"items":[` + strings.Join(results, ",") + `]}}`
		},
	},
	sinks.TypeFanatics: {
		cfg: sinks.Config{Auth: sinks.Auth{Scope: "tier_points:override"}}, most: 3, path: "/v2/tier-points/accounts", token: true,
		item: func(n int) string {
			return fmt.Sprintf(`{"account_tenant_fanid":"%s","invite_approval_map":{"%s":true}}`, uuid(n), uuid(100+n))
		},
		ok: func(items []int) string {
			results := make([]string, len(items))
			for i, n := range items {
				results[i] = fmt.Sprintf(`{"account_tenant_fanid":"%s","result":"ok","details":"success"}`, strings.ToUpper(uuid(n)))
			}
			return `{"accounts":[` + strings.Join(results, ",") + `]}`
		},
	},
}

func uuid(n int) string { return fmt.Sprintf("aaaaaaaa-bbbb-cccc-dddd-%012d", n) }

// open makes the sink against the vendor.
func (k kind) open(t *testing.T, typ string, v *vendor) sinks.Sink {
	t.Helper()
	tokens := sinks.NewTokens("1.2.3", nil, v)
	return k.openWith(t, typ, sinks.Deps{Tokens: tokens, Version: "1.2.3", Transport: v})
}

func (k kind) openWith(t *testing.T, typ string, deps sinks.Deps) sinks.Sink {
	t.Helper()
	cfg := k.cfg
	cfg.Name, cfg.Type = "sink", typ
	if cfg.URL == "" {
		cfg.URL = "http://vendor.test/"
	}
	if cfg.Auth.URL == "" {
		cfg.Auth.URL = "http://vendor.test/token"
	}
	cfg.Auth.ClientID, cfg.Auth.ClientSecret = "client", secret.New(plantedSecret)
	sink, err := sinks.New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	return sink
}

func (k kind) items(numbers ...int) []sinks.Item {
	items := make([]sinks.Item, len(numbers))
	for i, n := range numbers {
		items[i] = sinks.Item{ID: fmt.Sprint(n), Op: cdc.OpInsert, Body: []byte(k.item(n))}
	}
	return items
}

func say(status int, text string, header ...string) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, _ *http.Request, _ int) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

func compact(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, []byte(text)); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return out.String()
}

func example(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile("testdata/examples/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return compact(t, string(content))
}
