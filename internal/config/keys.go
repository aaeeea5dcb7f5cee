package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/secret"
)

// file is the section of a whole configuration file.
type file struct{ *Config }

func (f file) keys() []key {
	return []key{
		{name: "source", value: sectionValue{&f.Source}, required: true, doc: "The Postgres database that changes are read from."},
		{name: "buffer", value: sectionValue{&f.Buffer}, doc: "Where changes are kept until every sink has them."},
		{name: "admin", value: sectionValue{&f.Admin}, doc: "The listener for health, metrics, the API and the commands that speak to a running daemon."},
		{name: "shutdown", value: sectionValue{&f.Shutdown}, doc: "How the daemon ends."},
		{name: "log", value: sectionValue{&f.Log}, doc: "What is written to stderr."},
		{name: "sinks", value: sinkMap(&f.Sinks), required: true, doc: "The vendor endpoints to keep in step, by names of your choice."},
		{
			name: "include", value: list[string]{&f.include, text},
			doc: "Files with more `mappings`, as globs relative to this file. They may hold nothing else, so that they need no access to secrets.",
		},
		{name: "mappings", value: mappingList(&f.Mappings), doc: "Which rows go to which sink, and what they look like there."},
	}
}

// mappingFile is the section of an included file.
type mappingFile struct{ mappings *[]Mapping }

func (f mappingFile) keys() []key {
	return []key{
		{name: "mappings", value: mappingList(f.mappings), required: true, doc: "Which rows go to which sink, and what they look like there."},
	}
}

func (s *Source) keys() []key {
	const slotName, slotHint = `^[a-z0-9_]{1,63}$`, "up to 63 of a-z, 0-9 and _"
	return slices.Concat(
		withFile(key{
			name: "url", required: true,
			doc: "The database, as a libpq URL or DSN. TLS, several hosts with `target_session_attrs`, unix sockets and the `PG…` variables work as in psql. " +
				"The user needs `REPLICATION`, and `SELECT` on the mapped tables for backfills and read-backs.",
		}, &s.URL, postgresURL),
		withFile(key{
			name: "query_url", derived: "`url`",
			doc: "Where lookups and read-backs are asked, such as a replica. It may lag: what it returns is used only once it has seen the change that asks. " +
				"It may lead through pgbouncer, in session or transaction mode; `url` may not.",
		}, &s.QueryURL, postgresURL),
		[]key{
			{
				name: "query_timeout", value: duration(&s.QueryTimeout, time.Millisecond),
				fallback: "30s", // a batch of keys by index takes milliseconds: what needs 30 s lacks one
				doc:      "Statement time-out there. A query that exceeds it blocks its sink, says so and is tried again.",
			},
			{
				name: "slot", value: matching(&s.Slot, "a slot name", slotName, slotHint), fallback: "cdcsync",
				doc: "The logical replication slot. A second daemon on the same slot waits as a hot standby.",
			},
			{
				name: "publication", value: matching(&s.Publication, "a publication name", `^\S(.{0,61}\S)?$`, "up to 63 characters"), derived: "the slot's name",
				doc: "The publication, which names exactly the mapped tables.",
			},
			{
				name: "survey", value: duration(&s.Survey, 100*time.Millisecond),
				fallback: "10s", // some milliseconds of the server's time for 50 tables
				doc: "How often the source is asked whether anything keeps changes from the stream: renamed, replaced or dropped tables, another tool's " +
					"`ALTER PUBLICATION`, partitions that come and go with rows. It bounds for how long a gap goes unseen.",
			},
			{
				name: "repair", value: enum(&s.Repair, RepairAsk, RepairAuto), fallback: string(RepairAsk),
				doc: "Who starts the backfill that closes a gap, once nothing is missed any more: `ask` leaves it to an operator, `auto` to the daemon.",
			},
			{
				name: "manage", value: boolean(&s.Manage), fallback: "true",
				doc: "Make publication and slot when they are missing, and keep the publication's tables in step with the mappings. " +
					"With `false` they are only verified; the error shows the SQL that is missing.",
			},
		},
	)
}

