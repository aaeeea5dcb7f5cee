package buffer

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// cluster starts three NATS servers that form a cluster, by name.
func cluster(t *testing.T) (servers map[string]*server.Server, clientURL string) {
	t.Helper()
	const size = 3
	var routes []*url.URL
	var held []net.Listener // until all ports are known, so that none is given twice
	for range size {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, l)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
	}
	for _, l := range held {
		l.Close()
	}
	servers = make(map[string]*server.Server)
	var urls []string
	for i, l := range held {
		name := fmt.Sprintf("n%d", i)
		s, err := server.NewServer(&server.Options{
			ServerName: name, Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: t.TempDir(), Routes: routes,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		servers[name] = s
		urls = append(urls, s.ClientURL())
	}
	eventually(t, "a leader that knows all", func() bool {
		current := 0
		for _, s := range servers {
			if s.JetStreamIsCurrent() {
				current++
			}
		}
		for _, s := range servers {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == size {
				return current == size
			}
		}
		return false
	})
	return servers, strings.Join(urls, ",")
}

func TestClusterLosesItsLeader(t *testing.T) {
	servers, clientURL := cluster(t)
	cfg := Config{NATS: &NATSConfig{URL: clientURL, Replicas: 3}, Sinks: []string{"crm"}}
	b := opened(t, cfg)
	crm := sinkOf(t, b, "crm")
	var blocks [][]byte
	for i := range 30 {
		size := 10 << 10
		if i%10 == 5 {
			size = 3 << 20
		}
		blocks = append(blocks, block(size, cdc.LSN(100+i)))
	}
	for i, block := range blocks {
		if i == 15 {
			info, err := b.streamInfo(t.Context(), b.names.blocks)
			if err != nil {
				t.Fatal(err)
			}
			servers[info.Cluster.Leader].Shutdown()
		}
		appendAll(t, b, block)
	}
	for i, block := range blocks {
		crm.Settle(wantNext(t, crm, block).Seq, cdc.LSN(100+i))
	}
	wantNone(t, crm)
	if err := crm.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantTail(t, b, 129)
	if err := b.Park(t.Context(), []Letter{letter("crm", 1)}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	again := opened(t, cfg)
	t.Logf("opened again in %v", time.Since(start))
	wantNone(t, sinkOf(t, again, "crm"))
	if got := again.LetterCount("crm", LetterOpen); got != 1 {
		t.Errorf("%d letters", got)
	}
}
