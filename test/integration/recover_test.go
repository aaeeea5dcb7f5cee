package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// refused starts the daemon, which must not run, and returns what it says.
func (d *daemon) refused() string {
	d.tb.Helper()
	before := len(d.log.String())
	d.start()
	if err := d.end(); err == nil {
		d.tb.Error("the daemon ran, and ended well")
	}
	return d.log.String()[before:]
}

func (d *daemon) recovered() {
	d.tb.Helper()
	if out, err := d.command("recover"); err == nil || !strings.Contains(out, "What happened") {
		d.tb.Errorf("recover without --yes: %v\n%s", err, out)
	}
	out, err := d.command("recover", "--yes")
	if err != nil {
		d.tb.Fatalf("recover: %v\n%s", err, out)
	}
	d.tb.Log(out)
}

// A slot that is gone is made anew; what the buffer still has and the table has not is deleted at the vendor.
func TestRecoverSlot(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	if out, err := d.command("recover"); err == nil {
		t.Errorf("recover beside a daemon: %s", out)
	}
	v.fault(t, sandbox.Fault{Kind: sandbox.Status, Status: 503})
	s.exec(t, `insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 1500) i`)
	s.exec(t, `update accounts set version = nextval('versions'), name = 'newer' where id % 3 = 0`)
	d.wait("the rows to be stored", func() (bool, string) { return s.lag(t, slotName(t)) < 1000, "" })
	d.stop()
	s.exec(t, `select pg_drop_replication_slot('`+slotName(t)+`')`)
	s.exec(t, `delete from accounts where id <= 1200 and id % 2 = 0`)
	s.exec(t, `update accounts set version = nextval('versions'), name = 'changed' where id > 1400`)
	s.exec(t, `insert into accounts (id, name) select i, 'new ' || i from generate_series(2000, 2100) i`)
	if said := d.refused(); !strings.Contains(said, "is gone") {
		t.Errorf("the daemon says %s", said)
	}
	d.recovered()
	v.ClearFaults()
	d.start()
	d.ready()
	arrived(t, d, s, v)
	s.exec(t, `delete from accounts where id = 2000`)
	arrived(t, d, s, v)
	d.stop()
	if out, err := d.command("recover", "--yes"); err != nil || !strings.Contains(out, "nothing to recover") {
		t.Errorf("recover when all is well: %v %s", err, out)
	}
}

// A buffer that is gone is begun anew; the slot, which is well, goes on.
func TestRecoverBuffer(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	s.exec(t, `insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 500) i`)
	arrived(t, d, s, v)
	d.wait("the slot to move", func() (bool, string) { return s.lag(t, slotName(t)) < 1000, "" })
	v.fault(t, sandbox.Fault{Kind: sandbox.Status, Status: 503})
	s.exec(t, `update accounts set version = nextval('versions'), name = 'stored only' where id < 100`)
	d.wait("the rows to be stored", func() (bool, string) { return s.lag(t, slotName(t)) < 1000, "" })
	d.stop()
	if err := os.RemoveAll(d.bufferDir()); err != nil {
		t.Fatal(err)
	}
	s.exec(t, `delete from accounts where id > 450`)
	if said := d.refused(); !strings.Contains(said, "the buffer was lost") {
		t.Errorf("the daemon says %s", said)
	}
	d.recovered()
	v.ClearFaults()
	d.start()
	d.ready()
	arrived(t, d, s, v)
	neverBack(t, s, v, true)
}
