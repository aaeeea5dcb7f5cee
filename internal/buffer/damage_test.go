package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// damages are what may happen to a file of the store.
var damages = []struct {
	name string
	do   func(path string) error
}{
	{"removed", os.Remove},
	{"emptied", func(path string) error { return os.Truncate(path, 0) }},
	{"halved", func(path string) error {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, st.Size()/2)
	}},
	{"zeroed", func(path string) error {
		return edit(path, func(data []byte) { clear(data) })
	}},
	{"flipped at the front", func(path string) error {
		return edit(path, func(data []byte) { data[min(40, len(data)-1)] ^= 1 })
	}},
	{"flipped in the middle", func(path string) error {
		return edit(path, func(data []byte) { data[len(data)/2] ^= 1 })
	}},
	{"flipped at the end", func(path string) error {
		return edit(path, func(data []byte) { data[len(data)-12] ^= 1 })
	}},
}

func edit(path string, f func(data []byte)) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f(data)
	return os.WriteFile(path, data, 0o600)
}

// files are the numbered files of one of the store's streams, the oldest first.
func files(tb testing.TB, dir, stream string) []string {
	tb.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "jetstream", "$G", "streams", stream, "msgs", "*"+blockSuffix))
	if err != nil || len(list) == 0 {
		tb.Fatalf("no files of stream %s: %v", stream, err)
	}
	number := func(path string) int {
		n := 0
		fmt.Sscanf(filepath.Base(path), "%d", &n)
		return n
	}
	slices.SortFunc(list, func(x, y string) int { return number(x) - number(y) })
	return list
}

// leave ends a buffer in order, or returns a copy of its folder as a kill would leave it.
func leave(tb testing.TB, b *Buffer, killed bool) (dir string) {
	tb.Helper()
	if !killed {
		shut(tb, b)
		return b.cfg.Dir
	}
	b.saveCensus()
	dir = tb.TempDir()
	if err := os.CopyFS(dir, withoutReserve{os.DirFS(b.cfg.Dir)}); err != nil {
		tb.Fatal(err)
	}
	shut(tb, b)
	return dir
}

// withoutReserve leaves out what is large and empty.
type withoutReserve struct{ fs.FS }

func (w withoutReserve) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(w.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == reserveName }), err
}

// tableBlock is a block with one row of a table.
func tableBlock(size int, end cdc.LSN, table string) []byte {
	var w cdc.Writer
	oid := uint32(1000 + len(table))
	w.Begin(1, end-1, time.UnixMicro(1), 0)
	w.Relation(oid, cdc.AppendRelation(nil, &cdc.Relation{OID: oid, Schema: "public", Name: table}))
	w.Row(append([]byte{'I', 0, 0, byte(oid >> 8), byte(oid)}, bytes.Repeat([]byte{byte(end)}, size)...))
	w.Commit(end)
	return w.Seal(nil, nil)
}

// readAll reads what a sink can get of the blocks up to last, and returns their ends.
func readAll(tb testing.TB, s *Sink, last cdc.LSN) map[cdc.LSN]bool {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	got := make(map[cdc.LSN]bool)
	for {
		block, err := s.Next(ctx)
		if err != nil {
			tb.Fatalf("after %d blocks: %v", len(got), err)
		}
		end := endOf(tb, block.Data)
		got[end] = true
		if end >= last {
			return got
		}
	}
}

// A block that is gone from the store is either delivered or within a gap: never passed over.
func TestDamagedBlocksAreGaps(t *testing.T) {
	const blocks = 70 // in three files
	for _, killed := range []bool{false, true} {
		b := open(t, Config{Dir: t.TempDir(), Sinks: []string{"crm", "fans"}})
		for i := range blocks {
			appendAll(t, b, tableBlock(256<<10, cdc.LSN(100+i), "users"))
		}
		fans := sinkOf(t, b, "fans")
		for i := range blocks {
			got, err := fans.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fans.Settle(got.Seq, cdc.LSN(100+i))
		}
		if err := fans.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.saveTables(t.Context())
		whole := os.DirFS(leave(t, b, killed))
		for _, damage := range damages {
			for _, where := range []string{"first", "middle", "last"} {
				t.Run(fmt.Sprintf("%s file %s, killed %v", where, damage.name, killed), func(t *testing.T) {
					dir := t.TempDir()
					if err := os.CopyFS(dir, withoutReserve{whole}); err != nil {
						t.Fatal(err)
					}
					list := files(t, dir, b.names.blocks)
					path := map[string]string{"first": list[0], "middle": list[1], "last": list[len(list)-1]}[where]
					if err := damage.do(path); err != nil {
						t.Fatal(err)
					}
					checkNothingSilent(t, dir, blocks)
				})
			}
		}
	}
}

