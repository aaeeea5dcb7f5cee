package delivery

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// again gives one block over and over.
type again struct {
	data []byte
	left int
	seq  uint64
	done chan struct{}
}

func (a *again) Next(ctx context.Context) (Block, error) {
	if a.left == 0 {
		<-ctx.Done()
		return Block{}, ctx.Err()
	}
	a.left--
	a.seq++
	return Block{Seq: a.seq, Data: a.data, Stored: time.Now()}, nil
}

func (a *again) Settle(seq uint64, _ cdc.LSN) {
	if a.seq == seq && a.left == 0 {
		close(a.done)
	}
}

func (a *again) Keep(context.Context, []byte) error { return nil }

func (a *again) Kept(context.Context) ([]byte, error) { return nil, nil }

// hole takes everything.
type hole struct{ outcomes []sinks.Outcome }

func (*hole) Limits() sinks.Limits { return sinks.Limits{Frame: 11, Overhead: 40} }

func (h *hole) Deliver(_ context.Context, items []sinks.Item, _ string) ([]sinks.Outcome, error) {
	return h.outcomes[:len(items)], nil
}

const benchRows = 1000 // in a block of about 256 KiB

func benchBlock() []byte {
	rel := relation(7, "users", "id", "email", "first_name", "last_name", "city", "status", "balance", "tags", "settings", "created_at", "updated_at")
	for i, oid := range []uint32{20, 25, 25, 25, 25, 25, 1700, 1009, 3802, 1184, 1184} {
		rel.Columns[i].Type = &cdc.Type{OID: oid, Name: fmt.Sprint(oid), Kind: cdc.TypeBase}
	}
	rel.Columns[7].Type = &cdc.Type{OID: 1009, Name: "_text", Kind: cdc.TypeArray, Elem: textType, Delimiter: ','}
	return blockWith(10, func(w *cdc.Writer) {
		w.Relation(rel.OID, cdc.AppendRelation(nil, rel))
		for n := range benchRows {
			var values []cdc.Value
			for _, s := range []string{
				fmt.Sprint(1234567 + n), "joao.silva.1234567@example.com", "João", "da Silva Albuquerque", "São Paulo", "active", "1234.50",
				`{gold,"since 2019",newsletter}`, `{"theme": "dark", "locale": "pt-BR"}`, "2025-09-20 18:41:31.219+00", "2025-09-21 08:11:01.5+00",
			} {
				values = append(values, cdc.Value{Kind: cdc.Text, Data: []byte(s)})
			}
			w.Row(message(cdc.OpInsert, rel.OID, values...))
		}
	})
}

const benchMapping = `[{name: users, table: users, %s item: {v: 1, brandId: 1, tableName: user, createdAt: $created_at, updatedAt: $updated_at, data: {"*": {case: camel}}}}]`

func benchmarkWorker(b *testing.B, options string) {
	b.Helper()
	data := benchBlock()
	cfg := testConfig()
	cfg.Batch = Batch{Items: 500}
	deps := testDeps(b, newStore(), &hole{outcomes: allDelivered(make([]int, 500))}, fmt.Sprintf(benchMapping, options))
	blocks := &again{data: data, left: (b.N + benchRows - 1) / benchRows, done: make(chan struct{})}
	deps.Blocks = blocks
	b.ReportAllocs()
	b.ResetTimer()
	stop := running(b, New(cfg, deps))
	<-blocks.done
	b.StopTimer()
	stop()
}

// BenchmarkRow is a row's way from the block to the sink: decoding, rendering, lanes, settlement. What rendering alone
// takes is mapping's BenchmarkPlainRow.
func BenchmarkRow(b *testing.B) { benchmarkWorker(b, "") }

func BenchmarkRowCoalescing(b *testing.B) { benchmarkWorker(b, "coalesce: latest,") }

// BenchmarkRowFiltered is what a row costs that goes nowhere, decoding and routing: the floor.
func BenchmarkRowFiltered(b *testing.B) { benchmarkWorker(b, "on: [delete],") }
