package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// A row of many blocks' size arrives; one that is larger than buffer.max_row becomes a dead letter that names it, and the stream goes on.
func TestLargeRows(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := newDaemon(t, s.url, v.crm("")+fmt.Sprintf("\nbuffer: {dir: %q, max_row: 64MiB}\n", filepath.Join(t.TempDir(), "data")))
	d.start()
	d.ready()
	s.exec(t, `insert into accounts (id, name, big) values (1, 'large', repeat('0123456789', 3 << 20))`) // 30 MiB
	s.exec(t, `insert into accounts (id, name, big) values (2, 'too large', repeat('0123456789', 7 << 20))`)
	s.exec(t, `insert into accounts (id, name) values (3, 'small')`)
	d.wait("the row after the large ones", func() (bool, string) {
		rows := v.rows(t)
		return rows["accounts 1"] != "" && rows["accounts 3"] != "", fmt.Sprint(len(rows))
	})
	rows, want := v.rows(t), s.rows(t)
	if rows["accounts 1"] != want["accounts 1"] {
		t.Errorf("the large row arrived with %d bytes, the source has %d", len(rows["accounts 1"]), len(want["accounts 1"]))
	}
	if _, ok := rows["accounts 2"]; ok {
		t.Error("the row of 70 MiB arrived")
	}
	var status struct {
		Sinks []struct {
			DeadLetters int `json:"dead_letters"`
		}
	}
	d.wait("the dead letter", func() (bool, string) {
		err := d.status(t.Context(), &status)
		return err == nil && len(status.Sinks) == 1 && status.Sinks[0].DeadLetters == 1, fmt.Sprint(status, err)
	})
	letters, err := d.command("dlq", "list")
	if err != nil || !strings.Contains(letters, "public.accounts") || !strings.Contains(letters, "id=2") || !strings.Contains(letters, "larger than buffer.max_row") {
		t.Errorf("dlq list: %v\n%s", err, letters)
	}
}
