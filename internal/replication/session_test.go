package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

const (
	table   = 1 // OID of public.t, which is mapped
	another = 2 // OID of public.other, which is not
)

func within(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	tb.Cleanup(cancel)
	return ctx
}

// simulate runs a test in time of its own, which passes when everything waits.
func simulate(t *testing.T, cfg Config, test func(*testing.T, context.Context, *offline)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, within(t), newOffline(t, cfg)) })
}

func announce() [][]byte {
	return [][]byte{relationMsg(table, "t", "id"), relationMsg(another, "other", "id")}
}

func TestTransactionIsStoredThenConfirmed(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		gate := make(chan struct{})
		o.log.gate = gate
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(beginMsg(100, 7))
			w.send(announce()...)
			w.send(insertMsg(table, "1"), insertMsg(another, "x"), insertMsg(another, "x"), insertMsg(table, "2"), commitMsg(100, 150))
			w.keepalive(160, true) // asks for an answer while nothing is stored
			for _, u := range w.confirmed(ctx, 0) {
				if u.flush != 0 {
					t.Errorf("%s is confirmed and nothing is stored", u.flush)
				}
			}
			close(gate)
			w.confirmed(ctx, 160)
		})
		want := "tx1#1 insert public.t new(id=\"1\")\ntx1#4 insert public.t new(id=\"2\")\n"
		if diff := cmp.Diff(want, describe(o.log.changes(t))); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
		if c := o.log.changes(t)[0]; c.XID != 7 || c.Position.Commit != 100 {
			t.Errorf("first change: %+v", c)
		}
	})
}

// A keepalive's position is in no block: the log has to remember it before the server may forget.
func TestKeepaliveIsRememberedBeforeItIsConfirmed(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		_ = o.run(ctx, t, func(w *walsender) {
			w.keepalive(500, false)
			w.confirmed(ctx, 500)
			o.log.mu.Lock()
			defer o.log.mu.Unlock()
			inc, err := decodeIncarnation(o.log.source)
			if err != nil || inc == nil || inc.Confirmed != 500 {
				t.Errorf("the log remembers %+v, %v when 500 is confirmed", inc, err)
			}
		})
	})
}

// A server that shuts down asks again and again, and waits for the end of its WAL to be confirmed.
func TestServerThatAsksWithoutEndIsConfirmed(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		_ = o.run(ctx, t, func(w *walsender) {
			for ctx.Err() == nil {
				w.keepalive(500, true)
				if u := <-w.updates; u.flush >= 500 {
					return
				}
				time.Sleep(time.Millisecond)
			}
			t.Error("500 is never confirmed")
		})
	})
}

func TestKeepaliveWithinTransactionConfirmsNothing(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(beginMsg(100, 7), announce()[0], insertMsg(table, "1"))
			w.keepalive(120, true)
			o.log.wait(ctx, t, "the open transaction's first change", func() bool { return o.log.rows == 1 })
			w.keepalive(130, true)
			for range 3 { // the first of the clock, two answers
				select {
				case u := <-w.updates:
					if u.flush != 0 {
						t.Errorf("%s is confirmed within the first transaction", u.flush)
					}
				case <-ctx.Done():
					t.Error("no answer to a keepalive that asks for one")
				}
			}
			w.send(commitMsg(100, 150))
			w.confirmed(ctx, 150)
		})
	})
}

func TestDeliveredIsWaitedForWhenAsked(t *testing.T) {
	simulate(t, Config{AckDelivered: true}, func(t *testing.T, ctx context.Context, o *offline) {
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(beginMsg(100, 7), announce()[0], insertMsg(table, "1"), commitMsg(100, 150))
			o.log.wait(ctx, t, "the change", func() bool { return o.log.rows == 1 })
			w.keepalive(200, true)
			select {
			case u := <-w.updates:
				if u.flush >= 150 {
					t.Errorf("%s is confirmed before it is delivered", u.flush)
				}
			case <-ctx.Done():
			}
			o.log.mu.Lock()
			o.log.delivered = 150
			o.log.mu.Unlock()
			w.confirmed(ctx, 200)
		})
	})
}

