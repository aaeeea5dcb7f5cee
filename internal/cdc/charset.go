package cdc

import (
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// Charset is a database's encoding other than UTF-8 (section "Character Set Support" of the manual). The server would convert text to UTF-8
// by itself, but fails altogether on a byte that has no such form; so its text is read as it is and converted here, value by value.
//
// A nil Charset is UTF-8. It is safe for concurrent use.
type Charset struct {
	name string
	raw  bool              // SQL_ASCII: nobody knows what the bytes mean, and UTF-8 is the one guess that can be checked
	low  *[128]rune        // of the bytes from 128 on, where a character is one byte; 0 for none
	high map[rune]byte     // the inverse of low
	wide encoding.Encoding // where a character may be several bytes
	cut  func([]byte) int  // the length of the first character in wide, 0 for none

	special map[string]rune // where Postgres's conversion is not that of wide; 0 for none
	back    func() map[rune]string
}

// CharsetByName finds the encoding that Postgres calls so. It is nil for UTF8, and for those that are left to the server's own conversion:
// EUC_TW, EUC_JIS_2004 and MULE_INTERNAL.
func CharsetByName(name string) *Charset {
	return charsets()[name]
}

// Name is what Postgres calls it.
func (c *Charset) Name() string {
	if c == nil {
		return ""
	}
	return c.name
}

var charsets = sync.OnceValue(func() map[string]*Charset {
	all := make(map[string]*Charset)
	for name, m := range singleByte {
		all[name] = newSingleByte(name, m)
	}
	all["SQL_ASCII"] = &Charset{name: "SQL_ASCII", raw: true}
	all["EUC_JP"] = newWide("EUC_JP", japanese.EUCJP, cutEUCJP, specialEUCJP())
	all["EUC_KR"] = newWide("EUC_KR", korean.EUCKR, cutEUC, map[string]rune{"\xa2\xe8": '\u327e'})
	all["EUC_CN"] = newWide("EUC_CN", simplifiedchinese.GBK, cutEUC, specialEUCCN())
	return all
})

var singleByte = map[string]*charmap.Charmap{
	"LATIN1": charmap.ISO8859_1, "LATIN2": charmap.ISO8859_2, "LATIN3": charmap.ISO8859_3, "LATIN4": charmap.ISO8859_4,
	"LATIN5": charmap.ISO8859_9, "LATIN6": charmap.ISO8859_10, "LATIN7": charmap.ISO8859_13, "LATIN8": charmap.ISO8859_14,
	"LATIN9": charmap.ISO8859_15, "LATIN10": charmap.ISO8859_16,
	"ISO_8859_5": charmap.ISO8859_5, "ISO_8859_6": charmap.ISO8859_6, "ISO_8859_7": charmap.ISO8859_7, "ISO_8859_8": charmap.ISO8859_8,
	"KOI8R": charmap.KOI8R, "KOI8U": charmap.KOI8U,
	"WIN866": charmap.CodePage866, "WIN874": charmap.Windows874, "WIN1250": charmap.Windows1250, "WIN1251": charmap.Windows1251,
	"WIN1252": charmap.Windows1252, "WIN1253": charmap.Windows1253, "WIN1254": charmap.Windows1254, "WIN1255": charmap.Windows1255,
	"WIN1256": charmap.Windows1256, "WIN1257": charmap.Windows1257, "WIN1258": charmap.Windows1258,
}

func newSingleByte(name string, m *charmap.Charmap) *Charset {
	c := &Charset{name: name, low: new([128]rune), high: make(map[rune]byte)}
	windows := strings.HasPrefix(name, "WIN")
	for i := range c.low {
		r := m.DecodeByte(byte(128 + i))
		switch known, special := specialSingle[name][byte(128+i)]; {
		case special:
			r = known
		case windows && r < 0xA0: // the web's tables make control characters of the bytes that Windows leaves undefined
			r = 0
		case r == utf8.RuneError && i < 32 && name[0] != 'W' && name[0] != 'K':
			r = rune(128 + i) // and leave out those that ISO 8859 has
		case r == utf8.RuneError:
			r = 0
		}
		if c.low[i] = r; r != 0 {
			c.high[r] = byte(128 + i)
		}
	}
	return c
}

// specialSingle is where Postgres's tables are not those of charmap; 0 for no character.
var specialSingle = map[string]map[byte]rune{
	"KOI8U":   {0xAE: '╝', 0xBE: '╬'},
	"WIN1255": {0xCA: 0},
}

func newWide(name string, wide encoding.Encoding, cut func([]byte) int, special map[string]rune) *Charset {
	c := &Charset{name: name, wide: wide, cut: cut, special: special}
	c.back = sync.OnceValue(c.inverse)
	return c
}

// inverse is made of Decode, since x/text encodes some characters in places that Postgres does not have.
func (c *Charset) inverse() map[rune]string {
	back := make(map[rune]string)
	add := func(text ...byte) {
		if r, n := c.first(text); n == len(text) {
			if _, known := back[r]; !known {
				back[r] = string(text)
			}
		}
	}
	for a := 0x8E; a <= 0xFE; a++ {
		for b := 0xA1; b <= 0xFE; b++ {
			add(byte(a), byte(b))
		}
	}
	for a := 0xA1; a <= 0xFE; a++ {
		for b := 0xA1; b <= 0xFE; b++ {
			add(0x8F, byte(a), byte(b))
		}
	}
	return back
}

// specialEUCJP adds the extensions of IBM and NEC, which Postgres has at the end of JIS X 0212.
func specialEUCJP() map[string]rune {
	const extensions = "ⅰⅱⅲⅳⅴⅵⅶⅷⅸⅹⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ＇＂㈱№℡炻仼僴凬匇匤﨎咊坙﨏塚增寬峵嵓﨑德悅愠敎昻晥晴朗栁﨓﨔橫櫢淸淲瀨凞猪甁皂皞益礰礼神祥福竧靖精綠緖羽荢﨟薰蘒﨡蠇諸譿賴赶﨣﨤逸郞都鄕﨧﨨閒隆﨩霻靍靑飯飼館馞髙魲鶴黑"
	special := map[string]rune{"\x8f\xa2\xb7": 0, "\x8f\xa2\xc3": '\uffe4'}
	row, cell := byte(0xF3), byte(0xF3)
	for _, r := range extensions {
		special[string([]byte{0x8F, row, cell})] = r
		if cell++; cell > 0xFE {
			row, cell = row+1, 0xA1
		}
	}
	return special
}

// specialEUCCN takes out of GBK what GB 2312 does not have.
func specialEUCCN() map[string]rune {
	special := map[string]rune{"\xa1\xa4": '・', "\xa1\xaa": '―', "\xa2\xe3": 0}
	for _, r := range []struct{ row, first, last byte }{
		{0xA2, 0xA1, 0xAA}, {0xA6, 0xE0, 0xF5}, {0xA8, 0xBB, 0xC0},
	} {
		for cell := r.first; cell <= r.last; cell++ {
			special[string([]byte{r.row, cell})] = 0
		}
	}
	return special
}

// cutEUC finds a character of two bytes, both above 160.
func cutEUC(b []byte) int {
	if len(b) < 2 || b[0] < 0xA1 || b[1] < 0xA1 {
		return 0
	}
	return 2
}

// cutEUCJP knows the single shifts 2 and 3, too.
func cutEUCJP(b []byte) int {
	switch {
	case b[0] == 0x8F && len(b) > 2 && b[1] >= 0xA1 && b[2] >= 0xA1:
		return 3
	case b[0] == 0x8E && len(b) > 1 && b[1] >= 0xA1:
		return 2
	case b[0] >= 0xF9: // NEC's copies of what is elsewhere
		return 0
	}
	return cutEUC(b)
}

// Decode converts text of the database to UTF-8; ok is false where a byte has no such form. What is ASCII throughout is returned as it is.
func (c *Charset) Decode(text []byte) (converted []byte, ok bool) {
	if c == nil || isASCII(text) {
		return text, true
	}
	if c.raw {
		return text, utf8.Valid(text)
	}
	converted = make([]byte, 0, len(text)+len(text)/2)
	for len(text) > 0 {
		r, n := c.first(text)
		if n == 0 {
			return nil, false
		}
		converted, text = utf8.AppendRune(converted, r), text[n:]
	}
	return converted, true
}

// first decodes the character that text begins with; n is 0 where there is none.
func (c *Charset) first(text []byte) (r rune, n int) {
	b := text[0]
	switch {
	case b < utf8.RuneSelf:
		return rune(b), 1
	case c.raw:
		if r, n = utf8.DecodeRune(text); r == utf8.RuneError && n == 1 {
			return 0, 0
		}
		return r, n
	case c.low != nil:
		if r = c.low[b-128]; r == 0 {
			return 0, 0
		}
		return r, 1
	}
	if n = c.cut(text); n == 0 {
		return 0, 0
	}
	if r, special := c.special[string(text[:n])]; special {
		if r == 0 {
			n = 0
		}
		return r, n
	}
	var out [2 * utf8.UTFMax]byte
	size, used, err := c.wide.NewDecoder().Transform(out[:], text[:n], true)
	r, length := utf8.DecodeRune(out[:size])
	if err != nil || used != n || r == utf8.RuneError || length != size {
		return 0, 0
	}
	return r, n
}

// Encode is the inverse of Decode; ok is false for a text that no value of the database can be.
func (c *Charset) Encode(text []byte) (raw []byte, ok bool) {
	if c == nil || c.raw || isASCII(text) {
		return text, true
	}
	raw = make([]byte, 0, len(text))
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if raw, ok = c.appendRune(raw, r); !ok {
			return nil, false
		}
		text = text[n:]
	}
	return raw, true
}

