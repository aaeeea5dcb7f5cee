// Package shape describes what one item of a vendor's API may look like, so that a mapping can be checked before anything is sent.
//
// A sink declares its item's shape as data; mapping checks a template against it when it is compiled, and values when an item is rendered.
package shape

// Kind is a JSON type.
type Kind uint8

// The kinds. Any allows every JSON value.
const (
	Any Kind = iota + 1
	Object
	Map // an object with free keys
	Array
	String
	Number
	Integer
	Boolean
)

// Node is the shape of one JSON value.
type Node struct {
	Kind   Kind
	Fields []Field // of an Object, in the vendor's order
	Open   bool    // an Object that allows further fields
	Elem   *Node   // of an Array, and the values of a Map
	Key    Format  // of a Map's keys

	Nullable  bool     // null may be sent; otherwise null is an error where the field is required, and the field is left out where it is optional
	Enum      []string // the values allowed, as JSON: `1`, `"M"`; empty means any
	Format    Format   // of a String
	Min, Max  *float64 // of a number, inclusive
	MaxLength int      // of a String in characters; 0 means any
	MinItems  int      // of an Array

	// Exclusive names the Object's fields of which at most one may be present.
	Exclusive []string
	// Check looks at the rendered JSON of this value, where rules go over several fields. Its error says what is wrong without quoting a value.
	Check func(json []byte) error
}

// Field of an Object.
type Field struct {
	Name     string
	Required bool
	Doc      string // one sentence for editors and error messages
	Node     *Node
}

// Format is what a string must look like.
type Format uint8

// The formats. FormatUUID values are sent in lower case.
const (
	FormatUUID     Format = iota + 1 // xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx
	FormatDateTime                   // ISO 8601 with zone
	FormatNoBlank                    // not empty
)

// Times is how a sink wants dates and times when the mapping does not say.
type Times uint8

// The conventions.
const (
	TimesUnixMilli Times = iota + 1 // 1694357675000
	TimesISO                        // "2025-09-20T18:41:31.219Z"
)

// Item is the shape of what a mapping renders for one sink type.
type Item struct {
	Root  *Node
	Times Times

	// Identity is what the vendor knows a record by: the paths of the fields that together identify it. Empty means that the item does
	// not say it, or says it in People; then the row's own key stands for the record.
	Identity [][]string
	// People is where an item says whom it is about, when that is a list of identifiers of which the vendor looks for the first it knows.
	People *Tagged
}

// Tagged finds identifiers within a list of objects: the Value of the element whose Tag has one of Tags, in the vendor's order.
type Tagged struct {
	List, Tag, Value string
	Tags             []string
}

// Field finds a field by name.
func (n *Node) Field(name string) (Field, bool) {
	for _, f := range n.Fields {
		if f.Name == name {
			return f, true
		}
	}
	return Field{}, false
}