func checkNothingSilent(t *testing.T, dir string, blocks int) {
	t.Helper()
	b := opened(t, Config{Dir: dir, Sinks: []string{"crm", "fans"}})
	last := cdc.LSN(100 + blocks)
	appendAll(t, b, tableBlock(10, last, "users"))
	crm, fans := sinkOf(t, b, "crm"), sinkOf(t, b, "fans")
	got := readAll(t, crm, last)
	gaps := b.Gaps()
	missing := 0
	for i := range blocks {
		end := cdc.LSN(100 + i)
		if got[end] {
			continue
		}
		missing++
		if !slices.ContainsFunc(gaps, func(g cdc.Gap) bool {
			return g.Cause == cdc.GapBuffer && g.State == cdc.GapOpen && slices.Contains(g.Sinks, "crm") && g.Since < end && end <= g.Until && g.Table == "public.users"
		}) {
			t.Errorf("block %d was neither delivered nor within a gap: %v", end, gaps)
		}
	}
	if missing == 0 {
		t.Error("nothing is missing: the damage was none")
	}
	t.Logf("%d blocks are missing, gaps: %v", missing, gaps)
	if block, err := fans.Next(t.Context()); err != nil || endOf(t, block.Data) < last-cdc.LSN(missing) {
		t.Errorf("fans got %v, %v: want what comes after its cursor, and what is sent again", block.Seq, err)
	}
	for _, g := range gaps {
		if slices.Contains(g.Sinks, "fans") {
			t.Errorf("fans had everything, and has gap %v", g)
		}
	}
}

// Blocks without cursors are refused with the way on; on it, everything that is stored is delivered, again if need be.
func TestLostCursorsAreRefused(t *testing.T) {
	for _, damage := range damages {
		for _, killed := range []bool{false, true} {
			for _, census := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, killed %v, census %v", damage.name, killed, census), func(t *testing.T) {
					b := open(t, Config{Dir: t.TempDir(), Sinks: []string{"crm"}})
					if err := b.SetSource(t.Context(), []byte("source")); err != nil {
						t.Fatal(err)
					}
					blocks := [][]byte{block(10, 100), block(10, 200), block(10, 300)}
					appendAll(t, b, blocks...)
					s := sinkOf(t, b, "crm")
					s.Settle(wantNext(t, s, blocks[0]).Seq, 100)
					if err := s.Flush(t.Context()); err != nil {
						t.Fatal(err)
					}
					dir := leave(t, b, killed)
					for _, path := range files(t, dir, "KV_"+b.names.values) {
						if err := damage.do(path); err != nil {
							t.Fatal(err)
						}
					}
					if !census {
						if err := os.Remove(filepath.Join(dir, censusName)); err != nil {
							t.Fatal(err)
						}
					}
					checkRefusedOrWhole(t, dir, blocks)
				})
			}
		}
	}
}

// checkRefusedOrWhole opens a store whose values are damaged: it is refused and repaired, or nothing that matters was lost.
func checkRefusedOrWhole(t *testing.T, dir string, blocks [][]byte) {
	t.Helper()
	cfg := Config{Dir: dir, Pipeline: "test", Sinks: []string{"crm"}}
	b, err := Open(t.Context(), cfg, logTo(t), nil)
	if err == nil {
		t.Cleanup(func() { shut(t, b) })
		source, err := b.Source(t.Context())
		if err != nil || string(source) != "source" {
			t.Errorf("not refused, and the source is %q, %v", source, err)
		}
		wantRest(t, b, blocks)
		return
	}
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Solution, "cdcsync recover") {
		t.Fatalf("Open = %v, want the way on", err)
	}
	t.Log(err)
	if _, again := Open(t.Context(), cfg, logTo(t), nil); again == nil || again.Error() != err.Error() {
		t.Fatalf("Open again = %v, want %v", again, err)
	}
	cfg.Repair = true
	b = open(t, cfg)
	wantRest(t, b, blocks)
	if len(b.Gaps()) == 0 {
		t.Error("values were lost, and there is no gap")
	}
	shut(t, b)
	cfg.Repair = false
	wantRest(t, opened(t, cfg), blocks)
}

// wantRest wants the blocks from the cursor on, which is after the first at most.
func wantRest(t *testing.T, b *Buffer, blocks [][]byte) {
	t.Helper()
	s := sinkOf(t, b, "crm")
	if s.read == 0 {
		wantNext(t, s, blocks[0])
	}
	wantNext(t, s, blocks[1:]...)
}

