package buffer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// census says, in a file beside the embedded store, what the store holds at the least: the store itself passes over a record
// that is damaged and a file that is gone. It is written some time after what it counts is stored, and before anything that
// it counts is removed, so that what is missing of it was lost. A cluster has replicas instead.
type census struct {
	mu      sync.Mutex
	on      bool       // the store has been compared with it
	was     censusFile // as it was read; what Open compares with
	written censusFile
	values  map[string]uint64 // as censusFile.Values, as it is now
	at      time.Time         // when it was written
	lost    []string          // keys of values that are gone
}

// censusFile is what the file holds. Each number is a lower bound.
type censusFile struct {
	End     uint64                    `json:"end"`   // sequence of the last whole block
	Reach   cdc.LSN                   `json:"reach"` // what it reaches
	Cursors map[string]cursor         `json:"cursors"`
	Values  map[string]uint64         `json:"values"`  // revisions of the bucket's other keys
	Letters map[string]map[string]int `json:"letters"` // by sink and table
	Tracked trackSpan                 `json:"tracked"`
}

// trackSpan is the part of the log of tracked items that has to be there, by sequence; 0 is for nothing.
type trackSpan struct {
	First uint64   `json:"first"`
	Last  uint64   `json:"last"`
	Sinks []string `json:"sinks,omitempty"` // that have had items
}

const censusName = "census"

func (c *census) init() { c.values = make(map[string]uint64) }

// counted are the values whose loss matters: not the cursors, which have a place of their own, nor what is only to be exact.
func counted(key string) bool {
	return key != cursorsKey && !strings.HasPrefix(key, valuePrefix+token(tablesPrefix)) && !strings.HasPrefix(key, valuePrefix+token(holePrefix)) &&
		!strings.HasPrefix(key, valuePrefix+token(keptPrefix))
}

// noteValue records that the bucket has a key.
func (c *census) noteValue(key string, revision uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if counted(key) {
		c.values[key] = revision
	}
}

// readCensus reads the file. One that is missing or damaged is told, and counts nothing: the store is compared with itself.
func (b *Buffer) readCensus() {
	if b.folder == nil {
		return
	}
	path := filepath.Join(b.cfg.Dir, censusName)
	data, err := os.ReadFile(path)
	if err == nil {
		sum, body, _ := bytes.Cut(data, []byte("\n"))
		want := sha256.Sum256(body)
		if string(sum) != hex.EncodeToString(want[:]) {
			err = errors.New("its checksum does not match")
		} else {
			err = json.Unmarshal(body, &b.census.was)
		}
	}
	if err != nil {
		b.census.was = censusFile{}
		if !errors.Is(err, fs.ErrNotExist) || b.stored.last > 0 { // a buffer of an older version has none
			b.logger.Warn("the buffer's census cannot be read: what is missing in the store shows only in the store itself", "path", path, "err", err)
		}
	}
}

// ready lets the census be written: what it has missed is recorded.
func (c *census) ready() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = true
}

// count is the census as it may be written now.
func (b *Buffer) count() censusFile {
	b.mu.Lock()
	f := censusFile{End: b.stored.end, Reach: b.stored.endReach, Cursors: maps.Clone(b.cursors.written)}
	if b.stored.messages == 0 {
		f.End, f.Reach = 0, 0 // what the stream has had is not what it has
	}
	b.mu.Unlock()
	f.Letters = b.letters.census()
	f.Tracked = b.tracked.span()
	b.census.mu.Lock()
	defer b.census.mu.Unlock()
	f.Values = maps.Clone(b.census.values)
	return f
}

// saveCensus writes the census when it has changed; for cursors and blocks alone, only now and then.
func (b *Buffer) saveCensus() {
	if b.folder == nil || b.folder.known() != nil {
		return
	}
	now := b.count()
	b.census.mu.Lock()
	defer b.census.mu.Unlock()
	if !b.census.on {
		return
	}
	const often = 5 * time.Second
	was := b.census.written
	slow := was
	slow.End, slow.Reach, slow.Cursors = now.End, now.Reach, now.Cursors
	if reflect.DeepEqual(now, was) || reflect.DeepEqual(slow, now) && time.Since(b.census.at) < often {
		return
	}
	if err := b.writeCensus(&now); err != nil {
		b.logger.Warn("the buffer's census is not written", "err", err)
	}
}

