package buffer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// smallDisk mounts a file system of a size in memory.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("NOT TESTED: a small disk needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A disk that refuses to write is named, stops nothing for good, and what was acknowledged is there afterwards.
func TestDiskThatCannotBeWrittenIsNamedAndWaitedFor(t *testing.T) {
	disk := smallDisk(t, "64m")
	b := open(t, Config{Dir: filepath.Join(disk, "buffer"), Sinks: []string{"crm"}})
	defer shut(t, b)
	b.space = func() (uint64, error) { return 1 << 40, nil } // others fill the disk faster than it is looked at
	first, second, third := block(10, 100), block(900<<10, 200), block(10, 300)
	appendAll(t, b, first)
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	done := make(chan error, 1)
	go func() { done <- b.Append(t.Context(), second) }()
	eventually(t, "the fault is named", func() bool {
		return strings.Contains(b.Health(), "cannot write to "+b.cfg.Dir) && strings.Contains(b.Health(), "no space left")
	})
	if got := b.Stats().FullReason; got != "" {
		t.Errorf("said to be full: %s", got)
	}
	select {
	case err := <-done:
		t.Fatalf("Append = %v on a disk that takes nothing", err)
	default:
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the fault has ended", func() bool { return b.Health() == "" })
	appendAll(t, b, third)
	wantNext(t, sinkOf(t, b, "crm"), first, second, third)
	if gaps := b.Gaps(); len(gaps) > 0 {
		t.Errorf("gaps %v", gaps)
	}
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4<<10))
	}
}

// A full disk lets the daemon start and deliver; it goes on by itself when there is room.
func TestFullDiskLetsItStartAndDrain(t *testing.T) {
	disk := smallDisk(t, "64m")
	cfg := Config{Dir: filepath.Join(disk, "buffer"), Sinks: []string{"crm"}}
	b := open(t, cfg)
	b.space = func() (uint64, error) { return 1 << 40, nil }
	const blocks = 40
	for i := range blocks {
		appendAll(t, b, block(256<<10, cdc.LSN(100+i)))
	}
	shut(t, b)
	if err := os.WriteFile(filepath.Join(cfg.Dir, reserveName), make([]byte, reserveBytes), 0o600); err != nil { // as on a larger disk
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)

	b = opened(t, cfg)
	crm := sinkOf(t, b, "crm")
	for i := range blocks {
		got := wantNext(t, crm, block(256<<10, cdc.LSN(100+i)))
		crm.Settle(got.Seq, cdc.LSN(100+i))
	}
	if err := crm.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was delivered is trimmed", func() bool { return b.Stats().Messages < blocks })
	done := make(chan error, 1)
	go func() { done <- b.Append(t.Context(), block(10, 900)) }()
	eventually(t, "full", func() bool {
		return strings.Contains(b.Stats().FullDetail, disk) && strings.Contains(b.Stats().FullDetail, "128 MiB")
	})
	b.space = func() (uint64, error) { return 1 << 40, nil }
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