func (b *Buffer) keys() []key {
	return []key{
		{
			name: "dir", value: text(&b.Dir), fallback: "./cdcsync-data",
			doc: "Folder of the embedded JetStream, relative to the working directory. It must outlive the process: a volume, in a container.",
		},
		{
			name: "nats", value: optional[NATS]{&b.NATS, func(n *NATS) section { return n }},
			doc: "An external NATS cluster with JetStream instead of `dir`, for when one machine is not enough.",
		},
		{
			name: "max_size", value: size(&b.MaxSize, "1MiB"),
			fallback: "10GiB", // 500 changes/s of 500 bytes are 250 kB/s: 12 hours of a vendor that is down
			doc:      "Most bytes to keep. When it is full the capture pauses, the slot holds the WAL and the status turns red; nothing is lost.",
		},
		{
			name: "max_row", value: size(&b.MaxRow, "64KiB"),
			fallback: "16MiB", // six times this fits beside the daemon's own memory into a container of 256 MiB
			doc: "Largest row that is carried, at most 64MiB, and largest item that is made of one. A larger one becomes a dead letter that names its table " +
				"and key, and costs no memory. Handling a large row takes three to five times its size, up to six times in a backfill and as a dead letter.",
		},
		{
			name: "ack", value: enum(&b.Ack, AckStored, AckDelivered), fallback: string(AckStored),
			doc: "When the slot may move. `stored`: when the buffer has the change, so that no vendor can make the source hold WAL. " +
				"`delivered`: when every sink has it, for a disk that does not last.",
		},
	}
}

func (n *NATS) keys() []key {
	return slices.Concat(
		withFile(key{name: "url", required: true, doc: "The servers, separated by commas: `nats://`, `tls://`, `ws://` or `wss://`."}, &n.URL, natsURL),
		[]key{
			{
				name: "replicas", value: whole(&n.Replicas, 1, 5),
				fallback: "3", // a majority of 3 survives the loss of one server
				doc:      "On how many servers a change is stored before it counts as stored. A single server takes 1.",
			},
			{name: "credentials_file", value: text(&n.CredentialsFile), derived: "none", doc: "A NATS `.creds` file."},
			{name: "ca_file", value: text(&n.CAFile), derived: "the system's", doc: "Certificates to trust, in PEM."},
			{name: "cert_file", value: text(&n.CertFile), derived: "none", doc: "The client's certificate, in PEM."},
			{name: "key_file", value: text(&n.KeyFile), derived: "none", doc: "The client's key, in PEM."},
		},
	)
}

func (a *Admin) keys() []key {
	return slices.Concat(
		[]key{{
			name: "listen", value: listenAddress(&a.Listen), fallback: "127.0.0.1:8484",
			doc: "Address for `/healthz`, `/readyz`, `/metrics`, `/api/v1` and the status page. Any other than a loopback address needs a token.",
		}},
		withFile(key{name: "token", derived: "none", doc: "Asked for as `Authorization: Bearer …`, except by `/healthz` and `/readyz`. The commands take it from here."}, &a.Token, anyText),
	)
}

func (s *Shutdown) keys() []key {
	return []key{{
		name: "grace", value: duration(&s.Grace, 0),
		fallback: "30s", // one request's time-out
		doc:      "How long requests in flight may take to end after SIGTERM. What has not ended by then is sent again at the next start.",
	}}
}

func (l *Log) keys() []key {
	return []key{
		{name: "level", value: enum(&l.Level, LogDebug, LogInfo, LogWarn, LogError), fallback: string(LogInfo), doc: "The least level to write. No level writes row values or secrets."},
		{name: "format", value: enum(&l.Format, LogText, LogJSON), fallback: string(LogText), doc: "`text` is key=value, `json` one object a line."},
	}
}

