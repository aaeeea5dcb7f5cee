package config

import (
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/secret"
)

const examplePath = "../../config.example.yaml"

// exampleEnv sets every variable that the example names.
func exampleEnv(name string) (string, bool) {
	if strings.HasSuffix(name, "_URL") && !strings.HasPrefix(name, "FANATICS") {
		return "postgres://u:p@localhost/" + name, true
	}
	if strings.HasSuffix(name, "_URL") {
		return "https://fanatics.example.com/" + name, true
	}
	return "value of " + name, true
}

// loadFiles loads config.yaml of files, which are all there is.
func loadFiles(tb testing.TB, files, env map[string]string) (*Config, error) {
	tb.Helper()
	l := loader{
		config:   &Config{File: "config.yaml"},
		env:      func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		readFile: memory(files).read,
		glob:     memory(files).glob,
		stat:     memory(files).stat,
		places:   map[place]*yaml.Node{},
	}
	return l.load("config.yaml")
}

type memory map[string]string

func (m memory) read(name string) ([]byte, error) {
	content, ok := m[filepath.ToSlash(name)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(content), nil
}

// stat reports that only the owner may read or write.
func (m memory) stat(string) (fs.FileInfo, error) { return openTo(0o600) }

// openTo is the state of a file with these permissions.
func openTo(mode fs.FileMode) (fs.FileInfo, error) {
	return fstest.MapFS{"f": {Mode: mode}}.Stat("f")
}

func (m memory) glob(pattern string) (matches []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return nil, err
		}
		if ok {
			matches = append(matches, name)
		}
	}
	return matches, nil
}

// minimal is the least that loads.
const minimal = `
source: {url: postgres://localhost/app}
sinks:
  crm: {type: stopchurn, url: "https://crm.example.com/", api_key: key}
mappings:
  - {table: users, sink: crm, item: {}}
`

