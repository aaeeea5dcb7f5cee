package integration

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cdcsync/cdcsync/internal/pgtest"
	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// newNATS is a server that several daemons may share.
func newNATS(t *testing.T) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS does not start")
	}
	return s.ClientURL()
}

func (d *daemon) configureShared(sourceURL, slot, natsURL string, v *vendor) {
	d.tb.Helper()
	d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\n%s\nbuffer: {nats: {url: %q, replicas: 1}}\n", sourceURL, slot, d.admin, v.crm(""), natsURL))
}

// Two databases that share a NATS and, by default, a slot's name: the second daemon refuses before it reads a cursor, delivers
// nothing and moves nothing, also while its own source cannot be reached.
func TestSecondSourceOnOneNATS(t *testing.T) {
	natsURL, slot := newNATS(t), slotName(t)
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := newDaemon(t, s.url, v.crm(""))
	d.configureShared(s.url, slot, natsURL, v)
	d.start()
	d.ready()
	fault := v.fault(t, sandbox.Fault{Kind: sandbox.Status, Status: 503})
	s.exec(t, `insert into accounts (id, name) select i, 'first ' || i from generate_series(1, 200) i`)
	d.wait("the rows to be stored", func() (bool, string) { return s.lag(t, slot) < 1000, "" })
	d.stop()

	other, second := newOtherServer(t), newVendor(t, sandbox.Config{})
	e := newDaemon(t, other.url, second.crm(""))
	e.configureShared(other.url, slot, natsURL, second)
	if said := e.refused(); !strings.Contains(said, "changes of another server") || strings.Contains(said, "msg=started") {
		t.Errorf("the second daemon says %s", said)
	}
	if out, err := e.command("recover", "--yes"); err == nil || !strings.Contains(out, "changes of another server") {
		t.Errorf("recover of the second: %v %s", err, out)
	}
	e.configureShared("postgres://nobody@127.0.0.1:1/other", slot, natsURL, second)
	e.start()
	e.wait("the daemon to wait for its source", func() (bool, string) {
		return strings.Contains(e.log.String(), "waiting for the source"), ""
	})
	e.stop()
	if n := len(second.events(t)); n > 0 {
		t.Errorf("%d rows of the first database have come to the second one's vendor", n)
	}

	v.ClearFaults(fault)
	d.start()
	d.ready()
	arrived(t, d, s, v)
}

// While the source is down, what an embedded buffer has is delivered after a restart, too, unless another source is configured.
func TestDeliveryGoesOnWithoutTheSource(t *testing.T) {
	own := pgtest.Own(t, pgtest.Options{TCP: true})
	url, err := own.CreateDatabase(context.Background(), "app")
	if err != nil {
		t.Fatal(err)
	}
	s, v := &source{url: url}, newVendor(t, sandbox.Config{})
	s.exec(t, schema)
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	fault := v.fault(t, sandbox.Fault{Kind: sandbox.Status, Status: 503})
	s.exec(t, `insert into accounts (id, name) select i, 'stored ' || i from generate_series(1, 200) i`)
	d.wait("the rows to be stored", func() (bool, string) { return s.lag(t, slotName(t)) < 1000, "" })
	d.stop()
	v.ClearFaults(fault)
	if err := own.Shutdown(context.Background(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}

	d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\n%s", strings.Replace(url, "/app", "/other", 1), slotName(t), d.admin, v.crm("")))
	d.start()
	d.wait("the daemon to wait for its source", func() (bool, string) {
		return strings.Contains(d.log.String(), "waiting for the source"), ""
	})
	d.stop()
	if n := len(v.events(t)); n > 0 {
		t.Errorf("%d rows were delivered for another database", n)
	}

	d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\n%s", url, slotName(t), d.admin, v.crm("")))
	d.start()
	d.wait("the rows to arrive", func() (bool, string) {
		n := len(v.rows(t))
		return n == 200, fmt.Sprint(n)
	})
	d.stop()
}

// A recovery that was killed anywhere is gone on with by the next one; the daemon does not run in between.
func TestRecoverIsInterrupted(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	s.exec(t, `insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 300) i`)
	arrived(t, d, s, v)
	d.stop()
	s.exec(t, `select pg_drop_replication_slot('`+slotName(t)+`')`)
	s.exec(t, `insert into accounts (id, name) select i, 'lost ' || i from generate_series(1000, 1300) i`)

	interrupted := 0
	for i := 0; ; i++ {
		signal := []syscall.Signal{syscall.SIGKILL, syscall.SIGINT}[i%2]
		cmd := exec.Command(binary, "recover", "--yes", "--config", d.config)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.AfterFunc(time.Duration(i+1)*80*time.Millisecond, func() { _ = cmd.Process.Signal(signal) })
		err := cmd.Wait()
		after.Stop()
		if err == nil {
			break
		}
		interrupted++
		out, err := d.command("recover")
		if strings.Contains(out, "nothing to recover") { // it was interrupted behind its end: what it did is looked at below
			break
		}
		if err == nil || !strings.Contains(out, "What happened") {
			t.Fatalf("after interruption %d recover says: %v %s", interrupted, err, out)
		}
	}
	if interrupted == 0 {
		t.Error("no recovery was interrupted")
	}
	t.Logf("%d interruptions", interrupted)
	d.start()
	arrived(t, d, s, v)
	d.stop()
}