const (
	sinkName     = `^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`
	sinkNameHint = "letters, digits, - and _, and no more than 64 of them"
)

func sinkMap(into *[]Sink) value {
	return dictionary[Sink]{into, func(d *decoder, n *yaml.Node, path, name string, s *Sink) section {
		s.Name = name
		return d.sink(n, path, s)
	}, sinkName, sinkNameHint, sinkSchema}
}

// sink reads the type first, because the keys depend on it.
func (d *decoder) sink(n *yaml.Node, path string, s *Sink) section {
	d.places[place{d.file, path}] = n
	for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
		if n.Content[i].Value != "type" {
			continue
		}
		sinkType(&s.Type).decode(d, n.Content[i+1], join(path, "type"))
		if s.Type == "" {
			return nil
		}
		return typedSink{s}
	}
	if n.Kind != yaml.MappingNode && !isNull(n) {
		return typedSink{s} // which says that it must be a mapping
	}
	d.problem(n, join(path, "type"), "missing", "one of "+strings.Join(typeNames(SinkTypes()), ", "))
	return nil
}

func sinkType(into *SinkType) value { return enum(into, SinkTypes()...) }

func typeNames(types []SinkType) []string {
	list := make([]string, len(types))
	for i, t := range types {
		list[i] = string(t)
	}
	return list
}

// sinkDefaults are what differs between the types.
var sinkDefaults = map[SinkType]struct {
	items, most int // in a request; the most that may be configured
	concurrency int
	path        string // of the endpoint, below url
}{
	// 500 rows of 600 bytes are 300 kB a request. Two lanes: the vendor works on one batch while the other travels.
	StopChurn: {items: 500, most: 10_000, concurrency: 2, path: "/client-data/update"},
	// The endpoint takes one item. 8 lanes at 50 ms a request are 160 items a second.
	FanbaseQueue: {items: 1, most: 1, concurrency: 8, path: "/api/v1/integration/queue"},
	// A fan with documents, address and memberships is about 2 kB, so that 50 are 100 kB, and each is registered while we wait.
	FanbaseBatch: {items: 50, most: 1_000, concurrency: 2, path: "/api/v2/IF_ID_Batch"},
	// The vendor's limit.
	FanaticsApprovals: {items: 200, most: 200, concurrency: 2, path: "/v2/tier-points/accounts"},
}

// Defaults are how many items a request and how many lanes a sink of the type has unless the file says otherwise.
func Defaults(t SinkType) (items, concurrency int) {
	d := sinkDefaults[t]
	return d.items, d.concurrency
}

// typedSink is the section of a sink whose Type is known.
type typedSink struct{ *Sink }

func (s typedSink) keys() []key {
	first := []key{
		{name: "type", value: sinkType(&s.Type), required: true, doc: "The vendor's endpoint."},
		{name: "url", value: httpURL(&s.URL), required: true, doc: "Where the vendor's API is, without the endpoint's path."},
	}
	return slices.Concat(first, s.typeKeys(), s.engineKeys())
}

// misplaced finds the types that have the key.
func (s typedSink) misplaced(name string) (message, hint string) {
	var owners []SinkType
	for _, t := range SinkTypes() {
		if find(typedSink{&Sink{Type: t}}.keys(), name) != nil {
			owners = append(owners, t)
		}
	}
	if owners == nil {
		return "", ""
	}
	return fmt.Sprintf("%s has no such key", s.Type), "it belongs to " + strings.Join(typeNames(owners), ", ")
}