func TestDefaults(t *testing.T) {
	got, err := loadFiles(t, map[string]string{"config.yaml": minimal}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got.Mappings[0].Item = yaml.Node{}
	want := &Config{
		File: "config.yaml",
		Source: Source{
			URL: secret.New("postgres://localhost/app"), QueryURL: secret.New("postgres://localhost/app"), QueryTimeout: 30 * time.Second,
			Slot: "cdcsync", Publication: "cdcsync", Survey: 10 * time.Second, Repair: RepairAsk, Manage: true,
		},
		Buffer:   Buffer{Dir: "./cdcsync-data", MaxSize: 10 << 30, MaxRow: 16 << 20, Ack: AckStored},
		Admin:    Admin{Listen: "127.0.0.1:8484"},
		Shutdown: Shutdown{Grace: 30 * time.Second},
		Log:      Log{Level: LogInfo, Format: LogText},
		Sinks: []Sink{{
			Name: "crm", Type: StopChurn, URL: "https://crm.example.com", APIKey: secret.New("key"),
			Batch: Batch{Items: 500, Bytes: 1 << 20}, Concurrency: 2, Account: "crm", Timeout: 30 * time.Second,
			Retry: Retry{Min: 500 * time.Millisecond, Max: time.Minute, MaxWait: 15 * time.Minute, GiveUp: time.Hour}, DeadLetters: DeadLetters{Limit: 1000},
		}},
		Mappings: []Mapping{{
			File: "config.yaml", Path: "mappings[0]", Line: 6, Name: "public.users:crm",
			Table: Table{"public", "users"}, Sink: "crm", Backfill: BackfillNone,
		}},
	}
	if diff := cmp.Diff(want, got, compareSecrets, cmp.AllowUnexported(Config{})); diff != "" {
		t.Error(diff)
	}
}

var compareSecrets = cmp.Comparer(func(a, b secret.String) bool { return a.Reveal() == b.Reveal() })

func TestSecretsVariablesAnchorsAndIncludes(t *testing.T) {
	files := map[string]string{
		"config.yaml": `
x-common: &common
  url: https://connect.example.com
  auth: {url: https://token.example.com/api/token, client_id: ${ID}, client_secret_file: secrets/fanbase}
  concurrency: 3
source: {url: "postgres://app:${PASSWORD}@db/app", slot: ${SLOT:-pipeline_1}, publication: $${literal}}
admin: {listen: ":8484", token: ${TOKEN:-}, token_file: secrets/token}
sinks:
  fans: {<<: *common, type: fanbase_queue, rate: 100/m, account: fanbase, polls: 5/s}
  registry:
    <<: [*common, {concurrency: 9, timeout: 5s}]
    type: fanbase_batch
    account: fanbase
    system_id: ${SYSTEM}
  unused: {type: stopchurn, url: http://crm.example.com, api_key: $ecret$${x}}
include: [mappings/*.yaml, mappings/a.yaml]
`,
		"secrets/fanbase": "  from file\n",
		"secrets/token":   "t\n",
		"mappings/b.yaml": "mappings: [{table: '\"My Schema\".\"a.b\"', sink: registry, name: second, item: {}, on: [delete]}]",
		"mappings/a.yaml": "mappings:\n  - table: ${SCHEMA}.Fans\n    sink: fans\n    when: name != \"${SCHEMA}\"\n    item: &item {id: $id, cpf: \"$${ID} ${ID}\"}\n" +
			"    lookups: {plans: {key: $id, sql: \"select ${ID} = any($1)\"}}\n",
	}
	c, err := loadFiles(t, files, map[string]string{"ID": "id: {a, #b}", "PASSWORD": "p%20", "SYSTEM": "42", "SCHEMA": "app", "TOKEN": ""})
	if err != nil {
		t.Fatal(err)
	}
	fans, registry := c.Sink("fans"), c.Sink("registry")
	checks := []struct{ what, got, want string }{
		{"variable within a URL", c.Source.URL.Reveal(), "postgres://app:p%20@db/app"},
		{"default of a variable", c.Source.Slot, "pipeline_1"},
		{"escaped variable", c.Source.Publication, "${literal}"},
		{"empty variable gives way to the file", c.Admin.Token.Reveal(), "t"},
		{"secret file", fans.Auth.ClientSecret.Reveal(), "from file"},
		{"variable in flow style", fans.Auth.ClientID, "id: {a, #b}"},
		{"dollar signs", c.Sink("unused").APIKey.Reveal(), "$ecret${x}"},
		{"template is left alone", c.Mappings[0].Item.Content[3].Value, "$${ID} ${ID}"},
		{"expression is left alone", c.Mappings[0].When.Value, `name != "${SCHEMA}"`},
		{"SQL is left alone", c.Mappings[0].Lookups[0].SQL, "select ${ID} = any($1)"},
		{"table with a variable", c.Mappings[0].Table.String(), "app.Fans"},
		{"quoted table", c.Mappings[1].Table.Schema + "/" + c.Mappings[1].Table.Name, "My Schema/a.b"},
		{"file of a mapping", c.Mappings[1].File + " " + c.Mappings[1].Path, "mappings/b.yaml mappings[0]"},
		{"warnings", c.Warnings.Error(), "config.yaml:6:15: source.url: nothing proves that db is the database's server, and rows may travel unencrypted; " +
			"write sslmode=verify-full, and sslrootcert for a certificate authority of your own\n" +
			"config.yaml:7:33: admin.token: is shorter than 16 characters, and others can reach :8484; openssl rand -hex 32\n" +
			"config.yaml:15:11: sinks.unused: no mapping uses this sink\n" +
			"config.yaml:15:34: sinks.unused.url: credentials and personal data travel unencrypted; use https"},
	}
	for _, check := range checks {
		if check.got != check.want {
			t.Errorf("%s: got %q, want %q", check.what, check.got, check.want)
		}
	}
	if fans.Concurrency != 3 || registry.Concurrency != 3 || registry.Timeout != 5*time.Second || registry.SystemID != 42 {
		t.Errorf("merge keys: %+v %+v", fans, registry)
	}
	if registry.Rate.PerSecond() != fans.Rate.PerSecond() || registry.Rate.Count != 100 {
		t.Errorf("the rate of the account is %v and %v", fans.Rate, registry.Rate)
	}
	if !slices.Equal(c.Mappings[1].On, []cdc.Op{cdc.OpDelete}) || c.Mappings[1].Index != 1 {
		t.Errorf("second mapping: %+v", c.Mappings[1])
	}
	if got := c.Admin.BaseURL(); got != "http://127.0.0.1:8484" {
		t.Errorf("admin at %s", got)
	}
}

func TestExampleLoads(t *testing.T) {
	c, err := Load(examplePath, exampleEnv)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Error(c.Warnings)
	}
	if len(c.Sinks) != len(SinkTypes()) {
		t.Errorf("%d sinks for %d types", len(c.Sinks), len(SinkTypes()))
	}
}

