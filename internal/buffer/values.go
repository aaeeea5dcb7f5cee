package buffer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// The bucket has the cursors, the source's state, and the values of others under valuePrefix.
const (
	sourceKey   = "source"
	valuePrefix = "value/"
)

// Source is what SetSource stored last; nil when nothing was.
func (b *Buffer) Source(ctx context.Context) ([]byte, error) {
	return b.value(ctx, sourceKey)
}

// SetSource stores durably what capture knows of its source beyond the blocks.
func (b *Buffer) SetSource(ctx context.Context, state []byte) error {
	return b.setValue(ctx, sourceKey, state)
}

// Value is what SetValue stored under a name; nil when there is nothing. Names are any text.
func (b *Buffer) Value(ctx context.Context, name string) ([]byte, error) {
	return b.value(ctx, valuePrefix+token(name))
}

// SetValue stores a small value durably: at most some hundred KiB.
func (b *Buffer) SetValue(ctx context.Context, name string, value []byte) error {
	return b.setValue(ctx, valuePrefix+token(name), value)
}

// DeleteValue removes a value; removing what is not there is fine.
func (b *Buffer) DeleteValue(ctx context.Context, name string) error {
	key := valuePrefix + token(name)
	err := b.lowerCensus(func(f *censusFile) bool {
		if _, ok := f.Values[key]; !ok {
			return false
		}
		f.Values = maps.Clone(f.Values)
		delete(f.Values, key)
		return true
	})
	if err != nil {
		return fmt.Errorf("delete value %s: %w", name, err)
	}
	b.census.mu.Lock()
	delete(b.census.values, key)
	b.census.mu.Unlock()
	err = b.retry(ctx, "delete value", func(ctx context.Context) error {
		return b.values.Purge(ctx, key)
	})
	if err != nil {
		return fmt.Errorf("delete value %s: %w", name, err)
	}
	return nil
}

// Values returns the values whose names begin with prefix, by name.
func (b *Buffer) Values(ctx context.Context, prefix string) (map[string][]byte, error) {
	values := make(map[string][]byte)
	subject := "$KV." + b.names.values + "." // as the client lays a bucket out on a stream (ADR-8)
	err := b.scan(ctx, "KV_"+b.names.values, subject+"*", 0, func(m message) error {
		name, ok := strings.CutPrefix(m.subject, subject+valuePrefix)
		name = untoken(name)
		if ok && strings.HasPrefix(name, prefix) && m.header.Get("KV-Operation") == "" { // not a mark of deletion
			values[name] = m.data
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list values: %w", err)
	}
	return values, nil
}

func (b *Buffer) value(ctx context.Context, key string) (value []byte, err error) {
	err = b.retry(ctx, "read value", func(ctx context.Context) error {
		entry, err := b.values.Get(ctx, key)
		if err == nil {
			value = entry.Value()
		}
		return err
	})
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read value %s: %w", key, err)
	}
	return value, nil
}

func (b *Buffer) setValue(ctx context.Context, key string, value []byte) error {
	var revision uint64
	err := b.retry(ctx, "store value", func(ctx context.Context) (err error) {
		revision, err = b.values.Put(ctx, key, value)
		return err
	})
	if err == nil {
		err = b.folder.intact()
	}
	if err != nil {
		return fmt.Errorf("store value %s: %w", key, err)
	}
	b.written()
	b.census.noteValue(key, revision)
	return nil
}

// untoken is the inverse of token.
func untoken(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		const escape = len("=XX")
		var c byte
		if s[i] == '=' && i+escape <= len(s) {
			if _, err := fmt.Sscanf(s[i:i+escape], "=%02X", &c); err == nil {
				b.WriteByte(c)
				i += escape - 1
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