// typeKeys are those of one type alone.
func (s typedSink) typeKeys() []key {
	login := key{name: "auth", value: sectionValue{credentials{&s.Auth, s.Type}}, required: true, doc: "Client credentials for the token that every request carries. Sinks with the same ones share the token."}
	switch s.Type {
	case StopChurn:
		return withFile(key{name: "api_key", required: true, doc: "The client API token, sent as a bearer token."}, &s.APIKey, anyText)
	case FanbaseQueue:
		return []key{
			login,
			{
				name: "confirm", value: enum(&s.Confirm, ConfirmProcessed, ConfirmAccepted), fallback: string(ConfirmProcessed),
				doc: "When an item counts as delivered. `processed`: the queue is asked until it says completed or failed. `accepted`: the answer 201 is enough.",
			},
			{
				name: "confirm_timeout", value: duration(&s.ConfirmTimeout, time.Second),
				fallback: "10m", // the vendor's example processes within 5 minutes
				doc:      "How long the queue may take to process an item before it becomes a dead letter.",
			},
			{
				name: "polls", value: rate(&s.Polls),
				fallback: "200/s", // 8 lanes at 50 ms are 160 items a second, each asked about at least once
				doc:      "At most so many questions about queued items.",
			},
		}
	case FanbaseBatch:
		return []key{login, {
			name: "system_id", value: whole(&s.SystemID, 0, math.MaxInt32), required: true,
			doc: "The `systemId` of the source system, given by Fanbase.",
		}}
	case FanaticsApprovals:
		return []key{login, {
			name: "invite_only_tiers", value: list[string]{&s.InviteOnlyTiers, uuid}, derived: "any",
			doc: "The tier ids that may be approved. An item with another one becomes a dead letter before it is sent.",
		}}
	}
	return nil
}

// engineKeys are the delivery's, which all types have.
func (s typedSink) engineKeys() []key {
	defaults := sinkDefaults[s.Type]
	return []key{
		{name: "batch", value: sectionValue{batch{&s.Batch, defaults.items, defaults.most}}, doc: "How large a request may be."},
		{
			name: "concurrency", value: whole(&s.Concurrency, 1, 1024), fallback: strconv.Itoa(defaults.concurrency),
			doc: "Lanes: requests in flight. The changes of one key always take the same lane, in order. On 429 and slow answers fewer are used for a while.",
		},
		{
			name: "rate", value: rate(&s.Rate), fallback: unlimited,
			doc: "At most so many requests.",
		},
		{
			name: "account", value: matching(&s.Account, "an account name", sinkName, sinkNameHint), derived: "the sink's name",
			doc: "Sinks with the same account share one `rate`, which one of them says.",
		},
		{
			name: "timeout", value: duration(&s.Timeout, time.Millisecond),
			fallback: "30s", // slow answers of a batch take seconds; a dead connection costs a lane no more than this
			doc:      "For one request, from connecting to the last byte of the answer.",
		},
		{name: "retry", value: sectionValue{&s.Retry}, doc: "The pause between attempts of one request. There is no limit to their number, unless one item fails while others are taken."},
		{name: "dead_letters", value: sectionValue{&s.DeadLetters}, doc: "Items that the vendor will not take."},
	}
}

// credentials is the section of a sink's auth.
type credentials struct {
	*Auth
	of SinkType
}

func (c credentials) keys() []key {
	keys := slices.Concat(
		[]key{
			{name: "url", value: httpURL(&c.URL), required: true, doc: "The vendor's token endpoint, with its path."},
			{name: "client_id", value: text(&c.ClientID), required: true, doc: "Given by the vendor."},
		},
		withFile(key{name: "client_secret", required: true, doc: "Given by the vendor."}, &c.ClientSecret, anyText),
	)
	if c.of == FanaticsApprovals {
		keys = append(keys, key{
			name: "scope", value: text(&c.Scope), fallback: "tier_points:override", // what the endpoint's page requires
			doc: "The scopes to ask for, separated by spaces.",
		})
	}
	return keys
}

// batch is the section of a sink's batch.
type batch struct {
	*Batch
	items, most int
}