func (c *Charset) appendRune(dst []byte, r rune) ([]byte, bool) {
	if r < utf8.RuneSelf {
		return append(dst, byte(r)), true
	}
	if c.low != nil {
		b, ok := c.high[r]
		return append(dst, b), ok
	}
	text, ok := c.back()[r]
	return append(dst, text...), ok
}

// stray + b stands in a name for a byte b that has no form in UTF-8, so that the name is UTF-8 and the server still knows it.
const stray = 0xF700

// DecodeName converts a name, or SQL, of which EncodeName makes the same bytes again.
func (c *Charset) DecodeName(name string) string {
	if c == nil || isASCII([]byte(name)) {
		return name
	}
	converted, text := make([]byte, 0, 2*len(name)), []byte(name)
	for len(text) > 0 {
		r, n := c.first(text)
		if n == 0 {
			r, n = stray+rune(text[0]), 1
		}
		converted, text = utf8.AppendRune(converted, r), text[n:]
	}
	return string(converted)
}

// EncodeName converts a name, or SQL with names in it, for the server. An error says which character it does not have.
func (c *Charset) EncodeName(name string) (string, error) {
	if c == nil || isASCII([]byte(name)) {
		return name, nil
	}
	raw := make([]byte, 0, len(name))
	for _, r := range name {
		ok := true
		switch {
		case r >= stray+utf8.RuneSelf && r <= stray+0xFF:
			raw = append(raw, byte(r-stray))
		case c.raw:
			raw = utf8.AppendRune(raw, r)
		default:
			raw, ok = c.appendRune(raw, r)
		}
		if !ok {
			return "", fmt.Errorf("the database's encoding %s has no character %q", c.name, r)
		}
	}
	return string(raw), nil
}

