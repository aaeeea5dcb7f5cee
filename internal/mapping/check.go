package mapping

import (
	"fmt"

	"github.com/cdcsync/cdcsync/internal/problem"
	"github.com/cdcsync/cdcsync/internal/shape"
)

const errNull = reason("is null, which the vendor does not take")

// fieldNames lists an object's fields for hints.
func fieldNames(n *shape.Node) []string {
	names := make([]string, len(n.Fields))
	for i := range n.Fields {
		names[i] = n.Fields[i].Name
	}
	return names
}

// child finds the shape of an object's field; ok is false when the vendor has no such field.
func child(n *shape.Node, name string) (f shape.Field, ok bool) {
	if shape.Free(n) {
		return shape.Field{}, true
	}
	switch n.Kind {
	case shape.Map:
		return shape.Field{Node: n.Elem, Required: true}, true
	case shape.Object:
		f, found := n.Field(name)
		return f, found || n.Open
	default:
		return shape.Field{}, true
	}
}

func unknownField(n *shape.Node, name string) (message, hint string) {
	return fmt.Sprintf("unknown field %q", name), problem.Nearest(name, fieldNames(n))
}
