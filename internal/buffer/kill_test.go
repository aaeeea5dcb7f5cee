package buffer

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

var (
	child = flag.String("buffer.child", "", "for the test of kills itself: append blocks to the buffer in this folder for ever")
	kills = flag.Int("buffer.kills", 3, "how often to kill the process that writes to the buffer")
)

// The first settles nothing, so that every block stays; the second settles as it reads.
var killedSinks = []string{"crm", "fans"}

// appendForEver is the child: it prints each LSN once its block is acknowledged, and each cursor once it is written.
func appendForEver(dir string) {
	ctx := context.Background()
	b, err := Open(ctx, Config{Dir: dir, Pipeline: "test", Sinks: killedSinks}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fans, err := b.Sink(ctx, "fans")
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	footer, _, err := b.Tail(ctx)
	for end := footer.Resume.End + 1; err == nil; end++ {
		size := rand.IntN(40 << 10)
		if end%50 == 0 {
			size = 3 << 20 // in parts
		}
		if err = b.Append(ctx, block(size, end)); err == nil {
			fmt.Println("stored", uint64(end))
		}
		if err == nil && end%20 == 0 {
			err = settleAll(ctx, b, fans)
			fmt.Println("settled", uint64(end))
		}
	}
	fmt.Println("error", err)
	os.Exit(1)
}

func settleAll(ctx context.Context, b *Buffer, s *Sink) error {
	for {
		got, err := s.Next(ctx)
		if err != nil {
			return err
		}
		footer, err := cdc.ReadFooter(got.Data)
		if err != nil {
			return err
		}
		s.Settle(got.Seq, footer.Resume.End)
		if got.Seq == b.Stats().Last {
			return s.Flush(ctx)
		}
	}
}

func TestKilledWriterLosesNothing(t *testing.T) {
	dir := t.TempDir()
	var acknowledged, settled cdc.LSN
	for range *kills {
		last := killedAfter(t, dir, time.Duration(100+rand.IntN(400))*time.Millisecond)
		acknowledged, settled = max(acknowledged, last["stored"]), max(settled, last["settled"])
		b := open(t, Config{Dir: dir, Sinks: killedSinks})
		footer, _, err := b.Tail(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if footer.Resume.End < acknowledged || footer.Resume.End > acknowledged+1 {
			t.Fatalf("the last block is %d, acknowledged was %d: want that or the one in flight", footer.Resume.End, acknowledged)
		}
		acknowledged = footer.Resume.End
		if got := b.Stats().Cursors[1].Resume; got < settled {
			t.Fatalf("the cursor is at %d, written was %d", got, settled)
		}
		shut(t, b)
	}
	b := opened(t, Config{Dir: dir, Sinks: killedSinks})
	crm := sinkOf(t, b, "crm")
	for want := cdc.LSN(1); want <= acknowledged; want++ {
		got, err := crm.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if end := endOf(t, got.Data); end != want {
			t.Fatalf("block %d, want %d", end, want)
		}
	}
	wantNone(t, crm)
}

// killedAfter runs the child, kills it after a while, and returns what it said last of each kind.
func killedAfter(t *testing.T, dir string, after time.Duration) (last map[string]cdc.LSN) {
	t.Helper()
	last = make(map[string]cdc.LSN)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-buffer.child="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var kill *time.Timer
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		if word == "error" {
			t.Errorf("child: %s", rest)
		}
		n, err := strconv.ParseUint(rest, 10, 64)
		if err != nil {
			break // the line that the kill cut
		}
		last[word] = cdc.LSN(n)
		if kill == nil { // the first block is stored: starting is over
			kill = time.AfterFunc(after, func() { cmd.Process.Kill() })
		}
	}
	cmd.Wait()
	return last
}
