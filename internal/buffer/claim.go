package buffer

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// identityKey is the bucket's key of what Config.Claim gave.
const identityKey = "identity"

// claim has the caller verify whose buffer this is, before anything of it is read or changed.
func (b *Buffer) claim(ctx context.Context) error {
	if b.cfg.Claim == nil {
		return nil
	}
	stored, source, err := b.claimed(ctx)
	if err != nil {
		return err
	}
	_, err = b.cfg.Claim(ctx, stored, source)
	return err
}

// claimed reads what is there without making anything: a bucket that is not there has nothing.
func (b *Buffer) claimed(ctx context.Context) (identity, source []byte, err error) {
	err = b.retry(ctx, "open bucket", func(ctx context.Context) error {
		bucket, err := b.js.KeyValue(ctx, b.names.values)
		if err == nil {
			b.values = bucket
		}
		return err
	})
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("bucket %s: %w", b.names.values, err)
	}
	if identity, err = b.value(ctx, identityKey); err != nil {
		return nil, nil, err
	}
	source, err = b.value(ctx, sourceKey)
	return identity, source, err
}

// enter stores the claim. Of two daemons that do so at once the second finds the first one's, and is refused.
func (b *Buffer) enter(ctx context.Context) error {
	if b.cfg.Claim == nil {
		return nil
	}
	for {
		stored, source, err := b.claimed(ctx)
		if err != nil {
			return err
		}
		claim, err := b.cfg.Claim(ctx, stored, source)
		if err != nil || claim == nil || string(claim) == string(stored) {
			return err
		}
		if stored != nil {
			return b.setValue(ctx, identityKey, claim) // the database was renamed
		}
		err = b.retry(ctx, "store identity", func(ctx context.Context) error {
			_, err := b.values.Create(ctx, identityKey, claim)
			return err
		})
		if !errors.Is(err, jetstream.ErrKeyExists) { // else it may be ours, whose acknowledgement was lost
			return err
		}
	}
}
