package main

import (
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/admin"
)

func TestLettersAreGroupedByCause(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	groups, err := groupLetters(func(w io.Writer) error {
		encoder := json.NewEncoder(w)
		for i, reason := range []string{"a@b.example is taken", "mapping users: item.v: column v is null", "c@d.example is taken"} {
			attempts := 1
			if i == 1 {
				attempts = 0
			}
			l := admin.Letter{ID: string(rune('a' + i)), Sink: "crm", Mapping: "users", State: admin.LetterOpen, Reason: reason, Attempts: attempts, ParkedAt: at.Add(time.Duration(i) * time.Hour)}
			if err := encoder.Encode(&l); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(groups) != 2 {
		t.Fatalf("%+v: %v", groups, err)
	}
	want := letterGroup{Sink: "crm", State: admin.LetterOpen, Cause: "mapping users: … is taken", Count: 2, First: at, Last: at.Add(2 * time.Hour), Example: "c"}
	if groups[0] != want || groups[1].Cause != "mapping users: item.v: column v is null" {
		t.Errorf("got %+v, want first %+v", groups, want)
	}
}