// Show is text for people, in which bytes that have no form in UTF-8 are written as \xNN.
func (c *Charset) Show(text []byte) string {
	if c == nil {
		return string(text)
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := c.first(text)
		if n == 0 {
			fmt.Fprintf(&b, `\x%02x`, text[0])
			n = 1
		} else {
			b.WriteRune(r)
		}
		text = text[n:]
	}
	return b.String()
}

// Values converts values in place. What cannot be converted becomes Invalid.
func (c *Charset) Values(values []Value) {
	if c == nil {
		return
	}
	for i := range values {
		v := &values[i]
		if v.Kind != Text {
			continue
		}
		if converted, ok := c.Decode(v.Data); ok {
			v.Data = converted
		} else {
			v.Kind = Invalid
		}
	}
}

// Raw is the inverse of Charset.Values: values as the server sent them, which are the same where it sends UTF-8.
func (r *Relation) Raw(values []Value) []Value {
	c := CharsetByName(r.Encoding)
	if c == nil {
		return values
	}
	raw := make([]Value, len(values))
	copy(raw, values)
	for i := range raw {
		switch v := &raw[i]; v.Kind {
		case Text:
			if data, ok := c.Encode(v.Data); ok {
				v.Data = data
			}
		case Invalid:
			v.Kind = Text
		default:
		}
	}
	return raw
}

func isASCII(text []byte) bool {
	for _, b := range text {
		if b >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