func (b batch) keys() []key {
	return []key{
		{name: "items", value: whole(&b.Items, 1, b.most), fallback: strconv.Itoa(b.items), doc: "Most items in a request."},
		{
			name: "bytes", value: size(&b.Bytes, "1KiB"),
			fallback: "1MiB", // what common proxies in front of an API take by default
			doc:      "Most bytes of a request's body. An item that is larger by itself is sent alone.",
		},
		{
			name: "wait", value: duration(&b.Wait, 0), fallback: "0s",
			doc: "How long an idle lane waits for more. While a request is in flight the next batch fills anyway, so that `0s` is seldom worse.",
		},
	}
}

func (r *Retry) keys() []key {
	return []key{
		{
			name: "min", value: duration(&r.Min, time.Millisecond),
			fallback: "500ms", // doubles 7 times until max
			doc:      "The first pause. It doubles with each attempt, a random part of it is waited, and never less than the vendor's `Retry-After`.",
		},
		{
			name: "max", value: duration(&r.Max, time.Millisecond),
			fallback: "1m", // a vendor that is back is found within a minute
			doc:      "The longest pause.",
		},
		{
			name: "max_wait", value: duration(&r.MaxWait, time.Second),
			fallback: "15m", // longer than limits by the minute, short enough for a slip of the vendor's to do no harm
			doc:      "The longest `Retry-After` that is heeded. `cdcsync resume` tries at once.",
		},
		{
			name: "give_up", value: duration(&r.GiveUp, time.Second),
			fallback: "1h", // a deployment of the vendor's that fails for some items is noticed and undone within it
			doc: "How long an item may fail by itself, while the vendor takes others, before it becomes a dead letter; at least ten attempts. " +
				"An outage, in which nothing is taken, never makes one.",
		},
	}
}

func (l *DeadLetters) keys() []key {
	return []key{{
		name: "limit", value: whole(&l.Limit, 1, 1_000_000),
		fallback: "1000", // enough for a bad day of data, and early enough for a mistake in a mapping
		doc:      "So many records with unresolved dead letters pause the sink, over restarts, so that one mistake in a mapping does not park a million rows. A record that is refused again counts once.",
	}}
}

func mappingList(into *[]Mapping) value {
	return sections[Mapping]{into, func(d *decoder, n *yaml.Node, path string, m *Mapping) section {
		if d != nil {
			m.File, m.Path, m.Line = d.file, path, n.Line
		}
		return m
	}}
}

const (
	mappingName = `^[^\s/]{1,200}$`
	lookupName  = `^[A-Za-z_][A-Za-z0-9_]*$`
)

func (m *Mapping) keys() []key {
	return []key{
		{
			name: "name", value: matching(&m.Name, "a name", mappingName, "leave out spaces and slashes"), derived: "`schema.table:sink`",
			doc: "What messages, dead letters and backfills call the mapping. Needed when a table has several mappings to one sink.",
		},
		{
			name: "table", value: table(&m.Table), required: true,
			doc: "The table, as `schema.table`; the schema may be left out when it is `public`. A partitioned table is named by its root. Names are exact, without case folding.",
		},
		{name: "sink", value: text(&m.Sink), required: true, doc: "The name of a sink."},
		{
			name: "on", value: list[cdc.Op]{&m.On, operation}, derived: "the sink type's: all three, but for the Fanbase types no `delete`; with `refresh` all three",
			doc: "Which operations are sent: `insert`, `update`, `delete`.",
		},
		{
			name: "when", value: template{&m.When, "expression", schema{"type": "string"}}, derived: "every row",
			doc: "Only rows for which this expression is true are sent.",
		},
		{
			name: "leave", value: enum(&m.Leave, LeaveDelete, LeaveKeep), derived: "`delete` for stopchurn and fanatics_approvals, else `keep`",
			doc: "What becomes at the vendor of a row that an update takes out of `when`. `delete`: its record is deleted, or withdrawn, which needs `REPLICA IDENTITY FULL`. `keep`: it stays as it was last sent.",
		},
		{
			name: "key", value: template{&m.Key, "template", schema{}}, derived: "what identifies the record to the vendor; for fanbase_batch the primary key",
			doc: "Changes with the same key are delivered in order, beside those of one record of the vendor's, which always are. For fanbase_batch also what is coalesced. A template, or a list of them.",
		},
		{
			name: "coalesce", value: enum(&m.Coalesce, CoalesceNone, CoalesceLatest), derived: "`none` for stopchurn, else `latest`",
			doc: "What becomes of several changes of one key within a batch. `none`: each is sent. `latest`: the last state is sent.",
		},
		{
			name: "item", value: template{&m.Item, "template", schema{"type": "object"}},
			doc: "What is sent, in the vendor's own field names. A plain value is itself, `$column` is a column, `=expression` is computed, `\"*\"` spreads the row's columns. " +
				"Either this or `refresh`.",
		},
		{
			name: "lookups", value: lookupMap(&m.Lookups),
			doc: "Queries on the source, asked once for a batch of rows. Expressions see the result as `lookup.<name>`.",
		},
		{
			name: "refresh", value: optional[Refresh]{&m.Refresh, func(r *Refresh) section { return r }},
			doc: "Send the item of another table again when a row of this one changes, once however many did. Either this or `item`.",
		},
		{
			name: "parents", value: sections[Parent]{&m.Parents, func(_ *decoder, _ *yaml.Node, _ string, p *Parent) section { return p }}, derived: "none",
			doc: "Records that must be delivered before this one, such as an order's user.",
		},
		{
			name: "backfill", value: enum(&m.Backfill, BackfillNone, BackfillInitial), fallback: string(BackfillNone),
			doc: "`initial` sends the rows that exist already when the mapping is first seen, merged exactly with the changes.",
		},
	}
}

