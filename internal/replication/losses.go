package replication

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// losses is why changes of the table are missed now, by cause; away is the present name of what had the table's name before.
func losses(t *Table, now *tableState, was *knownTable, pub *publicationState, away string) map[cdc.GapCause]*loss {
	list := lossList{}
	switch {
	case now.OID == 0 && away != "":
		list.add(cdc.GapDropped, "the table is called "+away+" now, and its changes come under that name", false)
	case now.OID == 0:
		list.add(cdc.GapDropped, "the table does not exist any more", false)
	case now.Kind != "r" && now.Kind != "p":
		list.add(cdc.GapReplaced, fmt.Sprintf("the name belongs to something that is no table (relkind %q)", now.Kind), false)
	default:
		unlogged(now, list)
		unpublished(t, now, was, pub, list)
	}
	return list
}

type lossList map[cdc.GapCause]*loss

func (l lossList) add(cause cdc.GapCause, reason string, noDeletes bool) {
	if known := l[cause]; known != nil {
		known.Reason += "; " + reason
		known.NoDeletes = known.NoDeletes && noDeletes
		return
	}
	l[cause] = &loss{Reason: reason, NoDeletes: noDeletes}
}

func unlogged(now *tableState, list lossList) {
	const logged = "p"
	if now.Persistence != logged {
		list.add(cdc.GapUnlogged, "the table is unlogged: its changes are not in the WAL", false)
		return
	}
	var leaves []string
	for i := range now.Members {
		if m := &now.Members[i]; m.leaf() && m.Persistence != logged {
			leaves = append(leaves, m.Name)
		}
	}
	if len(leaves) > 0 {
		list.add(cdc.GapUnlogged, "partitions are unlogged, so that their changes are not in the WAL: "+names(leaves), false)
	}
}

func unpublished(t *Table, now *tableState, was *knownTable, pub *publicationState, list lossList) {
	switch {
	case pub.OID == 0:
		list.add(cdc.GapUnpublished, "the publication does not exist", false)
		return
	case now.root != "":
		list.add(cdc.GapUnpublished, fmt.Sprintf("it is a partition of %s, which is mapped too: its changes come under that name only", now.root), false)
		return
	case !now.Sent && now.Kind == "p" && !pub.ViaRoot:
		list.add(cdc.GapUnpublished, "the publication sends its changes under the names of its partitions (publish_via_partition_root is off)", false)
		return
	case !now.Sent:
		list.add(cdc.GapUnpublished, "the publication does not send the table", false)
		return
	}
	var ops []string
	for _, op := range []struct {
		name       string
		wanted, is bool
	}{{"inserts", t.Insert, pub.Insert}, {"updates", t.Update, pub.Update}, {"deletes", t.Delete, pub.Delete}, {"truncates", t.Truncate, pub.Truncate}} {
		if op.wanted && !op.is {
			ops = append(ops, op.name)
		}
	}
	if len(ops) > 0 {
		list.add(cdc.GapUnpublished, "the publication leaves out "+names(ops), pub.Delete && (pub.Truncate || was.filesBefore(cdc.GapUnpublished) == now.files()))
	}
	if now.Filter != "" && now.Filter != was.BaseFilter {
		list.add(cdc.GapUnpublished, "the publication has a row filter on it", false)
	}
	if now.Columns != nil && !covers(now.Columns, was.BaseColumns) {
		list.add(cdc.GapUnpublished, "the publication sends only some of its columns", true)
	}
}

// covers reports whether a column list has every column of an earlier one; nil stands for all columns.
func covers(now, before []string) bool {
	if before == nil {
		return false
	}
	for _, c := range before {
		if !slices.Contains(now, c) {
			return false
		}
	}
	return true
}

// files changes with every TRUNCATE of the table or of a partition, and with their number.
func (t *tableState) files() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, t.OID, t.File)
	for i := range t.Members {
		fmt.Fprint(h, " ", t.Members[i].OID, t.Members[i].Attached, t.Members[i].File)
	}
	return h.Sum64()
}

// filesBefore is files as they were when nothing was missed.
func (t *knownTable) filesBefore(cause cdc.GapCause) uint64 {
	if l := t.Missing[cause]; l != nil {
		return l.Files
	}
	return t.files()
}

// remedy is the SQL that ends a loss, or what to do instead; empty where it is over by itself.
func remedy(t *Table, now *tableState, cause cdc.GapCause, cfg *Config) string {
	table, publication := quoteTable(*t), pgx.Identifier{cfg.Publication}.Sanitize()
	switch {
	case cause == cdc.GapDropped, now.Kind != "r" && now.Kind != "p":
		return "give the name to the right table again, or remove the mappings of " + t.String()
	case cause == cdc.GapUnlogged:
		return unloggedRemedy(table, now)
	case now.root != "":
		return "remove the mappings of " + t.String() + ", or those of " + now.root
	case cfg.Manage:
		return "see the log for why the publication could not be repaired; the role must own the table"
	case !now.Sent && now.Kind == "p":
		return "run: ALTER PUBLICATION " + publication + " SET (publish_via_partition_root = true)"
	case !now.Sent:
		return "run: ALTER PUBLICATION " + publication + " ADD TABLE " + table
	}
	return "run: ALTER PUBLICATION " + publication + " SET (publish = 'insert, update, delete, truncate'), and take row filters and column lists" +
		" out with ALTER PUBLICATION " + publication + " SET TABLE"
}

func unloggedRemedy(table string, now *tableState) string {
	if now.Persistence != "p" {
		return "run: ALTER TABLE " + table + " SET LOGGED"
	}
	var statements []string
	for i := range now.Members {
		if m := &now.Members[i]; m.leaf() && m.Persistence != "p" {
			statements = append(statements, "ALTER TABLE "+m.Name+" SET LOGGED")
		}
	}
	return "run: " + strings.Join(statements, "; ")
}

// event is something that happened to a table between two surveys.
type event struct {
	cause     cdc.GapCause
	reason    string
	noDeletes bool
}

// publicationEvent tells what happened to the whole publication, nil for nothing.
func publicationEvent(was, now *publicationState) *event {
	switch {
	case was.OID == 0 || now.OID == 0:
		return nil // a loss that begins or ends
	case was.OID != now.OID:
		return &event{cause: cdc.GapUnpublished, reason: "the publication was dropped and made again"}
	}
	same := *was
	same.XMin = now.XMin
	if was.XMin != now.XMin && same == *now { // any difference would explain it
		return &event{cause: cdc.GapUnpublished, reason: "the publication was changed and changed back, and may have left out changes meanwhile"}
	}
	return nil
}

// tableEvents compares two states of a table but for its partitions.
func tableEvents(was *knownTable, now *tableState) []event {
	switch {
	case was.OID == 0 || now.OID == 0:
		return nil
	case was.OID != now.OID:
		return []event{{
			cause:  cdc.GapReplaced,
			reason: "another table has the name now: rows that it had before it was published were not sent, and rows of the one before are still with the sinks",
		}}
	case was.Entry != 0 && now.Entry != 0 && was.Entry != now.Entry && was.Filter == now.Filter && slices.Equal(was.Columns, now.Columns):
		return []event{{cause: cdc.GapUnpublished, reason: "the table was taken out of the publication and put back"}}
	}
	return nil
}
