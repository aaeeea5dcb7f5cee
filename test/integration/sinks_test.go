package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// A sink that was taken out of the configuration holds nothing; when it comes back the daemon says what it has missed.
func TestSinkComesBack(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	other := newVendor(t, sandbox.Config{})
	one := v.crm("")
	both := strings.Replace(one, "\nmappings:", fmt.Sprintf("\n  other: {type: stopchurn, url: %q, api_key: sandbox-key}\nmappings:", other.url), 1) +
		"  - {table: public.accounts, sink: other, item: {brandId: 1, tableName: accounts, createdAt: $created_at, updatedAt: $updated_at, data: {\"*\": {}}}}\n"
	d := newDaemon(t, s.url, both)
	configure := func(sinks string) {
		d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\n%s", s.url, slotName(t), d.admin, sinks))
	}
	d.start()
	d.ready()
	s.exec(t, `insert into accounts (id, name) values (1, 'both')`)
	settled(t, d, s, v)
	d.wait("the other sink's row", func() (bool, string) { return other.Accepted("stopchurn") == 1, "" })
	d.stop()

	configure(one)
	d.start()
	d.ready()
	for id := 2; id <= 3; id++ {
		s.exec(t, `insert into accounts (id, name) values ($1, 'one')`, id)
		settled(t, d, s, v)
	}
	d.wait("the blocks to be trimmed, but for the last", func() (bool, string) {
		var status struct{ Buffer struct{ Blocks int } }
		err := d.status(t.Context(), &status)
		return err == nil && status.Buffer.Blocks <= 1, fmt.Sprint(status, err)
	})
	d.stop()

	configure(both)
	d.start()
	if err := d.end(); err == nil {
		t.Fatal("the daemon ended well although a sink has missed changes")
	}
	if message := lastLine(d.log.String()); !strings.Contains(message, "sink other was not configured") || !strings.Contains(message, "--skip-missed other") {
		t.Errorf("message: %s", message)
	}
	d.start("--skip-missed", "other")
	d.ready()
	s.exec(t, `insert into accounts (id, name) values (4, 'both again')`)
	d.wait("the other sink's new row", func() (bool, string) {
		received := other.Received(sandbox.Filter{Key: "4"})
		return len(received) == 1, fmt.Sprint(received)
	})
}
