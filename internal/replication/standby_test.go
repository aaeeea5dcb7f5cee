package replication

import (
	"context"
	"errors"
	"io/fs"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/sourcegraph/conc/pool"
)

// standBy confirms all WAL that the server writes, for a commit that waits for a standby: with the server's own pg_receivewal
// where it is there, which not every package of server binaries has.
func standBy(t *testing.T, url, bin string) {
	t.Helper()
	receiver := exec.Command(filepath.Join(bin, "pg_receivewal"), "-d", url, "-D", t.TempDir(), "--synchronous", "--no-loop")
	switch err := receiver.Start(); {
	case err == nil:
		t.Cleanup(func() {
			_ = receiver.Process.Kill()
			_ = receiver.Wait()
		})
		return
	case !errors.Is(err, fs.ErrNotExist):
		t.Fatal(err)
	}
	t.Logf("no pg_receivewal in %s: WAL is received by the test", bin)
	conn, at := receiveWAL(t, url)
	ctx, cancel := context.WithCancel(context.Background())
	p := pool.New().WithErrors()
	p.Go(func() error {
		if err := confirmWAL(ctx, conn, at); ctx.Err() == nil {
			return err
		}
		return nil
	})
	t.Cleanup(func() {
		cancel()
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		_ = conn.Close(context.Background())
	})
}

func receiveWAL(t *testing.T, url string) (*pgconn.PgConn, pglogrepl.LSN) {
	t.Helper()
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "true"
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	system, err := pglogrepl.IdentifySystem(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	const segment = 16 << 20
	at := system.XLogPos - system.XLogPos%segment
	conn.Frontend().SendQuery(&pgproto3.Query{String: "START_REPLICATION PHYSICAL " + at.String()}) // without a slot, which tests take for the stream's
	if err := conn.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	return conn, at
}

// confirmWAL says at once of everything that comes that it is durable, until ctx ends.
func confirmWAL(ctx context.Context, conn *pgconn.PgConn, at pglogrepl.LSN) error {
	for {
		status := pglogrepl.StandbyStatusUpdate{WALWritePosition: at, WALFlushPosition: at, WALApplyPosition: at, ClientTime: time.Now()}
		if err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, status); err != nil {
			return err
		}
		message, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		data, ok := message.(*pgproto3.CopyData)
		if !ok || data.Data[0] != pglogrepl.XLogDataByteID {
			continue
		}
		wal, err := pglogrepl.ParseXLogData(data.Data[1:])
		if err != nil {
			return err
		}
		at = max(at, wal.WALStart+pglogrepl.LSN(len(wal.WALData)))
	}
}
