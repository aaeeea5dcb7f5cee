package problem

import "testing"

func TestNearest(t *testing.T) {
	keys := []string{"batch", "concurrency", "rate", "retry", "timeout"}
	tests := []struct{ word, want string }{
		{"bacth", `did you mean "batch"?`},
		{"Timeout", `did you mean "timeout"?`},
		{"concurency", `did you mean "concurrency"?`},
		{"headers", "known are: batch, concurrency, rate, retry, timeout"},
	}
	for _, test := range tests {
		if got := Nearest(test.word, keys); got != test.want {
			t.Errorf("Nearest(%q) is %q, want %q", test.word, got, test.want)
		}
	}
	if got := Nearest("anything", nil); got != "" {
		t.Errorf("without candidates: %q", got)
	}
}

func TestListIsInOrderOfPlaces(t *testing.T) {
	list := List{
		{File: "b.yaml", Line: 1, Column: 1, Message: "third"},
		{File: "a.yaml", Line: 12, Column: 3, Path: "sinks.crm", Message: "second", Hint: "do this"},
		{File: "a.yaml", Line: 2, Column: 9, Message: "first"},
		{File: "a.yaml", Line: 1, Message: "of the line"},
		{File: "a.yaml", Message: "of the file"},
	}
	want := "a.yaml: of the file\na.yaml:1: of the line\na.yaml:2:9: first\na.yaml:12:3: sinks.crm: second; do this\nb.yaml:1:1: third"
	if got := list.Err().Error(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if (List{}).Err() != nil {
		t.Error("an empty list is an error")
	}
}
