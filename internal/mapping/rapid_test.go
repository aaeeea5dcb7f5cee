package mapping

import (
	"bytes"
	"encoding/json"
	"math/big"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// texts that Postgres can hold: UTF-8 without the zero byte, with the characters that have a meaning in literals.
func postgresText() *rapid.Generator[string] {
	special := rapid.StringOfN(rapid.RuneFrom([]rune(`"\{}(),=> '`+"\n\t\x01\x7fé😀NULnul")), 0, 12, -1)
	free := rapid.Map(rapid.String(), func(s string) string { return strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\x00", "") })
	return rapid.OneOf(special, free)
}

func nullableText() *rapid.Generator[*string] { return rapid.Ptr(postgresText(), true) }

func render(t *rapid.T, c *codec, text string) []byte {
	got, err := c.append(nil, []byte(text))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if !json.Valid(got) {
		t.Fatalf("%q gives %s, which is not JSON", text, got)
	}
	return got
}

func same[T any](t *rapid.T, rendered []byte, want T) {
	var got T
	if err := json.Unmarshal(rendered, &got); err != nil {
		t.Fatalf("%s: %v", rendered, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
}

func TestTextRoundTrip(t *testing.T) {
	c := newCodec(&cdc.Type{Name: "text", Kind: cdc.TypeBase}, shape.TimesISO)
	rapid.Check(t, func(t *rapid.T) {
		s := postgresText().Draw(t, "text")
		same(t, render(t, c, s), s)
	})
}

// quoteArray is what array_out does (src/backend/utils/adt/arrayfuncs.c), quoting more often than it must.
func quoteArray(s *string) string {
	if s == nil {
		return "NULL"
	}
	if *s != "" && !strings.EqualFold(*s, "null") && !strings.ContainsAny(*s, "\"\\{}, \n\t\v\f\r") {
		return *s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(*s) + `"`
}

func TestArrayRoundTrip(t *testing.T) {
	c := newCodec(&cdc.Type{Kind: cdc.TypeArray, Elem: &cdc.Type{Name: "text", Kind: cdc.TypeBase}}, shape.TimesISO)
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.IntRange(1, 4).Draw(t, "width")
		rows := rapid.SliceOfN(rapid.SliceOfN(nullableText(), width, width), 1, 4).Draw(t, "rows")
		var b strings.Builder
		b.WriteString("{")
		for i, row := range rows {
			parts := make([]string, len(row))
			for j := range row {
				parts[j] = quoteArray(row[j])
			}
			if i > 0 {
				b.WriteString(",")
			}
			b.WriteString("{" + strings.Join(parts, ",") + "}")
		}
		b.WriteString("}")
		text := b.String()
		if rapid.Bool().Draw(t, "bounds") {
			text = "[0:1][-2:3]=" + text
		}
		same(t, render(t, c, text), rows)
	})
}

// TestCompositeRoundTrip nests an array in a composite in an array: each level quotes what the one below has quoted.
func TestCompositeRoundTrip(t *testing.T) {
	text := &cdc.Type{Name: "text", Kind: cdc.TypeBase}
	composite := &cdc.Type{Kind: cdc.TypeComposite, Fields: []cdc.Field{{Name: "a", Type: text}, {Name: "list", Type: &cdc.Type{Kind: cdc.TypeArray, Elem: text}}}}
	c := newCodec(&cdc.Type{Kind: cdc.TypeArray, Elem: composite}, shape.TimesISO)
	type record struct {
		A    *string   `json:"a"`
		List []*string `json:"list"`
	}
	rapid.Check(t, func(t *rapid.T) {
		records := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) record {
			return record{nullableText().Draw(t, "a"), rapid.SliceOfN(nullableText(), 1, 3).Draw(t, "list")}
		}), 1, 3).Draw(t, "records")
		elements := make([]string, len(records))
		for i, r := range records {
			list := make([]string, len(r.List))
			for j := range r.List {
				list[j] = quoteArray(r.List[j])
			}
			array := "{" + strings.Join(list, ",") + "}"
			row := "(" + quoteRow(r.A) + "," + quoteRow(&array) + ")"
			elements[i] = quoteArray(&row)
		}
		same(t, render(t, c, "{"+strings.Join(elements, ",")+"}"), records)
	})
}

// quoteRow is what record_out does (src/backend/utils/adt/rowtypes.c).
func quoteRow(s *string) string {
	if s == nil {
		return ""
	}
	if *s != "" && !strings.ContainsAny(*s, "\"\\(), \n\t\v\f\r") {
		return *s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `""`).Replace(*s) + `"`
}

func TestHstoreRoundTrip(t *testing.T) {
	c := newCodec(&cdc.Type{Name: "hstore", Kind: cdc.TypeBase}, shape.TimesISO)
	quote := func(s string) string { return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"` }
	rapid.Check(t, func(t *rapid.T) {
		pairs := rapid.MapOf(postgresText(), nullableText()).Draw(t, "pairs")
		var parts []string
		for k, v := range pairs {
			value := "NULL"
			if v != nil {
				value = quote(*v)
			}
			parts = append(parts, quote(k)+"=>"+value)
		}
		same(t, render(t, c, strings.Join(parts, ", ")), pairs)
	})
}

func TestTimestampRoundTrip(t *testing.T) {
	base := &cdc.Type{Name: "timestamptz", Kind: cdc.TypeBase}
	millis, iso := newCodec(base, shape.TimesUnixMilli), newCodec(base, shape.TimesISO)
	first, last := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(rapid.Int64Range(first.Unix(), last.Unix()).Draw(t, "seconds"), rapid.Int64Range(0, 999_999).Draw(t, "micros")*1000).UTC()
		zone := time.FixedZone("", 60*rapid.IntRange(-15*60, 15*60).Draw(t, "zone"))
		local := at.In(zone)
		if local.Year() < 1 || local.Year() > 9999 {
			t.Skip("the year has another form in this zone")
		}
		text := local.Format("2006-01-02 15:04:05.999999-07:00")
		same(t, render(t, millis, text), at.UnixMilli())
		same(t, render(t, iso, text), at)
	})
}