// With a full buffer nothing is read, and the server still hears from us.
func TestFullBufferGoesOnAnswering(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		o.timeout = 300 * time.Millisecond
		gate := make(chan struct{})
		o.log.gate = gate
		const rows = 40
		value := strings.Repeat("v", 60<<10) // 2.4 MB in all: more than ring and buffers hold
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(beginMsg(100, 7), announce()[0])
			answered := make(chan struct{})
			go func() { // reads while the script below is stuck in a write
				defer close(answered)
				for range 10 {
					if u, ok := <-w.updates; !ok || u.flush != 0 {
						t.Errorf("update while the buffer is full: %+v, %v", u, ok)
					}
				}
				if state := o.stream.Status().State; state != StateBufferFull {
					t.Errorf("state %s, want %s", state, StateBufferFull)
				}
				close(gate)
			}()
			for range rows {
				w.send(insertMsg(table, value))
			}
			<-answered
			w.send(commitMsg(100, 150))
			w.confirmed(ctx, 150)
		})
		if o.log.rows != rows {
			t.Errorf("%d rows stored, want %d", o.log.rows, rows)
		}
		for _, block := range o.log.blocks {
			if len(block) > blockSize {
				t.Errorf("block of %d bytes, the limit is %d", len(block), blockSize)
			}
		}
	})
}

func TestReconnectSkipsWhatIsStored(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		transaction := slices.Concat([][]byte{beginMsg(100, 7)}, announce(), [][]byte{
			insertMsg(table, "1"), insertMsg(another, "x"), insertMsg(table, "2"), insertMsg(table, "3"), commitMsg(100, 150),
		})
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(transaction[:6]...)
			o.log.wait(ctx, t, "two changes", func() bool { return o.log.rows == 2 })
		})
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(transaction...)
			w.confirmed(ctx, 150)
		})
		want := "tx1#1 insert public.t new(id=\"1\")\ntx1#3 insert public.t new(id=\"2\")\ntx1#4 insert public.t new(id=\"3\")\n"
		if diff := cmp.Diff(want, describe(o.log.changes(t))); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
	})
}

// Wherever the connection breaks, each change is stored once.
func TestExactlyOnceWhereverItBreaks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var want strings.Builder
		var transactions [][][]byte
		for n := range rapid.IntRange(1, 4).Draw(rt, "transactions") {
			commit := cdc.LSN(100 * (n + 1))
			messages := slices.Concat([][]byte{beginMsg(commit, uint32(n))}, announce())
			for i := range rapid.IntRange(0, 6).Draw(rt, "changes") {
				if rapid.Bool().Draw(rt, "mapped") {
					fmt.Fprintf(&want, "%s\n", cdc.Position{Commit: commit, Ordinal: uint32(i + 1)})
					messages = append(messages, insertMsg(table, fmt.Sprint(i)))
				} else {
					messages = append(messages, insertMsg(another, "x"))
				}
			}
			transactions = append(transactions, append(messages, commitMsg(commit, commit+50)))
		}
		cuts := append(rapid.SliceOfN(rapid.IntRange(0, 40), 0, 4).Draw(rt, "cuts"), 1<<20)
		simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
			for _, cut := range cuts {
				o.resend(ctx, t, transactions, cut)
			}
			var got strings.Builder
			for _, c := range o.log.changes(t) {
				fmt.Fprintf(&got, "%s\n", c.Position)
			}
			if diff := cmp.Diff(want.String(), got.String()); diff != "" {
				rt.Errorf("positions (-want +got):\n%s", diff)
			}
		})
	})
}

// resend plays a server that goes on where the log ends, and breaks after so many messages.
func (o *offline) resend(ctx context.Context, t *testing.T, transactions [][][]byte, messages int) {
	tail, _, err := o.log.Tail(ctx)
	if err != nil {
		t.Fatal(err)
	}
	end := cdc.LSN(100*len(transactions) + 50)
	_ = o.run(ctx, t, func(w *walsender) {
		for _, transaction := range transactions {
			if lsn(transaction[len(transaction)-1][2:]) < tail.Resume.End {
				continue
			}
			for _, m := range transaction {
				if messages--; messages < 0 {
					return
				}
				w.send(m)
			}
		}
		w.keepalive(end, false)
		w.confirmed(ctx, end)
	})
}

func TestOversizedRowLeavesItsKey(t *testing.T) {
	const limit = 300 << 10
	simulate(t, Config{MaxRow: limit}, func(t *testing.T, ctx context.Context, o *offline) {
		long := strings.Repeat("v", 2*limit)
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(beginMsg(100, 7), relationMsg(table, "t", "id", "body"), relationMsg(another, "other", "id"))
			w.send(insertMsg(table, "1", long), insertMsg(another, long), rowMsg('U', table, 'N', "2", long))
			w.send(insertMsg(table, "3", long[:limit-100]), insertMsg(table, "4", "short"), commitMsg(100, 150))
			w.confirmed(ctx, 150)
		})
		want := fmt.Sprintf(`tx1#1 insert public.t oversized %d id=1
tx1#3 update public.t oversized %d id=2
tx1#4 insert public.t new(id="3" body="vvvvvvvv"…(%d))
tx1#5 insert public.t new(id="4" body="short")
`, len(insertMsg(table, "1", long)), len(rowMsg('U', table, 'N', "2", long)), limit-100)
		if diff := cmp.Diff(want, describe(o.log.changes(t))); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
	})
}

