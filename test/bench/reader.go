package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// readerResult is what the bare reader prints when it has seen all rows.
type readerResult struct {
	First, Last time.Time // rows
	Bytes       int64     // of the rows' messages
	Usage       usage
}

// readSlot is the child "reader URL SLOT ROWS": a loop around ReceiveMessage that counts rows and does nothing else. It
// confirms nothing, so that every round reads the same.
func readSlot(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("reader takes URL SLOT ROWS")
	}
	want, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	config, err := pgconn.ParseConfig(args[0])
	if err != nil {
		return err
	}
	config.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	err = pglogrepl.StartReplication(ctx, conn, args[1], 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '2'", "publication_names 'bench'"},
	})
	if err != nil {
		return err
	}
	result, err := countRows(ctx, conn, want)
	if err != nil {
		return err
	}
	if result.Usage, err = usageOf(os.Getpid()); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

const dataHeader = 1 + 8 + 8 + 8 // XLogData: 'w', start, end, send time

func countRows(ctx context.Context, conn *pgconn.PgConn, want int) (result readerResult, err error) {
	for rows := 0; rows < want; {
		message, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return result, err
		}
		data, ok := message.(*pgproto3.CopyData)
		switch {
		case !ok:
			return result, fmt.Errorf("the server sent %T", message)
		case data.Data[0] == 'w' && data.Data[dataHeader] == 'I':
			if rows == 0 {
				result.First = time.Now()
			}
			rows++
			result.Bytes += int64(len(data.Data) - dataHeader)
		case data.Data[0] == 'k' && data.Data[17] == 1:
			if err := answer(conn); err != nil {
				return result, err
			}
		}
	}
	result.Last = time.Now()
	return result, nil
}

// answer is a status update that confirms nothing.
func answer(conn *pgconn.PgConn) error {
	update := make([]byte, 1+4*8+1)
	update[0] = 'r'
	binary.BigEndian.PutUint64(update[1:], 1) // written, so that the server knows we live; flushed and applied stay 0
	frame, err := (&pgproto3.CopyData{Data: update}).Encode(nil)
	if err != nil {
		return err
	}
	return conn.Frontend().SendUnbufferedEncodedCopyData(frame)
}