// lowerCensus writes the census with less than there is before something that it counts is removed.
func (b *Buffer) lowerCensus(lower func(f *censusFile) (changed bool)) error {
	if b.folder == nil {
		return nil
	}
	b.census.mu.Lock()
	defer b.census.mu.Unlock()
	f := b.census.written
	if !b.census.on || !lower(&f) {
		return nil
	}
	return b.writeCensus(&f)
}

// writeCensus replaces the file. b.census.mu is held.
func (b *Buffer) writeCensus(f *censusFile) error {
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	data := append([]byte(hex.EncodeToString(sum[:])+"\n"), body...)
	path := filepath.Join(b.cfg.Dir, censusName)
	if err := replaceFile(path, data); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	b.census.written, b.census.at = *f, time.Now()
	return nil
}

// replaceFile writes a file so that after a loss of power it is the old or the new one.
func replaceFile(path string, data []byte) error {
	next := path + ".tmp"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// loadNames reads which values the bucket has, and compares them with the census.
func (b *Buffer) loadNames(ctx context.Context) error {
	subject := "$KV." + b.names.values + "."
	err := b.scan(ctx, "KV_"+b.names.values, subject+">", 0, func(m message) error {
		if m.header.Get("KV-Operation") == "" {
			b.census.noteValue(strings.TrimPrefix(m.subject, subject), m.seq)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list values: %w", err)
	}
	for key, revision := range b.census.was.Values {
		if b.census.values[key] < revision {
			b.census.lost = append(b.census.lost, key)
		}
	}
	slices.Sort(b.census.lost)
	return nil
}

// recordLostValues makes a gap of values that are gone. Which tables they were about is not known.
func (b *Buffer) recordLostValues(ctx context.Context) error {
	if len(b.census.lost) == 0 {
		return nil
	}
	names := make([]string, len(b.census.lost))
	for i, key := range b.census.lost {
		names[i] = untoken(strings.TrimPrefix(key, valuePrefix))
	}
	b.logger.Error("stored values are lost", "names", names)
	_, err := b.RecordGap(ctx, cdc.Gap{
		Cause:  cdc.GapBuffer,
		Reason: "stored values of the buffer were lost or are damaged (" + strings.Join(names, ", ") + "): what they said of gaps, backfills and pauses is not known any more",
	})
	return err
}

// compareLetters makes gaps of dead letters that are gone.
func (b *Buffer) compareLetters(ctx context.Context) error {
	now := b.letters.census()
	for sink, tables := range b.census.was.Letters {
		for table, n := range tables {
			missing := n - now[sink][table]
			if missing <= 0 {
				continue
			}
			b.logger.Error("dead letters are lost", "sink", sink, "table", table, "letters", missing)
			_, err := b.RecordGap(ctx, cdc.Gap{
				Cause: cdc.GapBuffer, Table: table, Sinks: []string{sink},
				Reason: fmt.Sprintf("%d dead letters of sink %s were lost with the store's files: what they held is not at the vendor", missing, sink),
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// compareTracked makes a gap of tracked items that are gone; missing messages of their log were found by reading it.
func (b *Buffer) compareTracked(ctx context.Context, missing uint64) error {
	if missing == 0 {
		return nil
	}
	sinks := b.census.was.Tracked.Sinks
	b.logger.Error("tracked items are lost", "records", missing, "sinks", sinks)
	_, err := b.RecordGap(ctx, cdc.Gap{
		Cause: cdc.GapBuffer, Sinks: sinks,
		Reason: fmt.Sprintf("%d records of items that a vendor has accepted and not confirmed were lost with the store's files: "+
			"one that the vendor rejects after all would not be noticed", missing),
	})
	return err
}
