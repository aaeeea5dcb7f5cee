package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// loaded reads the files of an export as StopChurn would load them.
func loaded(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		tb.Fatal(err)
	}
	rows := map[string]string{}
	for _, path := range files {
		table, _, ok := strings.Cut(filepath.Base(path), "-brand-1-")
		if !ok || filepath.Ext(path) != ".json" {
			tb.Fatalf("file %s", path)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		var items []struct {
			Data                 json.RawMessage
			CreatedAt, UpdatedAt int64
		}
		if err := json.Unmarshal(content, &items); err != nil {
			tb.Fatalf("%s: %v", path, err)
		}
		for _, item := range items {
			var key struct{ ID any }
			if err := json.Unmarshal(item.Data, &key); err != nil || item.CreatedAt == 0 || item.UpdatedAt == 0 {
				tb.Fatalf("%s: %s %v", path, item.Data, err)
			}
			id := fmt.Sprint(key.ID)
			if number, ok := key.ID.(float64); ok {
				id = fmt.Sprintf("%.0f", number)
			}
			if rows[table+" "+id] != "" {
				tb.Errorf("%s %s is in the files twice", table, id)
			}
			rows[table+" "+id] = rowText(tb, table, item.Data)
		}
	}
	return rows
}

func (d *daemon) command(args ...string) (string, error) {
	out, err := exec.Command(binary, append(args, "--config", d.config)...).CombinedOutput()
	return string(out), err
}

func everyTable(args ...string) []string {
	for _, table := range backfilled {
		args = append(args, "--table", table)
	}
	return args
}

// Files of an export with the slot, loaded, and what is streamed afterwards, are the source: nothing is missing and nothing comes twice.
func TestExportWithSlot(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	w := newWorkload(t, s)
	if err := w.run(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, s.url, v.crm(""))
	dir := filepath.Join(t.TempDir(), "upload")
	during(t, w, func() {
		out, err := d.command(everyTable("export", "--out", dir, "--with-slot", "--split", "64KiB")...)
		if err != nil {
			t.Errorf("export: %v\n%s", err, out)
		}
		t.Log(out)
	})
	if t.Failed() {
		return
	}
	files := loaded(t, dir)
	d.start()
	d.ready()
	if err := w.run(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	want := s.rows(t)
	d.wait("the rest to arrive", func() (bool, string) {
		now := maps.Clone(files)
		v.replay(t, now)
		for key, row := range want {
			if now[key] != row {
				return false, fmt.Sprintf("%s: source %q, vendor %q", key, short(row), short(now[key]))
			}
		}
		return len(now) == len(want), fmt.Sprintf("%d of %d rows", len(now), len(want))
	})
	for _, e := range v.events(t) {
		var version int64
		if row := files[e.table+" "+e.id]; row != "" {
			if _, err := fmt.Sscanf(row, "v%d", &version); err != nil {
				t.Fatal(err)
			}
		}
		if e.version < version || e.op != "delete" && e.version == version {
			t.Errorf("%v came although the files have version %d", e, version)
		}
	}
	if out, err := d.command(everyTable("export", "--out", t.TempDir(), "--with-slot")...); err == nil {
		t.Errorf("a second export with the slot: %s", out)
	}
}

// replay applies what StopChurn has received to the rows that it had before.
func (v *vendor) replay(tb testing.TB, rows map[string]string) {
	tb.Helper()
	for _, item := range v.Received(sandbox.Filter{Endpoint: "stopchurn"}) {
		if item.Op == "delete" {
			delete(rows, item.Table+" "+item.Key)
			continue
		}
		var body struct {
			Data struct{ Data json.RawMessage }
		}
		if err := json.Unmarshal(item.Body, &body); err != nil {
			tb.Fatal(err)
		}
		rows[item.Table+" "+item.Key] = rowText(tb, item.Table, body.Data.Data)
	}
}

// An interrupted export leaves no file that looks whole, and no slot; what one that was killed leaves is known to run, and to the next.
func TestExportInterrupted(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	s.exec(t, `alter table accounts disable trigger remember; insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 200000) i`)
	d := newDaemon(t, s.url, v.crm(""))
	dir := ""
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGKILL} {
		dir = t.TempDir()
		cmd := exec.Command(binary, "export", "--config", d.config, "--table", "public.accounts", "--out", dir, "--split", "1MiB", "--with-slot")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the second file", func() (bool, string) {
			files, err := filepath.Glob(filepath.Join(dir, "*"))
			return err == nil && len(files) > 1, fmt.Sprint(files, err)
		})
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: the export succeeded", signal)
		}
		whole, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil || len(whole) > 0 {
			t.Errorf("%v: %v %v", signal, whole, err)
		}
		if signal == os.Interrupt {
			left, _ := filepath.Glob(filepath.Join(dir, "*"))
			slots := 0
			s.each(t, `select count(*) from pg_replication_slots where slot_name = '`+slotName(t)+`'`, []any{&slots}, func() {})
			if len(left) > 0 || slots > 0 {
				t.Errorf("%v: left %v and %d slots", signal, left, slots)
			}
		}
	}
	slots := func() (n int) {
		s.each(t, `select count(*) from pg_replication_slots where slot_name = '`+slotName(t)+`'`, []any{&n}, func() {})
		return n
	}
	refused := func() {
		t.Helper()
		if out, err := d.command("run"); err == nil || !strings.Contains(out, "was not finished") || !strings.Contains(out, "export --with-slot again") {
			t.Errorf("run: %v\n%s", err, out)
		}
	}
	refused()
	refused()
	export := []string{"export", "--table", "public.accounts", "--out", dir, "--with-slot"}
	if out, err := d.command(export...); err != nil {
		t.Fatalf("the export again: %v\n%s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.partial")); len(left) > 0 || slots() != 1 {
		t.Errorf("left %v and %d slots", left, slots())
	}
	if rows := loaded(t, dir); len(rows) != 200000 {
		t.Errorf("%d rows in the files", len(rows))
	}
	d.start()
	d.ready()
}

// An export that is given up, by dropping its slot, is in nobody's way.
func TestExportGivenUp(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	s.exec(t, `alter table accounts disable trigger remember; insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 200000) i`)
	d := newDaemon(t, s.url, v.crm(""))
	dir := t.TempDir()
	cmd := exec.Command(binary, "export", "--config", d.config, "--table", "public.accounts", "--out", dir, "--with-slot")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a file", func() (bool, string) {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		return err == nil && len(files) > 0, fmt.Sprint(files, err)
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitFor(t, "the slot to be free", func() (bool, string) {
		free := 0
		s.each(t, `select count(*) from pg_replication_slots where not active and slot_name = '`+slotName(t)+`'`, []any{&free}, func() {})
		return free == 1, fmt.Sprint(free)
	})
	s.exec(t, `select pg_drop_replication_slot('`+slotName(t)+`')`)
	d.start()
	d.ready()
	if !strings.Contains(d.log.String(), "export was given up") {
		t.Error("nothing in the log")
	}
}
