package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// Where going on would lose changes, the daemon does not start, and says what is at risk and what to do.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		damage func(t *testing.T, d *daemon, s *source, v *vendor)
		want   []string // parts of the message
	}{
		{
			name: "buffer deleted",
			damage: func(t *testing.T, d *daemon, _ *source, _ *vendor) {
				if err := os.RemoveAll(d.bufferDir()); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"the buffer was lost", "cdcsync recover"},
		},
		{
			name: "slot dropped",
			damage: func(t *testing.T, d *daemon, s *source, _ *vendor) {
				s.exec(t, fmt.Sprintf(`select pg_drop_replication_slot('%s')`, slotName(t)))
			},
			want: []string{"slot", "cdcsync recover"},
		},
		{
			name: "slot recreated",
			damage: func(t *testing.T, d *daemon, s *source, _ *vendor) {
				s.exec(t, fmt.Sprintf(`select pg_drop_replication_slot('%s')`, slotName(t)))
				s.exec(t, `insert into accounts (id, name) values (2, 'lost')`)
				s.exec(t, fmt.Sprintf(`select pg_create_logical_replication_slot('%s', 'pgoutput')`, slotName(t)))
			},
			want: []string{"slot", "cdcsync recover"},
		},
		{
			name: "another server",
			damage: func(t *testing.T, d *daemon, _ *source, v *vendor) {
				other := newOtherServer(t)
				d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\n%s", other.url, slotName(t), d.admin, v.crm("")))
			},
			want: []string{"changes of another server", "correct source.url"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, v := newSource(t), newVendor(t, sandbox.Config{})
			d := newDaemon(t, s.url, v.crm(""))
			d.start()
			d.ready()
			s.exec(t, `insert into accounts (id, name) values (1, 'kept')`)
			settled(t, d, s, v)
			d.stop()
			before := len(d.log.String())

			test.damage(t, d, s, v)
			d.start()
			if err := d.end(); err == nil {
				t.Error("the daemon ended well")
			}
			log := d.log.String()[before:]
			message := lastLine(log)
			for _, want := range test.want {
				if !strings.Contains(message, want) {
					t.Errorf("the message lacks %q:\n%s", want, message)
				}
			}
			t.Log(message)
		})
	}
}

// lastLine is the error that the command printed at its end.
func lastLine(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return lines[len(lines)-1]
}
