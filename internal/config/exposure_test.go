package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const exposureSinks = `
sinks:
  crm: {type: stopchurn, url: https://crm.example.com, api_key: ${KEY}}
mappings: [{table: public.a, sink: crm, item: {}}]
`

func TestExposure(t *testing.T) {
	const (
		unproven    = "nothing proves that db.example.com is the database's server"
		unencrypted = "rows and credentials travel to nats.example.com unencrypted"
	)
	t.Setenv("PGSSLMODE", "") // it is part of what a URL means
	for _, test := range []struct{ name, yaml, want string }{
		{"sslmode is prefer by default", "source: {url: postgres://db.example.com/a}", unproven},
		{"sslmode=disable", "source: {url: 'postgres://db.example.com/a?sslmode=disable'}", unproven},
		{"sslmode=require", "source: {url: 'postgres://db.example.com/a?sslmode=require'}", unproven},
		{"sslmode=verify-full", "source: {url: 'postgres://db.example.com/a?sslmode=verify-full'}", ""},
		{"DSN", "source: {url: host=db.example.com dbname=a}", unproven},
		{"second host", "source: {url: 'postgres://localhost,db.example.com/a'}", unproven},
		{"loopback", "source: {url: 'postgres://localhost,127.0.0.1,[::1]/a'}", ""},
		{"unix socket", "source: {url: host=/run/postgresql dbname=a}", ""},
		{"query_url", "source: {url: postgres://localhost/a, query_url: postgres://db.example.com/a}", "config.yaml:1:50: source.query_url: " + unproven},
		{"url from a variable", "source: {url: '${URL}'}", "config.yaml:1:15: source.url: " + unproven},

		{"NATS", "source: {url: postgres://localhost/a}\nbuffer: {nats: {url: nats://nats.example.com}}", unencrypted},
		{"second NATS server", "source: {url: postgres://localhost/a}\nbuffer: {nats: {url: 'nats://localhost,ws://nats.example.com'}}", unencrypted},
		{"NATS with TLS", "source: {url: postgres://localhost/a}\nbuffer: {nats: {url: tls://nats.example.com}}", ""},
		{"NATS with a CA", "source: {url: postgres://localhost/a}\nbuffer: {nats: {url: nats://nats.example.com, ca_file: ca.pem}}", ""},

		{"empty variable", "source: {url: postgres://localhost/a}\nadmin: {token: '${NOTHING}'}", "is empty"},
		{"token that is optional", "source: {url: postgres://localhost/a}\nadmin: {token: '${NOTHING:-}'}", ""},
		{"short token on a public address", "source: {url: postgres://localhost/a}\nadmin: {listen: '0.0.0.0:8484', token: '${SHORT}'}", "admin.token: is shorter than 16 characters"},
		{"short token on a loopback address", "source: {url: postgres://localhost/a}\nadmin: {token: '${SHORT}'}", ""},
		{"long token on a public address", "source: {url: postgres://localhost/a}\nadmin: {listen: ':8484', token: '${LONG}'}", ""},
	} {
		env := map[string]string{"KEY": "k", "URL": "postgres://db.example.com/a", "SHORT": "hunter2", "LONG": strings.Repeat("x", 32), "NOTHING": ""}
		c, err := loadFiles(t, map[string]string{"config.yaml": test.yaml + exposureSinks}, env)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got := c.Warnings.Error()
		if test.want == "" && len(c.Warnings) > 0 || !strings.Contains(got, test.want) {
			t.Errorf("%s: got warnings %q, want %q", test.name, got, test.want)
		}
		if strings.Contains(got, "hunter2") {
			t.Errorf("%s: a warning holds the secret: %s", test.name, got)
		}
	}
}

// TestExposedFiles uses real files, whose permissions are what is looked at.
func TestExposedFiles(t *testing.T) {
	const config = "source: {url: postgres://localhost/a}\nbuffer: {dir: DIR}\nadmin: {token_file: token}\n" + exposureSinks
	literal := strings.Replace(config, "${KEY}", "hunter2", 1)
	password := strings.Replace(config, "postgres://localhost/a", "postgres://u:hunter2@localhost/a", 1)
	variable := strings.Replace(config, "postgres://localhost/a", "'postgres://u:${KEY}@localhost/a'", 1)
	for _, test := range []struct {
		name, yaml          string
		file, secret, store fs.FileMode
		want                string
	}{
		{"closed", literal, 0o600, 0o600, 0o700, ""},
		{"readable by a group", literal, 0o640, 0o640, 0o750, ""},
		{"configuration without a secret", config, 0o644, 0o600, 0o700, ""},
		{"configuration with a variable in its URL", variable, 0o644, 0o600, 0o700, ""},
		{"configuration with an API key", literal, 0o644, 0o600, 0o700, "everybody on this machine may read this file"},
		{"configuration with a password in its URL", password, 0o644, 0o600, 0o700, "everybody on this machine may read this file"},
		{"secret file", config, 0o600, 0o644, 0o700, "config.yaml:3:21: admin.token_file: everybody on this machine may read the secret file token"},
		{"buffer's folder", config, 0o600, 0o600, 0o777, "everybody may write into the folder"},
	} {
		dir := t.TempDir()
		path, store := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "buffer")
		writeMode(t, path, strings.Replace(test.yaml, "DIR", store, 1), test.file)
		writeMode(t, filepath.Join(dir, "token"), "hunter2", test.secret)
		if err := os.Mkdir(store, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(store, test.store); err != nil { // Mkdir heeds the umask
			t.Fatal(err)
		}
		c, err := Load(path, func(string) (string, bool) { return "k", true })
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got := strings.ReplaceAll(c.Warnings.Error(), dir+"/", "")
		if test.want == "" && len(c.Warnings) > 0 || !strings.Contains(got, test.want) || strings.Contains(got, "hunter2") {
			t.Errorf("%s: got warnings %q, want %q", test.name, got, test.want)
		}
	}
}

func writeMode(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
