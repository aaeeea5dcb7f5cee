package pgtest

import (
	"bytes"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

var shared Shared

func TestMain(m *testing.M) { goleak.VerifyTestMain(shared.Suite(m)) }

func query(t *testing.T, address, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var text string
	if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

func TestSettings(t *testing.T) {
	address := shared.NewDatabase(t)
	if got := query(t, address, `select current_setting('wal_level') || ' ' || current_setting('TimeZone')`); got != "logical UTC" {
		t.Errorf("wal_level and time zone are %q", got)
	}
}

func TestDatabasesAreApartAndGoWithTheirSlots(t *testing.T) {
	var first string
	t.Run("inner", func(t *testing.T) {
		first = shared.NewDatabase(t)
		query(t, first, `select pg_create_logical_replication_slot('pgtest_slot', 'pgoutput')::text`)
		if second := shared.NewDatabase(t); second == first {
			t.Errorf("both databases are %s", first)
		}
	})
	admin := shared.Server(t).URL("postgres")
	if n := query(t, admin, `select count(*)::text from pg_replication_slots where slot_name = 'pgtest_slot'`); n != "0" {
		t.Error("the slot outlived its database")
	}
	if _, err := pgx.Connect(t.Context(), first); err == nil {
		t.Error("the database outlived its test")
	}
}

func TestLife(t *testing.T) {
	for name, options := range map[string]Options{"socket": {}, "tcp": {TCP: true, Settings: map[string]string{"wal_sender_timeout": "3s"}}} {
		t.Run(name, func(t *testing.T) {
			s := Own(t, options)
			address := s.URL("postgres")
			query(t, address, `select txid_current()::text`)
			for _, mode := range []Mode{Fast, Immediate, Crash} {
				before := s.Pid()
				if err := s.Restart(t.Context(), mode); err != nil {
					t.Fatalf("restart, mode %d: %v", mode, err)
				}
				if s.Pid() == before || s.Pid() == 0 {
					t.Errorf("pid %d after %d", s.Pid(), before)
				}
				query(t, address, `select 1::text`)
			}
			if options.TCP {
				if got := query(t, address, `show wal_sender_timeout`); got != "3s" {
					t.Errorf("wal_sender_timeout is %s", got)
				}
			}
			if !strings.Contains(s.Logs(), "database system is ready") {
				t.Errorf("log is %q", s.Logs())
			}
			if err := s.Shutdown(t.Context(), Fast); err != nil {
				t.Fatal(err)
			}
			if _, err := pgx.Connect(t.Context(), address); err == nil {
				t.Error("the server answers after its shutdown")
			}
			dir := s.local.dir
			if err := errors.Join(s.Stop(t.Context()), s.Stop(t.Context())); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", dir, err)
			}
		})
	}
}

func TestDataDirIsKept(t *testing.T) {
	parent, err := os.MkdirTemp("/tmp", "pgtest") //nolint:usetesting // t.TempDir is closed to user postgres
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	options := Options{DataDir: filepath.Join(parent, "data")}
	s := Own(t, options)
	if _, err := s.CreateDatabase(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	query(t, Own(t, options).URL("kept"), `select 1::text`)
}

// A killed process leaves no server behind. The test runs itself as the process that is killed.
func TestServerEndsWithItsParent(t *testing.T) {
	const mark = "CDCSYNC_PGTEST_VICTIM"
	if os.Getenv(mark) != "" {
		s := Own(t, Options{})
		os.Stdout.WriteString("url " + s.URL("postgres") + "\n")
		<-t.Context().Done()
		select {}
	}
	if Own(t, Options{}).Pid() == 0 {
		return
	}
	var out tail
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServerEndsWithItsParent$")
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var address string
	if err := until(t.Context(), 10*time.Millisecond, func() error {
		_, line, found := strings.Cut(out.String(), "url ")
		if line, _, _ = strings.Cut(line, "\n"); !found || line == "" {
			return errors.New("not up yet")
		}
		address = line
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	query(t, address, `select 1::text`)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	t.Cleanup(func() { // what a killed process leaves is removed by a later Start; do not wait for that
		if u, err := url.Parse(address); err == nil {
			os.RemoveAll(u.Query().Get("host"))
		}
	})
	if err := until(t.Context(), 10*time.Millisecond, func() error {
		if conn, err := pgx.Connect(t.Context(), address); err == nil {
			return errors.Join(errors.New("still up"), conn.Close(t.Context()))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestChoice(t *testing.T) {
	t.Setenv("CDCSYNC_TEST_POSTGRES", "elsewhere")
	if _, err := Start(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "docker:IMAGE") {
		t.Errorf("unknown place: %v", err)
	}
	t.Setenv("CDCSYNC_TEST_POSTGRES", "")
	t.Setenv("CDCSYNC_TEST_PG_BIN", t.TempDir())
	if _, err := Start(t.Context(), Options{Where: "local"}); err == nil || !strings.Contains(err.Error(), "CDCSYNC_TEST_PG_BIN") {
		t.Errorf("no binaries: %v", err)
	}
	if err := errMissing(); !strings.Contains(err.Error(), "install") {
		t.Errorf("%v names no command", err)
	}
}

func TestURL(t *testing.T) {
	address := shared.NewDatabase(t)
	s, err := Start(t.Context(), Options{Where: address})
	if err != nil {
		t.Fatal(err)
	}
	query(t, s.NewDatabase(t), `select 1::text`)
	if err := s.Restart(t.Context(), Fast); !errors.Is(err, ErrUnsupported) {
		t.Errorf("restart of a foreign server: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	query(t, address, `select 1::text`)
}

// The docker client is replaced by a script that starts a container's server from local binaries: what is tested is our half of the talk.
func TestDockerTalk(t *testing.T) {
	inner := Own(t, Options{TCP: true})
	host := inner.base.Host
	dir := t.TempDir()
	script := "#!/bin/sh\necho \"$@\" >>" + dir + "/calls\ncase $1 in\nport) echo " + host + ";;\nrun) trap 'exit 0' INT; while :; do sleep 0.05; done;;\nesac\n"
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s, err := Start(t.Context(), Options{Where: "docker:postgres:16", Settings: map[string]string{"wal_sender_timeout": "3s"}})
	if err != nil {
		t.Fatal(err)
	}
	query(t, s.URL("postgres"), `select 1::text`)
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--publish 127.0.0.1::5432", "postgres:16 -c", "wal_level=logical", "wal_sender_timeout=3s", "rm --force"} {
		if !bytes.Contains(calls, []byte(want)) {
			t.Errorf("docker was not asked for %q: %s", want, calls)
		}
	}
}
