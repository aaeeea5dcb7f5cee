package sandbox

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/cdcsync/cdcsync/internal/sinks"
)

// Row is the last state of a row of StopChurn's, after its deletes.
type Row struct {
	Brand     string          `json:"brandId"`
	Table     string          `json:"tableName"`
	ID        string          `json:"id"`
	Data      json.RawMessage `json:"data"`
	CreatedAt int64           `json:"createdAt"`
	UpdatedAt int64           `json:"updatedAt"`
	Seq       uint64          `json:"seq"` // of the item that made it so
}

type rowKey struct{ brand, table, id string }

// churn is what StopChurn knows. Server.mu guards it.
type churn struct {
	columns map[string]map[string]struct{} // by table: those that any row had
	rows    map[rowKey]Row
}

func newChurn() churn {
	return churn{columns: make(map[string]map[string]struct{}), rows: make(map[rowKey]Row)}
}

// update is one element of the request.
type update struct {
	op      string
	row     Row
	columns []string
	raw     json.RawMessage
}

func stopchurnFailure(status int, reason string) any {
	body := map[string]any{"statusCode": status, "error": http.StatusText(status), "message": reason}
	if status == http.StatusBadRequest {
		body["message"] = "Update reception failed: " + reason
	}
	return body
}

// stopchurnUpdate takes all updates of a request or none. The page's only answers are 200, 400 and 401.
func (s *Server) stopchurnUpdate(r *request) answer {
	if bearer(r.http.Header) != s.config.APIKey {
		return r.refuse(http.StatusUnauthorized, "Invalid client api token")
	}
	received := answer{status: http.StatusOK, body: map[string]any{"statusCode": http.StatusOK, "message": "Updates received"}}
	if s.config.CountOnly {
		// A quote within a JSON string is escaped, so that this is always a name.
		received.accepted = bytes.Count(r.body, []byte(`"tableName":`))
		return received
	}
	updates, reason := parseUpdates(r.body)
	for i := range updates {
		if reason != "" {
			break
		}
		if message, hit := s.faults.rejects(Reject, r.endpoint.name, updates[i].row.ID, updates[i].raw); hit {
			reason = message
		}
	}
	if reason == "" {
		reason = s.applyUpdates(r, updates)
	}
	if reason != "" {
		return r.refuse(http.StatusBadRequest, reason)
	}
	received.accepted = len(updates)
	return received
}

func parseUpdates(body []byte) (updates []update, reason string) {
	if err := document(body); err != nil {
		return nil, err.Error()
	}
	top, err := members(body)
	if err != nil {
		return nil, err.Error()
	}
	for _, m := range top {
		if m.name != "data" {
			return nil, m.name + " is not a field of this endpoint"
		}
	}
	list, err := elements(top.get("data"))
	switch {
	case err != nil:
		return nil, "data " + err.Error()
	case len(list) == 0:
		return nil, "data is empty"
	}
	updates = make([]update, len(list))
	for i, raw := range list {
		if reason := updates[i].parse(raw); reason != "" {
			return nil, fmt.Sprintf("data[%d].%s", i, reason)
		}
	}
	return updates, ""
}

// parse reads one update; the reason it returns begins with the path.
func (u *update) parse(raw json.RawMessage) (reason string) {
	u.raw = bytes.Clone(raw) // what is kept must not keep the whole body
	outer, reason := exactly("", u.raw, "type", "data")
	if reason != "" {
		return reason
	}
	u.op = text(outer.get("type"))
	if u.op != "insert" && u.op != "update" && u.op != "delete" {
		return "type is none of insert, update, delete"
	}
	envelope, reason := exactly("data.", outer.get("data"), "brandId", "tableName", "data", "createdAt", "updatedAt")
	if reason != "" {
		return reason
	}
	flaws := check("data", outer.get("data"), stopchurnShape)
	if reason := cmp.Or(reasons(flaws, true), reasons(flaws, false)); reason != "" {
		return reason
	}
	brand := integer(envelope.get("brandId"))
	u.row = Row{Brand: strconv.FormatInt(brand, 10), Table: text(envelope.get("tableName")), Data: envelope.get("data")}
	u.row.CreatedAt = integer(envelope.get("createdAt"))
	u.row.UpdatedAt = integer(envelope.get("updatedAt"))
	return u.parseRow()
}

var stopchurnShape = elementShape(sinks.TypeStopChurn)

func (u *update) parseRow() (reason string) {
	row, err := members(u.row.Data)
	if err != nil {
		return "data.data " + err.Error()
	}
	if id := row.get("id"); kindOf(id) == kindNumber {
		u.row.ID = string(id)
	} else {
		u.row.ID = text(id)
	}
	u.columns = make([]string, 0, len(row))
	for _, m := range row {
		u.columns = append(u.columns, m.name)
	}
	return ""
}

// exactly returns the values of an object that has these fields and no others.
func exactly(path string, raw json.RawMessage, names ...string) (values object, reason string) {
	values, err := members(raw)
	if err != nil {
		return nil, strings.TrimSuffix(path, ".") + " " + err.Error()
	}
	for _, name := range names {
		if values.get(name) == nil {
			return nil, path + name + " is missing"
		}
	}
	for _, m := range values {
		if !slices.Contains(names, m.name) {
			return nil, path + m.name + " is not a field of this endpoint"
		}
	}
	return values, ""
}

// applyUpdates checks the rows against the columns of the rows before, and stores them when all are whole.
func (s *Server) applyUpdates(r *request, updates []update) (reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.config.StopChurnLooseColumns {
		if reason := s.churn.learn(updates); reason != "" {
			return reason
		}
	}
	for i := range updates {
		u := &updates[i]
		u.row.Seq = s.record.item(r, Item{Op: u.op, Table: u.row.Table, Key: u.row.ID, Body: u.raw})
		key := rowKey{u.row.Brand, u.row.Table, u.row.ID}
		if u.op == "delete" {
			delete(s.churn.rows, key)
			continue
		}
		s.churn.rows[key] = u.row
	}
	return ""
}

// learn adds the updates' columns to their tables', unless a row lacks some that rows before it had.
func (c *churn) learn(updates []update) (reason string) {
	added := make(map[string]map[string]struct{})
	for i, u := range updates {
		known, fresh := c.columns[u.row.Table], added[u.row.Table]
		if fresh == nil {
			fresh = make(map[string]struct{})
			added[u.row.Table] = fresh
		}
		before := len(known) + len(fresh)
		shared := 0
		for _, name := range u.columns {
			_, old := known[name]
			_, new := fresh[name]
			switch {
			case old || new:
				shared++
			default:
				fresh[name] = struct{}{}
			}
		}
		if shared < before {
			return fmt.Sprintf("data[%d].data.data lacks columns that earlier rows of table %s had: %s", i, u.row.Table, lacking(u.columns, known, fresh))
		}
	}
	for table, names := range added {
		if c.columns[table] == nil {
			c.columns[table] = make(map[string]struct{})
		}
		for name := range names {
			c.columns[table][name] = struct{}{}
		}
	}
	return ""
}

func lacking(columns []string, sets ...map[string]struct{}) string {
	var names []string
	for _, set := range sets {
		for name := range set {
			if !slices.Contains(columns, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Rows returns StopChurn's rows of a table, or of all for "", ordered by table, brand and id.
func (s *Server) Rows(table string) []Row {
	s.mu.Lock()
	rows := make([]Row, 0, len(s.churn.rows))
	for key, row := range s.churn.rows {
		if table == "" || key.table == table {
			rows = append(rows, row)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Brand, b.Brand), cmp.Compare(a.ID, b.ID))
	})
	return rows
}
