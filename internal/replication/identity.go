package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Identity is what a pipeline is: one slot of one database of one server.
type Identity struct {
	System   string `json:"system"`   // system identifier
	Database uint32 `json:"database"` // OID
	Name     string `json:"name"`     // of the database
	Slot     string `json:"slot"`
}

// Identify asks the source.
func Identify(ctx context.Context, cfg Config) (Identity, error) {
	server, err := dialServer(ctx, cfg.URL, DefaultMaxRow)
	if err != nil {
		return Identity{}, connectError(err, false)
	}
	defer server.close(ctx)
	now, err := server.wire.identify(ctx)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{System: now.id, Slot: cfg.Slot}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = server.asks().QueryRow(ctx, "select oid, datname::text from pg_database where datname = current_database()").Scan(&id.Database, &id.Name)
	if err != nil {
		return Identity{}, fmt.Errorf("database: %w", err)
	}
	return id, nil
}

// Claim checks the identity against those that a log has: what Claim gave before, and what SetSource stored, nil for nothing. It
// returns what is to be stored with the log before anything of it is used. An *Error says that the log belongs to another pipeline.
func (id Identity) Claim(claimed, source []byte) ([]byte, error) {
	known, err := decodeIncarnation(source)
	if err != nil {
		return nil, err
	}
	if len(claimed) > 0 {
		var before Identity
		if err := json.Unmarshal(claimed, &before); err != nil {
			return nil, &Error{Reason: "what the buffer says of its pipeline cannot be read: " + err.Error(), Solution: "run the version of cdcsync that wrote the buffer"}
		}
		known = &incarnation{System: before.System, Slot: before.Slot, Database: before.Database, Name: before.Name}
	}
	if known != nil {
		if err := known.foreign(id); err != nil {
			return nil, err
		}
	}
	claim, err := json.Marshal(id)
	if err != nil { // strings and numbers always marshal
		return nil, fmt.Errorf("identity: %w", err)
	}
	return claim, nil
}

// Trusts reports whether a log, by what SetSource stored, belongs to the source as it is configured, as far as that can be told
// without asking it. One that was never used does.
func Trusts(cfg Config, source []byte) bool {
	known, err := decodeIncarnation(source)
	if err != nil {
		return false
	}
	return known == nil || known.Slot == cfg.Slot && known.Address == address(cfg.URL)
}

// foreign refuses a log of another pipeline. A database that was made anew under its name is not one.
func (inc *incarnation) foreign(id Identity) error {
	switch {
	case inc.System != id.System:
		return &Error{
			Reason: fmt.Sprintf("the buffer holds changes of another server (system identifier %s, this one has %s): positions of the two cannot be compared",
				inc.System, id.System),
			Solution: "correct source.url, or give this source a buffer of its own (buffer.dir, or another source.slot where two share buffer.nats)",
		}
	case inc.Slot != id.Slot:
		return &Error{
			Reason:   fmt.Sprintf("the buffer holds changes of slot %q, the configuration says %q", inc.Slot, id.Slot),
			Solution: "correct source.slot, or give this slot a buffer of its own (buffer.dir)",
		}
	case inc.Database != 0 && inc.Database != id.Database && inc.Name != id.Name:
		return &Error{
			Reason:   fmt.Sprintf("the buffer holds changes of database %q, and source.url names %q on the same server", inc.Name, id.Name),
			Solution: "correct source.url, or give this database a buffer of its own (buffer.dir, or another source.slot where two share buffer.nats)",
		}
	}
	return nil
}

// address is where a URL leads, without who asks.
func address(url string) string {
	cfg, err := parseURL(url)
	if err != nil {
		return ""
	}
	hosts := []string{net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))}
	for _, other := range cfg.Fallbacks {
		host := net.JoinHostPort(other.Host, strconv.Itoa(int(other.Port)))
		if hosts[len(hosts)-1] != host { // each is there twice where TLS is optional
			hosts = append(hosts, host)
		}
	}
	return strings.Join(hosts, ",") + "/" + cfg.Database
}
