package integration

import (
	"regexp"
	"strings"
	"testing"
)

// planted are what no line of any daemon's log may hold, in any test of this package: credentials, tokens, and values of rows.
var planted = map[string]*regexp.Regexp{
	"a client secret or API key": regexp.MustCompile(`sandbox-secret|sandbox-key|wrong-secret|wrong-key`),
	"an access token":            regexp.MustCompile(`sandbox\.[A-Z2-7]{20,}`),
	"a CPF":                      regexp.MustCompile(`98765\d{6}|987\.65\d\.\d{3}-\d\d`),
	"an e-mail address":          regexp.MustCompile(`planted\.example`),
	"a value of a row":           regexp.MustCompile(`“quoted”|note \d+|socialName`),
}

func checkLog(tb testing.TB, log string) {
	tb.Helper()
	for line := range strings.Lines(log) {
		for what, pattern := range planted {
			if pattern.MatchString(line) {
				tb.Errorf("a line of the daemon's log holds %s: %s", what, line)
			}
		}
	}
}

func TestCheckLogFindsThem(t *testing.T) {
	for _, text := range []string{
		`url="http://h/api/token?client_secret=sandbox-secret"`, `AccessToken: sandbox.ABCDEFGHIJKLMNOPQRSTUVWXYZ`,
		`CPF 987.654.000-17`, `{"cpf":"98765400017"}`, `user7@planted.example`, `text 17 “quoted”`,
	} {
		found := false
		for _, pattern := range planted {
			found = found || pattern.MatchString(text)
		}
		if !found {
			t.Errorf("%s is not found", text)
		}
	}
}
