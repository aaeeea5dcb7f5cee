package replication

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/cdcsync/cdcsync/internal/pgtest"
)

var postgres = pgtest.Shared{Options: pgtest.Options{TCP: true, Settings: map[string]string{
	"wal_level": "logical", "max_replication_slots": "50", "max_wal_senders": "50", "max_wal_size": "4GB",
}}}

func TestMain(m *testing.M) { goleak.VerifyTestMain(postgres.Suite(m)) }
