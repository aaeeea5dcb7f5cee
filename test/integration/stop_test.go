package integration

import (
	"context"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// Told to stop while it starts, the daemon ends well, whatever it waits for.
func TestStopDuringStart(t *testing.T) {
	waits := map[string]func(t *testing.T, s *source, d *daemon) (until string){
		"an open transaction": func(t *testing.T, s *source, _ *daemon) string {
			tx, err := s.connect(t).Begin(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(context.Background(), "insert into accounts (id, name) values (1, 'open')"); err != nil {
				t.Fatal(err)
			}
			return "making the slot waits for an open transaction"
		},
		"a slot in use": func(t *testing.T, s *source, _ *daemon) string {
			first := newDaemon(t, s.url, newVendor(t, sandbox.Config{}).crm(""))
			first.start()
			first.ready()
			return "replication slot is in use"
		},
	}
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			s, v := newSource(t), newVendor(t, sandbox.Config{})
			d := newDaemon(t, s.url, v.crm(""))
			until := wait(t, s, d)
			d.start()
			waitFor(t, until, func() (bool, string) { return strings.Contains(d.log.String(), until), "not in the log yet" })
			d.stop()
			if strings.Contains(d.log.String(), "level=ERROR") {
				t.Errorf("errors in the log:\n%s", d.log.String())
			}
		})
	}
}
