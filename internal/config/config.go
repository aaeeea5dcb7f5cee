// Package config reads cdcsync's YAML: strictly, with defaults, variables and secrets, telling all mistakes at once with their places.
//
// What a key is called, what it takes, its default and its meaning stand in one place, the keys methods of keys.go. Strict
// decoding, the JSON Schema (Schema) and the tables of docs/configuration.md come from there.
//
// The templates of a mapping (item, when, key, lookups, refresh.by) are handed on as YAML nodes: they belong to package
// mapping, and no ${VARIABLE} is expanded in them.
package config

import (
	"net"
	"net/netip"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/problem"
	"github.com/cdcsync/cdcsync/internal/secret"
)

// Config is a whole configuration as Load returns it: every value checked, every default filled in.
type Config struct {
	File     string // what Load was given, in its shortest form
	Source   Source
	Buffer   Buffer
	Admin    Admin
	Shutdown Shutdown
	Log      Log
	Sinks    []Sink       // in the order of the file
	Mappings []Mapping    // in the order of the file, then of the included files by name
	Warnings problem.List // allowed, and yet likely to be a mistake

	include []string // globs, relative to File's folder
}

// Source is the Postgres database that changes are read from.
type Source struct {
	URL          secret.String // libpq URL or DSN: it may hold a password
	QueryURL     secret.String // where lookups and read-backs are asked; the same as URL unless the file says otherwise
	QueryTimeout time.Duration // for one statement there
	Slot         string
	Publication  string
	Survey       time.Duration // how often the source is asked whether changes are kept from the stream
	Repair       Repair        // what becomes of a gap
	Manage       bool          // create slot and publication when missing, keep the publication's tables in step with the mappings
}

// Repair says who starts the backfill that closes a gap.
type Repair string

// The choices of Repair.
const (
	RepairAsk  Repair = "ask"  // an operator
	RepairAuto Repair = "auto" // the daemon
)

// Buffer is where changes are kept until every sink has them.
type Buffer struct {
	Dir     string // of the embedded JetStream, relative to the working directory; empty with NATS
	MaxSize Size
	MaxRow  Size // the largest row that is carried, and the largest item that is made of one
	Ack     Ack
	NATS    *NATS // an external cluster; nil means embedded
}

// Ack says when the slot may move.
type Ack string

// The choices of Ack.
const (
	AckStored    Ack = "stored"    // when the buffer has the change
	AckDelivered Ack = "delivered" // when every sink has it
)

// NATS is an external JetStream cluster.
type NATS struct {
	URL             secret.String // one or more, separated by commas; may hold a password
	Replicas        int
	CredentialsFile string // an NKey/JWT credentials file; empty for none
	CAFile          string // PEM; empty for the system's
	CertFile        string // PEM, of the client, with KeyFile; empty for none
	KeyFile         string
}

// Admin is the listener for health, metrics, the API and the commands that speak to a running daemon.
type Admin struct {
	Listen string        // host:port
	Token  secret.String // asked for as a bearer token; always set when Listen is not a loopback address
}

// Shutdown is how the daemon ends.
type Shutdown struct {
	Grace time.Duration // for requests in flight to end after SIGTERM
}

// Log is what is written to stderr.
type Log struct {
	Level  LogLevel
	Format LogFormat
}

// LogLevel is the least level that is written.
type LogLevel string

// The levels.
const (
	LogDebug LogLevel = "debug"
	LogInfo  LogLevel = "info"
	LogWarn  LogLevel = "warn"
	LogError LogLevel = "error"
)

// LogFormat is how a log line looks.
type LogFormat string

// The formats.
const (
	LogText LogFormat = "text" // key=value
	LogJSON LogFormat = "json" // one object a line
)

// SinkType names a vendor's endpoint.
type SinkType string

// The sink types.
const (
	StopChurn         SinkType = "stopchurn"
	FanbaseQueue      SinkType = "fanbase_queue"
	FanbaseBatch      SinkType = "fanbase_batch"
	FanaticsApprovals SinkType = "fanatics_approvals"
)

// SinkTypes lists all types, in the order of the reference.
func SinkTypes() []SinkType {
	return []SinkType{StopChurn, FanbaseQueue, FanbaseBatch, FanaticsApprovals}
}

// Sink is one vendor endpoint to keep in step. Which of its fields are set depends on Type.
type Sink struct {
	Name string
	Type SinkType
	URL  string // http or https, without the endpoint's path

	APIKey secret.String // stopchurn
	Auth   Auth          // the other types

	Confirm        Confirm       // fanbase_queue
	ConfirmTimeout time.Duration // fanbase_queue
	Polls          Rate          // fanbase_queue

	SystemID int64 // fanbase_batch

	InviteOnlyTiers []string // fanatics_approvals: UUIDs in lower case; empty allows any

	Batch       Batch
	Concurrency int
	Rate        Rate
	Account     string // sinks with the same Account share Rate; the sink's name unless the file says otherwise
	Timeout     time.Duration
	Retry       Retry
	DeadLetters DeadLetters
}

