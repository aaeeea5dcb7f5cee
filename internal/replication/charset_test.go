package replication

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// characters lists every sequence of bytes that may be a character of an encoding, beyond ASCII.
func characters(encoding string) (all [][]byte) {
	if !strings.HasPrefix(encoding, "EUC_") {
		for b := 0x80; b <= 0xFF; b++ {
			all = append(all, []byte{byte(b)})
		}
		return all
	}
	for a := 0xA1; a <= 0xFE; a++ {
		if encoding == "EUC_JP" {
			all = append(all, []byte{0x8E, byte(a)})
		}
		for b := 0xA1; b <= 0xFE; b++ {
			all = append(all, []byte{byte(a), byte(b)})
			if encoding == "EUC_JP" {
				all = append(all, []byte{0x8F, byte(a), byte(b)})
			}
		}
	}
	return all
}

// What is converted here is what Postgres would have converted to, character by character, and what it refuses is refused.
func TestCharsetsAgreeWithPostgres(t *testing.T) {
	l := newLive(t, `create function utf8(text, bytea) returns text language plpgsql as
		$$ begin return encode(convert($2, $1, 'UTF8'), 'hex'); exception when others then return '-'; end $$`)
	for _, encoding := range []string{
		"LATIN1", "LATIN2", "LATIN3", "LATIN4", "LATIN5", "LATIN6", "LATIN7", "LATIN8", "LATIN9", "LATIN10",
		"ISO_8859_5", "ISO_8859_6", "ISO_8859_7", "ISO_8859_8", "KOI8R", "KOI8U", "WIN866", "WIN874",
		"WIN1250", "WIN1251", "WIN1252", "WIN1253", "WIN1254", "WIN1255", "WIN1256", "WIN1257", "WIN1258", "EUC_JP", "EUC_KR", "EUC_CN",
	} {
		charset := cdc.CharsetByName(encoding)
		if charset.Name() != encoding {
			t.Fatalf("%s is not known", encoding)
		}
		all := characters(encoding)
		var want []string
		if err := l.conn.QueryRow(l.ctx, `select array(select utf8($1, b) from unnest($2::bytea[]) with ordinality as u(b, n) order by n)`, encoding, all).Scan(&want); err != nil {
			t.Fatal(err)
		}
		var differ []string
		for i, character := range all {
			got := "-"
			if converted, ok := charset.Decode(character); ok {
				got = hex.EncodeToString(converted)
				if back, ok := charset.Encode(converted); !ok || string(back) != string(character) {
					if again, _ := charset.Decode(back); string(again) != string(converted) {
						t.Errorf("%s: %x comes back as %x", encoding, character, back)
					}
				}
			}
			if got != want[i] {
				differ = append(differ, fmt.Sprintf("%x: %s, Postgres has %s", character, got, want[i]))
			}
		}
		if len(differ) > 0 {
			t.Errorf("%s differs in %d of %d characters: %s", encoding, len(differ), len(all), strings.Join(differ[:min(len(differ), 400)], "; "))
		}
	}
}
