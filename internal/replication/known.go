package replication

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// known is what the last survey found. It is durable, so that what changes while no daemon runs is noticed by the next.
type known struct {
	at          moment
	publication publicationState
	tables      map[string]*knownTable // by schema.table

	stored map[string][]byte // values as they are in the store
}

// moment is a position with the time at which the source was there.
type moment struct {
	LSN  cdc.LSN   `json:"lsn"`
	Time time.Time `json:"time"`
}

// knownTable is a table as it was, and what of it is not captured although its mappings want it.
type knownTable struct {
	tableState
	// BaseFilter and BaseColumns are what the publication leaves out by a decision made before the table was first seen.
	BaseFilter  string                 `json:"base_filter,omitempty"`
	BaseColumns []string               `json:"base_columns,omitempty"`
	Missing     map[cdc.GapCause]*loss `json:"missing,omitempty"`
	Away        cdc.LSN                `json:"away,omitempty"` // the last commit whose change under another name is recorded as missed
}

// loss is a state of the source in which changes of a table are missed.
type loss struct {
	Reason string `json:"reason"`
	Since  moment `json:"since"`
	// NoDeletes: whatever is missed, it is no delete.
	NoDeletes bool `json:"no_deletes,omitempty"`
	// Files is the table's before the loss: a TRUNCATE changes it.
	Files uint64 `json:"files,omitempty"`
}

func (t *knownTable) equal(o *knownTable) bool {
	return t.tableState.equal(&o.tableState) && t.BaseFilter == o.BaseFilter && t.Away == o.Away && slices.Equal(t.BaseColumns, o.BaseColumns) &&
		maps.EqualFunc(t.Missing, o.Missing, func(x, y *loss) bool { return *x == *y })
}

const (
	knownPrefix = "survey/"
	knownHead   = knownPrefix + "head"
	// knownShards are the values that the tables are spread over by their names: a value may have some hundred KiB, and few of
	// them change at a time.
	knownShards = 8
)

type knownHeader struct {
	At          moment           `json:"at"`
	Publication publicationState `json:"publication"`
}

// loadKnown returns nil when there was no survey yet.
func loadKnown(ctx context.Context, store Store) (*known, error) {
	values, err := store.Values(ctx, knownPrefix)
	if err != nil {
		return nil, fmt.Errorf("what the last survey found: %w", err)
	}
	if values[knownHead] == nil {
		return nil, nil
	}
	var head knownHeader
	if err := json.Unmarshal(values[knownHead], &head); err != nil {
		return nil, fmt.Errorf("what the last survey found: %w", err)
	}
	k := &known{at: head.At, publication: head.Publication, tables: make(map[string]*knownTable), stored: values}
	for n := range knownShards {
		value := values[shardName(n)]
		if value == nil {
			continue
		}
		if err := decodeShard(value, &k.tables); err != nil {
			return nil, fmt.Errorf("what the last survey found: %w", err)
		}
	}
	return k, nil
}

func shardName(n int) string { return fmt.Sprintf("%s%d", knownPrefix, n) }

func decodeShard(value []byte, tables *map[string]*knownTable) error {
	z, err := gzip.NewReader(bytes.NewReader(value))
	if err != nil {
		return err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, tables)
}

// save stores what differs from what was known before, the head last: it says how far the rest is right.
func (k *known) save(ctx context.Context, store Store, before *known) error {
	k.stored = make(map[string][]byte)
	if before != nil {
		k.stored = before.stored
	}
	if before == nil || !maps.EqualFunc(before.tables, k.tables, (*knownTable).equal) {
		if err := k.saveTables(ctx, store); err != nil {
			return err
		}
	}
	value, err := json.Marshal(knownHeader{At: k.at, Publication: k.publication})
	if err != nil {
		return err
	}
	return k.put(ctx, store, knownHead, value)
}

func (k *known) saveTables(ctx context.Context, store Store) error {
	var shards [knownShards]map[string]*knownTable
	for name, t := range k.tables {
		h := fnv.New32a()
		_, _ = h.Write([]byte(name)) // it takes everything
		n := h.Sum32() % knownShards
		if shards[n] == nil {
			shards[n] = make(map[string]*knownTable)
		}
		shards[n][name] = t
	}
	for n, tables := range shards {
		value, err := encodeShard(tables)
		if err != nil {
			return err
		}
		if err := k.put(ctx, store, shardName(n), value); err != nil {
			return err
		}
	}
	return nil
}

func encodeShard(tables map[string]*knownTable) ([]byte, error) {
	if len(tables) == 0 {
		tables = map[string]*knownTable{}
	}
	text, err := json.Marshal(tables) // sorted by name, so that what is alike is equal
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}

func (k *known) put(ctx context.Context, store Store, name string, value []byte) error {
	if bytes.Equal(k.stored[name], value) {
		return nil
	}
	if err := store.SetValue(ctx, name, value); err != nil {
		return fmt.Errorf("store what the survey found: %w", err)
	}
	k.stored[name] = value
	return nil
}