func TestTruncateIsOneChangePerTable(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(slices.Concat([][]byte{beginMsg(100, 7)}, announce(), [][]byte{truncateMsg(another, table), insertMsg(table, "1"), commitMsg(100, 150)})...)
			w.confirmed(ctx, 150)
		})
		want := "tx1#2 truncate public.t\ntx1#3 insert public.t new(id=\"1\")\n"
		if diff := cmp.Diff(want, describe(o.log.changes(t))); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
	})
}

func TestRelationChangesInMidTransaction(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		_ = o.run(ctx, t, func(w *walsender) {
			w.send(beginMsg(100, 7), relationMsg(table, "t", "id"), insertMsg(table, "1"),
				relationMsg(table, "t", "id", "name"), insertMsg(table, "2", "b"), commitMsg(100, 150))
			w.confirmed(ctx, 150)
		})
		want := "tx1#1 insert public.t new(id=\"1\")\ntx1#2 insert public.t new(id=\"2\" name=\"b\")\n"
		if diff := cmp.Diff(want, describe(o.log.changes(t))); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
	})
}

func TestUnknownAndMisplacedMessagesAreErrors(t *testing.T) {
	for name, messages := range map[string][][]byte{
		"unknown type":           {{'Z', 0}},
		"streamed transaction":   {{'S', 0, 0, 0, 1, 1}},
		"row before begin":       {announce()[0], insertMsg(table, "1")},
		"row before relation":    {beginMsg(100, 1), insertMsg(table, "1")},
		"begin within begin":     {beginMsg(100, 1), beginMsg(200, 2)},
		"commit of another":      {beginMsg(100, 1), commitMsg(90, 95)},
		"stored already":         {beginMsg(100, 1), commitMsg(100, 150), beginMsg(120, 2)},
		"relation that ends":     {relationMsg(table, "t", "id")[:12]},
		"truncate of fewer":      {beginMsg(100, 1), truncateMsg(1, 2)[:10]},
		"begin that is too long": {append(beginMsg(100, 1), 0)},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
				err := o.run(ctx, t, func(w *walsender) {
					w.send(messages...)
					for range w.updates { // until the client goes
					}
				})
				if err == nil || IsPermanent(err) || !strings.Contains(err.Error(), "message") {
					t.Errorf("error %v, want one about the message", err)
				}
			})
		})
	}
}

func TestConflictIsPermanent(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		o.log.fail = conflict{errors.New("wrong last sequence")}
		err := o.run(ctx, t, func(w *walsender) {
			w.send(beginMsg(100, 7), announce()[0], insertMsg(table, "1"), commitMsg(100, 150))
			for range w.updates {
			}
		})
		if !IsPermanent(err) {
			t.Errorf("error %v, want a permanent one", err)
		}
	})
}

type conflict struct{ error }

func (conflict) Conflict() bool { return true }

func TestEndOfContextSendsLastUpdate(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		run, cancel := context.WithCancel(ctx)
		err := o.run(run, t, func(w *walsender) {
			w.send(beginMsg(100, 7), announce()[0], insertMsg(table, "1"), commitMsg(100, 150))
			o.log.wait(ctx, t, "the change", func() bool { return o.log.rows == 1 })
			cancel()
			w.confirmed(ctx, 150)
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want the context's", err)
		}
	})
}

// A server that has died without a word is given up, after it was asked.
func TestSilentServerIsGivenUp(t *testing.T) {
	simulate(t, Config{}, func(t *testing.T, ctx context.Context, o *offline) {
		ours := newClock(30*time.Second, 0)
		now := ours.last
		if ours.silentFor(now.Add(29*time.Second)) > ours.timeout || ours.silentFor(now.Add(31*time.Second)) <= ours.timeout {
			t.Errorf("given up after %s, want wal_sender_timeout", ours.timeout)
		}
		o.timeout = 30 * time.Millisecond
		_ = o.run(ctx, t, func(w *walsender) {
			for {
				select {
				case u := <-w.updates:
					if u.reply {
						return
					}
				case <-ctx.Done():
					t.Error("the silent server is not asked for an answer")
					return
				}
			}
		})
	})
}
