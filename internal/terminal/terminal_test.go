package terminal

import (
	"bytes"
	"encoding/json"
	"testing"
	"testing/iotest"
	"unicode"
)

func TestLine(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"plain", "Zoë, 東京 – 10\u00a0€", "Zoë, 東京 – 10\u00a0€"},
		{"escape sequence", "a\x1b[2Jb", `a\u001b[2Jb`},
		{"C1 control", "a\u009b2Jb", `a\u009b2Jb`},
		{"line breaks", "ok\r\nsink crm is running", "ok  sink crm is running"},
		{"line separators", "a\u2028b\u2029c\u0085d", `a\u2028b\u2029c\u0085d`},
		{"bidirectional controls", "user\u202etxt.exe\u2066", `user\u202etxt.exe\u2066`},
		{"backspace and bell", "a\b\a", `a\u0008\u0007`},
		{"delete", "a\x7f", `a\u007f`},
		{"zero width", "a\u200bb\ufeff", `a\u200bb\ufeff`},
		{"tag characters", "a\U000e0041", `a\udb40\udc41`},
		{"not UTF-8", "a\xe9b", "a\ufffdb"},
		{"NUL", "a\x00b", `a\u0000b`},
	} {
		if got := Line(c.text); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// What passes the writer is the same JSON, and holds nothing that a terminal acts on, however it is cut into writes.
func TestWriterKeepsJSON(t *testing.T) {
	want := map[string]string{"k\u202e": "x\x1b[31m\u009b\U000e0041 ü\u2028"}
	encoded, err := json.MarshalIndent(want, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	in := iotest.OneByteReader(bytes.NewReader(encoded))
	w := NewWriter(&out)
	for buf := make([]byte, 8); ; {
		n, err := in.Read(buf)
		if n > 0 {
			if m, err := w.Write(buf[:n]); m != n || err != nil {
				t.Fatalf("got %d, %v, want %d", m, err, n)
			}
		}
		if err != nil {
			break
		}
	}
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	if got["k\u202e"] != want["k\u202e"] {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, r := range out.String() {
		if r != '\n' && r != '\t' && r != ' ' && !unicode.IsPrint(r) {
			t.Errorf("the output holds %U", r)
		}
	}
}
