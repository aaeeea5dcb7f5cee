package shape_test

import (
	"errors"
	"testing"

	"github.com/cdcsync/cdcsync/internal/shape"
)

func TestValidate(t *testing.T) {
	one, twelve := 1.0, 12.0
	node := &shape.Node{
		Kind: shape.Object, Exclusive: []string{"pwd", "hash"}, Fields: []shape.Field{
			{Name: "id", Required: true, Node: &shape.Node{Kind: shape.String, Format: shape.FormatUUID}},
			{Name: "month", Node: &shape.Node{Kind: shape.Integer, Min: &one, Max: &twelve}},
			{Name: "price", Node: &shape.Node{Kind: shape.Number}},
			{Name: "gender", Node: &shape.Node{Kind: shape.String, Nullable: true, Enum: []string{`"M"`, `"F"`}}},
			{Name: "state", Node: &shape.Node{Kind: shape.String, MaxLength: 2, Format: shape.FormatNoBlank}},
			{Name: "at", Node: &shape.Node{Kind: shape.String, Format: shape.FormatDateTime}},
			{Name: "flags", Node: &shape.Node{Kind: shape.Map, Key: shape.FormatUUID, Elem: &shape.Node{Kind: shape.Boolean}}},
			{Name: "list", Node: &shape.Node{Kind: shape.Array, MinItems: 1, Elem: &shape.Node{Kind: shape.Integer}}},
			{Name: "checked", Node: &shape.Node{Kind: shape.Any, Check: func(json []byte) error {
				if string(json) == "13" {
					return errors.New("brings bad luck")
				}
				return nil
			}}},
			{Name: "pwd", Node: &shape.Node{Kind: shape.String}},
			{Name: "hash", Node: &shape.Node{Kind: shape.String}},
			{Name: "more", Node: &shape.Node{Kind: shape.Object, Open: true}},
		},
	}
	const id = `"id":"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"`
	for _, test := range []struct{ name, value, want string }{
		{"all", `{` + id + `,"month":12,"price":1.5e3,"gender":null,"state":"SP","at":"2025-09-20T18:41:31.219Z","flags":{"AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee":true},"list":[1],"checked":{"a":1},"pwd":"x","more":{"any":[]}}`, ""},
		{"missing", `{}`, "id: is missing"},
		{"null", `{"id":null}`, "id: is null"},
		{"uuid", `{"id":"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeeg"}`, "id: is no UUID"},
		{"unknown", `{` + id + `,"b":1,"a":1}`, "a: is not a field that the vendor knows"},
		{"exclusive", `{` + id + `,"pwd":"x","hash":"y"}`, "holds pwd and hash, of which only one is allowed"},
		{"below", `{` + id + `,"month":0}`, "month: is less than 1"},
		{"above", `{` + id + `,"month":13}`, "month: is more than 12"},
		{"fraction", `{` + id + `,"month":1.5}`, "month: must be a whole number"},
		{"number as text", `{` + id + `,"price":"1"}`, "price: must be a number"},
		{"enum", `{` + id + `,"gender":"X"}`, `gender: must be one of "M", "F"`},
		{"length", `{` + id + `,"state":"SPX"}`, "state: is longer than 2 characters"},
		{"length in characters", `{` + id + `,"state":"éé"}`, ""},
		{"blank", `{` + id + `,"state":" "}`, "state: is blank"},
		{"date", `{` + id + `,"at":"2025-09-20"}`, "at: is no ISO 8601 date and time with a zone"},
		{"map key", `{` + id + `,"flags":{"x":true}}`, "flags: has a key that is no UUID"},
		{"map value", `{` + id + `,"flags":{"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee":1}}`, "flags{}: must be true or false"},
		{"short", `{` + id + `,"list":[]}`, "list: must have at least 1 elements"},
		{"element", `{` + id + `,"list":[1,"2"]}`, "list[1]: must be a number"},
		{"not an array", `{` + id + `,"list":{}}`, "list: must be an array"},
		{"check", `{` + id + `,"checked":13}`, "checked: brings bad luck"},
		{"not an object", `[]`, "must be an object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if err := node.Validate([]byte(test.value)); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func FuzzValidate(f *testing.F) {
	f.Add([]byte(`{"a":[1,"x",null]}`))
	f.Add([]byte(` `))
	f.Add([]byte(`-`))
	leaf := &shape.Node{Kind: shape.Integer}
	nodes := []*shape.Node{
		leaf,
		{Kind: shape.Array, Elem: leaf},
		{Kind: shape.Map, Elem: &shape.Node{Kind: shape.String, Format: shape.FormatDateTime}},
		{Kind: shape.Object, Fields: []shape.Field{{Name: "a", Node: &shape.Node{Kind: shape.Array, Elem: &shape.Node{Kind: shape.Any}}}}},
	}
	f.Fuzz(func(_ *testing.T, value []byte) {
		for _, n := range nodes {
			_ = n.Validate(value)
		}
	})
}