func lookupMap(into *[]Lookup) value {
	return dictionary[Lookup]{into, func(_ *decoder, _ *yaml.Node, _, name string, l *Lookup) section {
		l.Name = name
		return l
	}, lookupName, "letters, digits and _, beginning with a letter", func() schema { return sectionSchema(&Lookup{}) }}
}

func (l *Lookup) keys() []key {
	return []key{
		{name: "key", value: template{&l.Key, "template", schema{"type": "string"}}, required: true, doc: "What to look up, from the row: `$column` or `=expression`."},
		{
			name: "sql", value: verbatim{&l.SQL, lookupSQL}, required: true,
			doc: "The query. `$1` is the array of keys, and the first column of the result is the key; the others become the record.",
		},
		{name: "many", value: boolean(&l.Many), fallback: "false", doc: "Give a list of records, empty when there is none, instead of one record or null."},
	}
}

func lookupSQL(sql string) error {
	if !strings.Contains(sql, "$1") {
		return &mistake{message: "does not use $1, the array of keys: end it with where … = any($1)"}
	}
	return nil
}

func (p *Parent) keys() []key {
	return []key{
		{name: "mapping", value: text(&p.Mapping), required: true, doc: "The name, or the table, of a mapping to the same sink."},
		{name: "key", value: template{&p.Key, "template", schema{"type": "string"}}, required: true, doc: "That record's key, from this row: `$column` or `=expression`. Null means that there is none."},
	}
}

func (r *Refresh) keys() []key {
	return []key{
		{name: "table", value: table(&r.Table), required: true, doc: "The table whose item is sent again. It has a mapping to the same sink."},
		{name: "key", value: text(&r.Key), required: true, doc: "The column of that table to find the row by."},
		{name: "by", value: template{&r.By, "template", schema{"type": "string"}}, required: true, doc: "The value to find it by, from the row of this table: `$column` or `=expression`."},
	}
}

// withFile completes k, a secret, and adds its twin, the name of a file that holds it.
func withFile(k key, into *secret.String, check func(string) error) []key {
	k.value = credential(into, check)
	k.twin = k.name + "_file"
	return []key{k, {
		name: k.twin, value: secretFile{into, check}, required: k.required, twin: k.name,
		doc: fmt.Sprintf("A file that holds `%s`, relative to this file; white space around it is left out.", k.name),
	}}
}