func TestErrorsHoldNoSecret(t *testing.T) {
	const planted = "hunter2"
	for _, url := range []string{
		"postgres://app:" + planted + "/x@db/app", "postgres://app:" + planted + "@db:port/app", "host=db password=" + planted + " port=x",
		"postgres://app:%zz" + planted + "@db/app", "`: " + planted,
	} {
		files := map[string]string{
			"config.yaml": strings.Replace(minimal, "postgres://localhost/app", "${URL}", 1) + "admin: {listen: ${URL}}\n",
			"url":         url,
		}
		_, err := loadFiles(t, files, map[string]string{"URL": url})
		if err == nil || strings.Contains(err.Error(), planted) {
			t.Errorf("%s: %v", url, err)
		}
		files["config.yaml"] = strings.Replace(minimal, "url: postgres://localhost/app", "url_file: url", 1)
		_, err = loadFiles(t, files, nil)
		if err == nil || strings.Contains(err.Error(), planted) {
			t.Errorf("%s in a file: %v", url, err)
		}
	}
}

func TestLaterKeysAreRefusedByName(t *testing.T) {
	root, problems := parseTree("c.yaml", []byte("a: 1\nb: 2\n"))
	d := decoder{file: "c.yaml", problems: &problems, places: map[place]*yaml.Node{}}
	var a string
	d.section(root, "", keysOf{{name: "a", value: text(&a)}, {name: "b", value: text(new(string)), later: true}})
	if got, want := problems.Error(), "c.yaml:2:1: b: not supported yet; remove it"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type keysOf []key

func (k keysOf) keys() []key { return k }

func TestAliasesDoNotExplode(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 20 {
		name, previous := string(rune('b'+i)), "a0"
		if i > 0 {
			previous = string(rune('a'+i)) + "0"
		}
		b.WriteString(name + "0: &" + name + "0 [" + strings.Repeat("*"+previous+", ", 9) + "*" + previous + "]\n")
	}
	_, problems := parseTree("c.yaml", []byte(b.String()))
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "more than 200000 values") {
		t.Errorf("got %v", problems)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(minimal)
	for _, seed := range []string{
		"a: &a [*a]", "a: &a {<<: *a}", "x-a: &a {slot: s}\nsource: {<<: [*a, *a], url: ${X:-postgres://h/d}}", "source:\n  - a\n b: c\n", "<<: 1", "? [a]\n: b",
		"sinks: {a: {type: fanbase_batch, auth: , system_id: 1e3}}", "mappings: [{table: '\"a', on: [truncate], item: *x}]", "source: ${", "\xff\xfe", "%YAML 9\n",
		"include: ['[', config.yaml]", "mappings:\n- {name: a, parents: [{mapping: b, key: $b}], sink: s, table: t, item: 1}\n- {name: b, parents: [{mapping: a}], sink: s, table: t, item: 1}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content string) {
		c, err := loadFiles(t, map[string]string{"config.yaml": content, "secret": "s"}, map[string]string{"DATABASE_URL": "postgres://h/d", "EMPTY": ""})
		if err == nil && (len(c.Sinks) == 0 || len(c.Mappings) == 0 || c.Source.Slot == "") {
			t.Fatalf("no error, and %+v", c)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "config.yaml") {
			t.Fatalf("a problem without its file: %v", err)
		}
	})
}