// TestArithmeticIsExact compares integers, which must neither wrap around nor lose digits, with arithmetic of any size.
func TestArithmeticIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Int().Draw(t, "a"), rapid.Int().Draw(t, "b")
		op := rapid.SampledFrom([]string{"+", "-", "*"}).Draw(t, "op")
		x, y, want := big.NewInt(int64(a)), big.NewInt(int64(b)), new(big.Int)
		switch op {
		case "+":
			want.Add(x, y)
		case "-":
			want.Sub(x, y)
		default:
			want.Mul(x, y)
		}
		for _, right := range []any{b, Decimal{strconv.Itoa(b)}} {
			got, err := operate(op, a, right)
			if err != nil {
				t.Fatal(err)
			}
			if s, _ := textOf(got); s != want.String() {
				t.Fatalf("%d %s %d = %s, want %s", a, op, b, s, want)
			}
		}
	})
}

// TestKeysAreDistinct holds that different values never give the same key, null and empty included.
func TestKeysAreDistinct(t *testing.T) {
	rel := relationOf(t, "table: public.t\nidentity: full\ncolumns: [a text, b text]")
	plan := planOf(t, "table: public.t\nsink: free\nkey: [$a, $b]\nitem: {a: $a}", rel)
	key := func(t *rapid.T, label string) ([]byte, []*string) {
		values := []*string{nullableText().Draw(t, label+" a"), nullableText().Draw(t, label+" b")}
		ch := &cdc.Change{Op: cdc.OpInsert, Relation: rel}
		for _, v := range values {
			if v == nil {
				ch.New = append(ch.New, cdc.Value{Kind: cdc.Null})
			} else {
				ch.New = append(ch.New, cdc.Value{Kind: cdc.Text, Data: []byte(*v)})
			}
		}
		var route Route
		if err := plan.Route(&route, ch); err != nil {
			t.Fatal(err)
		}
		return route.Parts[0].Key, values
	}
	rapid.Check(t, func(t *rapid.T) {
		first, a := key(t, "first")
		second, b := key(t, "second")
		if bytes.Equal(first, second) != cmp.Equal(a, b) {
			t.Fatalf("keys %q and %q", first, second)
		}
	})
}