// What a stream holds beside blocks is missed, too.
func TestLostLettersAndTrackedItemsAreGaps(t *testing.T) {
	for _, damage := range damages {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed %v", damage.name, killed), func(t *testing.T) {
				cfg := Config{Dir: t.TempDir(), Sinks: []string{"crm"}}
				b := open(t, cfg)
				const n = 20
				var tracked []Tracked
				for i := range n {
					l := letter("crm", i)
					l.Table = "public.users"
					if err := b.Park(t.Context(), []Letter{l}); err != nil {
						t.Fatal(err)
					}
					item := Tracked{Sink: "crm", ItemID: fmt.Sprint(i), ID: fmt.Sprint(i)}
					if err := b.Track(t.Context(), []Tracked{item}); err != nil {
						t.Fatal(err)
					}
					tracked = append(tracked, item)
				}
				dir := leave(t, b, killed)
				for _, stream := range []string{b.names.letters, b.names.tracked} {
					for _, path := range files(t, dir, stream) {
						if err := damage.do(path); err != nil {
							t.Fatal(err)
						}
					}
				}
				cfg.Dir = dir
				b = open(t, cfg)
				var letters, items bool
				for _, g := range b.Gaps() {
					letters = letters || g.Table == "public.users" && strings.Contains(g.Reason, fmt.Sprintf("%d dead letters", n-b.LetterCount("crm", LetterOpen)))
					items = items || strings.Contains(g.Reason, "accepted and not confirmed") && slices.Equal(g.Sinks, []string{"crm"})
				}
				if !letters || !items {
					t.Errorf("%d letters and %d items are left of %d, gaps: %v", b.LetterCount("crm", LetterOpen), b.TrackedCount(), n, b.Gaps())
				}
				for _, g := range b.Gaps() {
					if err := b.CloseGap(t.Context(), g.ID); err != nil {
						t.Fatal(err)
					}
				}
				if err := b.Track(t.Context(), tracked); err != nil {
					t.Fatal(err)
				}
				shut(t, b)
				b = opened(t, cfg)
				if gaps := b.Gaps(); len(gaps) > 0 {
					t.Errorf("gaps that were closed are open again: %v", gaps)
				}
				if got := b.TrackedCount(); got != n {
					t.Errorf("%d items are tracked, want %d", got, n)
				}
			})
		}
	}
}

// An orderly life makes no gap: trimmed blocks, removed parts, discarded letters, untracked items and deleted values are not lost.
func TestWhatIsRemovedIsNotLost(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Sinks: []string{"crm"}}
	for round := range 3 {
		b := open(t, cfg)
		s := sinkOf(t, b, "crm")
		for i := range 20 {
			n := round*100 + i
			appendAll(t, b, block(200<<10, cdc.LSN(1000+n)))
			got, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Settle(got.Seq, cdc.LSN(1000+n))
			l := []Letter{letter("crm", n)}
			if err := b.Park(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if err := b.Track(t.Context(), []Tracked{{Sink: "crm", ItemID: fmt.Sprint(n), ID: "x"}}); err != nil {
				t.Fatal(err)
			}
			if err := b.SetValue(t.Context(), fmt.Sprint("v", n), []byte("x")); err != nil {
				t.Fatal(err)
			}
			if i == 10 {
				b.saveCensus()
			}
			if i%3 == 0 {
				if err := b.Discard(t.Context(), l[0].ID); err != nil {
					t.Fatal(err)
				}
				b.Untrack("crm", fmt.Sprint(n))
				if err := b.DeleteValue(t.Context(), fmt.Sprint("v", n)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		cfg.Dir = leave(t, b, round%2 == 0)
	}
	b := opened(t, cfg)
	if gaps := b.Gaps(); len(gaps) > 0 || b.Health() != "" {
		t.Errorf("gaps %v, health %q, want none", gaps, b.Health())
	}
}

// A folder that is deleted, moved, replaced or robbed of a file under a running daemon takes nothing more, and says so.
func TestFolderThatGoesAwayIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(dir, blocks string) error
	}{
		{"deleted", func(dir, _ string) error { return os.RemoveAll(dir) }},
		{"moved", func(dir, _ string) error { return os.Rename(dir, dir+".old") }},
		{"replaced by a copy", func(dir, _ string) error {
			if err := os.Rename(dir, dir+".old"); err != nil {
				return err
			}
			return exec.Command("cp", "-r", dir+".old", dir).Run()
		}},
		{"files deleted", func(dir, _ string) error { return os.RemoveAll(filepath.Join(dir, "jetstream")) }},
		{"file of the blocks deleted", func(dir, blocks string) error {
			list, err := filepath.Glob(filepath.Join(dir, "jetstream", "$G", "streams", blocks, "msgs", "*"+blockSuffix))
			for _, path := range list {
				err = errors.Join(err, os.Remove(path))
			}
			return err
		}},
		{"lock deleted", func(dir, _ string) error { return os.Remove(filepath.Join(dir, lockName)) }},
	} {
		for _, idle := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, idle %v", c.name, idle), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "buffer")
				b := open(t, Config{Dir: dir, Sinks: []string{"crm"}})
				defer b.Close(t.Context())
				appendAll(t, b, block(10, 100))
				if err := c.do(dir, b.names.blocks); err != nil {
					t.Fatal(err)
				}
				if !idle {
					err := b.Append(t.Context(), block(10, 200))
					if !IsPermanent(err) || !strings.Contains(err.Error(), dir) {
						t.Errorf("Append = %v, want that the folder is gone", err)
					}
				}
				eventually(t, "lost", func() bool {
					select {
					case <-b.Lost():
						return true
					default:
						return false
					}
				})
				if got := b.Health(); !strings.Contains(got, dir) {
					t.Errorf("Health = %q, want the folder", got)
				}
				if _, _, err := b.Tail(t.Context()); !IsPermanent(err) {
					t.Errorf("Tail = %v, want an operator's matter", err)
				}
				if err := b.SetSource(t.Context(), []byte("x")); err == nil {
					t.Error("SetSource succeeded")
				}
			})
		}
	}
}
