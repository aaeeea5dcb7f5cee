package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/secret"
)

func TestStringPrintsNowhere(t *testing.T) {
	const planted = "hunter2"
	type holder struct {
		Key    secret.String
		Keys   []secret.String
		hidden secret.String
	}
	key := secret.New(planted)
	value := holder{key, []secret.String{key}, key}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+"\n", value)
		fmt.Fprintf(&out, verb+"\n", value.Key)
	}
	encoded, err := json.Marshal(map[secret.String]holder{key: value})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(encoded)
	slog.New(slog.NewTextHandler(&out, nil)).Info("message", "key", value.Key, "holder", value)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("message", "key", value.Key, "holder", value)
	for _, form := range []string{planted, fmt.Sprintf("%x", planted), fmt.Sprintf("%X", planted)} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the secret shows as %s in\n%s", form, out.String())
		}
	}
	if value.hidden.Reveal() != planted {
		t.Error("Reveal does not give the secret")
	}
	var none secret.String
	if !none.IsZero() || none.Reveal() != "" || none.String() != "" {
		t.Error("the zero String holds something")
	}
}
