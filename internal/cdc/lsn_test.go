package cdc

import "testing"

func TestPositionText(t *testing.T) {
	want := Position{Commit: 0x16_B374D848, Ordinal: 3}
	if got := want.String(); got != "16/B374D848#3" {
		t.Errorf("String gives %q", got)
	}
	if got, err := ParsePosition(want.String()); err != nil || got != want {
		t.Errorf("ParsePosition gives %v, %v", got, err)
	}
	for _, bad := range []string{"", "16/B374D848", "16#3", "16/B374D848#", "16/B374D848#-1", "16/1B374D8480#1", "x/1#1"} {
		if p, err := ParsePosition(bad); err == nil {
			t.Errorf("ParsePosition(%q) gives %v", bad, p)
		}
	}
}

func TestPositionOrder(t *testing.T) {
	order := []Position{{1, 1}, {1, 2}, {2, 1}}
	for i, p := range order {
		for j, q := range order {
			if got, want := p.Compare(q), min(max(i-j, -1), 1); got != want {
				t.Errorf("%s compared with %s: %d, want %d", p, q, got, want)
			}
		}
	}
}

func TestChangeFor(t *testing.T) {
	tests := []struct {
		name   string
		change Change
		want   bool
	}{
		{"everyone's", Change{}, true},
		{"a backfill of this sink", Change{Targets: []string{"fans", "crm"}}, true},
		{"a backfill of another sink", Change{Targets: []string{"fans"}}, false},
		{"part of a row that this sink has", Change{Except: []string{"crm"}}, false},
		{"half of it part of a row that this sink has", Change{Except: []string{"crm"}, ExceptPart: PartOld}, true},
		{"part of a row that another sink has", Change{Except: []string{"fans"}}, true},
	}
	for _, test := range tests {
		if got := test.change.For("crm"); got != test.want {
			t.Errorf("%s: For gives %v", test.name, got)
		}
	}
}
