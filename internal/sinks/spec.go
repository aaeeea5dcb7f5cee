package sinks

import (
	"maps"
	"slices"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// Spec is what mappings and the configuration need to know of a type of sink: the shape of its items and the defaults.
type Spec struct {
	Type string
	Item shape.Item

	On       []cdc.Op // what a mapping sends when it does not say
	Withdraw bool     // a deleted row is sent as its item with every flag of the map false; otherwise as its item
	FullRows bool     // a deleted row is needed whole, not only by its key
	Deletes  bool     // the vendor can be told that a record is gone

	Latest      bool // coalesce: latest, otherwise none
	BatchItems  int
	BatchBytes  int // of a request; 0 means that only BatchItems limits it
	Concurrency int
	Tokens      bool // authenticates with a token (auth:) and not with a key (api_key:)
}

// The bytes of a batch that a vendor does not limit: most servers take a body of 1 MiB.
const batchBytes = 1 << 20

var specs = map[string]Spec{
	TypeStopChurn: {
		Type: TypeStopChurn, Item: stopChurnShape(), On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate, cdc.OpDelete},
		FullRows: true, Deletes: true,
		BatchItems: 500, BatchBytes: batchBytes, Concurrency: 2,
	},
	TypeFanbaseQueue: {
		Type: TypeFanbaseQueue, Item: fanbaseQueueShape(), On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate},
		Latest: true, BatchItems: 1, Concurrency: 8, Tokens: true,
	},
	TypeFanbaseBatch: {
		Type: TypeFanbaseBatch, Item: fanbaseBatchShape(), On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate},
		Latest: true, BatchItems: 50, BatchBytes: batchBytes, Concurrency: 2, Tokens: true,
	},
	TypeFanatics: {
		Type: TypeFanatics, Item: fanaticsShape(nil), On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate, cdc.OpDelete},
		Withdraw: true, Deletes: true,
		Latest: true, BatchItems: fanaticsAccounts, BatchBytes: batchBytes, Concurrency: 2, Tokens: true,
	},
}

// Types lists the types of sinks by name.
func Types() []string { return slices.Sorted(maps.Keys(specs)) }

// SpecOf is the Spec of a type, ok being false for an unknown one. What it points at is shared: do not change it.
func SpecOf(typ string) (spec Spec, ok bool) {
	spec, ok = specs[typ]
	return spec, ok
}

// Spec is SpecOf the sink's type, narrowed by its configuration: invite_only_tiers allow no other tier.
func (c *Config) Spec() (spec Spec, ok bool) {
	spec, ok = SpecOf(c.Type)
	if c.Type == TypeFanatics {
		spec.Item = fanaticsShape(c.InviteOnlyTiers)
	}
	return spec, ok
}

// Path is that of the endpoint, which is joined to a sink's url; empty for an unknown type.
func Path(typ string) string {
	switch typ {
	case TypeStopChurn:
		return stopChurnPath
	case TypeFanbaseQueue:
		return fanbaseQueuePath
	case TypeFanbaseBatch:
		return fanbaseBatchPath
	case TypeFanatics:
		return fanaticsPath
	}
	return ""
}