// Auth is how a sink comes by its token: OAuth 2.0 client credentials, in the vendor's form.
type Auth struct {
	URL          string
	ClientID     string
	ClientSecret secret.String
	Scope        string // fanatics_approvals
}

// Confirm says when a queued Fanbase item counts as delivered.
type Confirm string

// The choices of Confirm.
const (
	ConfirmAccepted  Confirm = "accepted"  // when the queue has taken it
	ConfirmProcessed Confirm = "processed" // when Fanbase has processed it
)

// Batch bounds one request.
type Batch struct {
	Items int
	Bytes Size
	Wait  time.Duration // an idle lane waits so long for more; 0 sends at once
}

// Retry is the exponential back-off between attempts of one request, and its limits.
type Retry struct {
	Min, Max time.Duration
	MaxWait  time.Duration // a longer Retry-After is not heeded
	GiveUp   time.Duration // after which an item that fails while others are taken becomes a dead letter
}

// DeadLetters bounds what a sink may set aside.
type DeadLetters struct {
	Limit int // this many unresolved dead letters pause the sink; 0 means the first does
}

// Mapping says which rows go to which sink and what they look like there.
//
// When, Key, Item, Lookup.Key, Refresh.By and Parent.Key are templates: trees without aliases and merge keys, of Kind 0 where the file has none.
type Mapping struct {
	File  string // that the mapping stands in
	Path  string // in that file, such as mappings[2]
	Index int    // in Config.Mappings
	Line  int
	Name  string // unique; schema.table:sink unless the file says otherwise

	Table    Table
	Sink     string
	On       []cdc.Op // nil leaves it to the sink's type
	When     yaml.Node
	Key      yaml.Node
	Coalesce Coalesce // empty leaves it to the sink's type
	Leave    Leave    // empty leaves it to the sink's type
	Item     yaml.Node
	Lookups  []Lookup // in the order of the file
	Refresh  *Refresh // instead of Item
	Parents  []Parent
	Backfill Backfill
}

// Table is a table's exact name, as in pg_class: no case folding.
type Table struct {
	Schema, Name string
}

// Coalesce says what becomes of several changes of one key within one batch.
type Coalesce string

// The choices of Coalesce.
const (
	CoalesceNone   Coalesce = "none"   // each is sent
	CoalesceLatest Coalesce = "latest" // the last state is sent
)

// Leave says what becomes at the vendor of a row that an update takes out of the filter.
type Leave string

// The choices of Leave.
const (
	LeaveDelete Leave = "delete" // it is deleted, or withdrawn
	LeaveKeep   Leave = "keep"   // it stays as it was last sent
)

// Backfill says whether the rows that exist already are sent when the mapping is first seen.
type Backfill string

// The choices of Backfill.
const (
	BackfillNone    Backfill = "none"
	BackfillInitial Backfill = "initial"
)

// Lookup is a query on the source whose result expressions see as lookup.<name>.
type Lookup struct {
	Name string
	Key  yaml.Node
	SQL  string // $1 is the array of keys; the first column of the result is the key
	Many bool   // an array of rows instead of one
}

// Refresh sends the rows of another table again when a row of this one changes.
type Refresh struct {
	Table Table  // whose mapping to the same sink renders the item
	Key   string // the column of Table to look By up in
	By    yaml.Node
}

// Parent is a record that must be delivered before this one.
type Parent struct {
	Mapping string // the name or the table of a mapping to the same sink
	Key     yaml.Node
}

// Sink finds a sink by name, nil when there is none.
func (c *Config) Sink(name string) *Sink {
	for i := range c.Sinks {
		if c.Sinks[i].Name == name {
			return &c.Sinks[i]
		}
	}
	return nil
}

// Tables lists each table that is mapped once, in the order of the mappings.
func (c *Config) Tables() []Table {
	var tables []Table
	seen := map[Table]bool{}
	for i := range c.Mappings {
		if t := c.Mappings[i].Table; !seen[t] {
			seen[t] = true
			tables = append(tables, t)
		}
	}
	return tables
}

// String is schema.table, as messages name it.
func (t Table) String() string { return t.Schema + "." + t.Name }

// BaseURL is where the commands that speak to a running daemon find it: the listener's address, with the loopback address in
// place of "all addresses".
func (a Admin) BaseURL() string {
	host, port, err := net.SplitHostPort(a.Listen)
	if ip, parseErr := netip.ParseAddr(host); err == nil && (host == "" || parseErr == nil && ip.IsUnspecified()) {
		return "http://" + net.JoinHostPort("127.0.0.1", port)
	}
	return "http://" + a.Listen
}
