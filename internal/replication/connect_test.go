package replication

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pgtest"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate as PEM
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, file: filepath.Join(t.TempDir(), "ca.crt")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	var certificate []byte
	certificate, a.key = a.sign(template, template)
	var err error
	block, _ := pem.Decode(certificate)
	if a.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign makes a key and a certificate for it, which signs itself when the authority has no key yet.
func (a *authority) sign(template, parent *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

// server is a certificate for the loopback addresses, and its key.
func (a *authority) server() (certificate, key []byte) {
	a.t.Helper()
	certificate, private := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, a.cert)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

const (
	walRole     = "wal" // what the README asks for
	walPassword = "p@ss/wörd"
)

// secured is a server that lets walRole in over TLS with its password only, and its certificate's authority.
func secured(t *testing.T) (*live, *authority) {
	t.Helper()
	server := pgtest.Own(t, pgtest.Options{TCP: true, Settings: map[string]string{
		"wal_level": "logical", "listen_addresses": "*", "password_encryption": "scram-sha-256",
	}})
	l := liveOn(t, server.NewDatabase(t), "create table a (id int primary key, v text)", "a")
	ca := newAuthority(t)
	certificate, key := ca.server()
	for name, content := range map[string][]byte{"server.crt": certificate, "server.key": key, "pg_hba.conf": []byte(`
		local     all all      trust
		hostnossl all postgres 127.0.0.1/32 trust
		hostssl   all wal      all scram-sha-256
	`)} { // the server writes them itself, so that they are its own
		l.exec(fmt.Sprintf("copy (select '%s') to program 'umask 077; base64 -d > %s'", base64.StdEncoding.EncodeToString(content), name))
	}
	l.exec("create role " + walRole + " login replication password '" + walPassword + "'")
	l.exec("grant select on a to " + walRole)
	l.exec("alter system set ssl = on")
	l.exec("select pg_reload_conf()")
	l.until("TLS", func() bool { return l.value("show ssl") == "on" })
	return l, ca
}

// as is the database's URL for walRole.
func (l *live) as(hosts string, query url.Values) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword(walRole, walPassword), Host: hosts, Path: "/" + l.conn.Config().Database, RawQuery: query.Encode(),
	}).String()
}

// The role of the README gets everything through TLS with a password, over both network families and past a host that is down;
// the publication is another role's, and there is nothing that it owns.
func TestLiveConnections(t *testing.T) {
	l, ca := secured(t)
	l.cfg.Manage = false
	statements, err := SetupSQL(l.ctx, l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range statements {
		l.exec(st.SQL)
	}
	port := l.value("show port")
	ipv4, ipv6 := net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)
	verified := url.Values{"sslmode": {"verify-full"}, "sslrootcert": {ca.file}}
	rows := 0
	for _, test := range []struct {
		name, url string
	}{
		{"require", l.as(ipv4, url.Values{"sslmode": {"require"}})},
		{"verify-full", l.as(ipv4, verified)},
		{"IPv6", l.as(ipv6, verified)},
		{"several hosts", l.as("127.0.0.1:1,"+ipv4, url.Values{"sslmode": {"require"}, "target_session_attrs": {"read-write"}})},
		{"key=value", fmt.Sprintf("host=::1 port=%s dbname=%s user=%s password='%s' sslmode=verify-full sslrootcert=%s",
			port, l.conn.Config().Database, walRole, walPassword, ca.file)},
	} {
		t.Run(test.name, func(t *testing.T) {
			if strings.Contains(test.url, "::1") {
				requireIPv6(t)
			}
			was := l.t
			defer func() { l.t = was }()
			l.t = t
			l.cfg.URL = test.url
			l.streamsAndReads(rows)
			rows += 2001
		})
	}
}

func requireIPv6(t *testing.T) {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("SKIPPED: no IPv6 here: %v", err)
	}
	listener.Close()
}

// streamsAndReads tries all three kinds of connections.
func (l *live) streamsAndReads(before int) {
	l.t.Helper()
	reader, err := NewReader(l.ctx, l.cfg.URL, ReaderOptions{Publication: "p"})
	if err != nil {
		l.t.Fatal(err)
	}
	defer reader.Close()
	b := l.backfills(&memStore{})
	l.exec("truncate a")
	l.during(func(*Stream) {
		l.exec("insert into a select g, repeat('x', 1000) from generate_series(1, 2000) g")
		l.log.wait(l.ctx, l.t, "the rows", func() bool { return l.log.rows >= before+2000 })
		l.exec("insert into a values (0, 'last')")
		if encrypted := l.value("select bool_and(ssl)::text from pg_stat_ssl join pg_stat_activity using (pid) where usename = $1", walRole); encrypted != "true" {
			l.t.Error("not all connections are encrypted")
		}
	})
	changes := l.log.changes(l.t)
	last := changes[len(changes)-1]
	read, err := reader.Rows(l.ctx, last.Relation, []int{1}, [][]string{{"0"}}, nil)
	if err != nil || len(read) != 1 || string(read[0][0].Data) != "last" {
		l.t.Errorf("read back %v, %v", read, err)
	}
	chunks := b.reader(&BackfillSpec{Table: l.cfg.Tables[0]})
	defer chunks.close(l.ctx)
	var c chunk
	if err := chunks.read(l.ctx, &place{}, 10, &c); err != nil || len(c.rows) != 10 {
		l.t.Errorf("chunk of %d rows, %v", len(c.rows), err)
	}
}

func TestLiveConnectionsRefused(t *testing.T) {
	l, _ := secured(t)
	address := net.JoinHostPort("127.0.0.1", l.value("show port"))
	stranger := newAuthority(t)
	for name, test := range map[string]struct {
		url, reason string
	}{
		"wrong password": {strings.Replace(l.as(address, url.Values{"sslmode": {"require"}}), url.UserPassword(walRole, walPassword).String(), walRole+":wrong", 1), "does not let this role in"},
		"no encryption":  {l.as(address, url.Values{"sslmode": {"disable"}}), "does not let this role in"},
	} {
		t.Run(name, func(t *testing.T) {
			l.cfg.URL = test.url
			refused := l.refusal()
			if !strings.Contains(refused.Reason, test.reason) || strings.Contains(refused.Error(), walPassword) {
				t.Errorf("refused with %v", refused)
			}
		})
	}
	t.Run("unknown authority", func(t *testing.T) {
		l.cfg.URL = l.as(address, url.Values{"sslmode": {"verify-full"}, "sslrootcert": {stranger.file}})
		s := l.stream()
		ctx, cancel := context.WithCancel(l.ctx)
		p := pool.New().WithErrors()
		p.Go(func() error { return s.Run(ctx) })
		l.until("the reason", func() bool { return strings.Contains(s.Status().Reason, "certificate") })
		cancel()
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// With manage: true the role needs CREATE on the database and the tables for its own, and the message says so.
func TestLiveManagingRole(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	role := l.cfg.Slot
	l.exec("create role " + role + " login replication")
	t.Cleanup(func() {
		l.exec("drop owned by " + role)
		l.exec("drop role " + role)
	})
	l.cfg.URL = l.url + "&user=" + role
	for _, grant := range []string{
		"grant create on database " + quoteName(l.conn.Config().Database) + " to " + role,
		"alter table a owner to " + role,
	} {
		if refused := l.refusal(); !strings.Contains(refused.Error(), "CREATE on the database and must own the mapped tables") {
			t.Errorf("refused with %v", refused)
		}
		l.exec(grant)
	}
	l.during(func(*Stream) { l.exec("insert into a values (1)") })
	if diff := cmp.Diff("tx1#1 insert public.a new(id=\"1\")\n", describe(l.log.changes(t))); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// Rows that a policy hides are not taken for rows that are gone.
func TestLiveRowSecurityHidesNothing(t *testing.T) {
	l := newLive(t, "create table a (id int primary key); insert into a values (1); alter table a enable row level security", "a")
	role := l.cfg.Slot
	l.exec("create role " + role + " login replication")
	t.Cleanup(func() {
		l.exec("drop owned by " + role)
		l.exec("drop role " + role)
	})
	l.exec("grant select on a to " + role)
	l.cfg.URL = l.url + "&user=" + role
	reader, err := NewReader(l.ctx, l.cfg.URL, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	unreadable := func() bool {
		list, err := Check(l.ctx, l.cfg)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list, func(f Finding) bool { return strings.Contains(f.Message, "may not read") })
	}
	oid, err := strconv.ParseUint(l.value("select 'a'::regclass::oid::text"), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	rel := &cdc.Relation{OID: uint32(oid), Columns: []cdc.Column{{Name: "id", Type: builtinTypes[23]}}, PrimaryKey: []int{0}}
	for _, bypasses := range []bool{false, true} {
		if bypasses {
			l.exec("alter role " + role + " bypassrls")
		}
		rows, err := reader.Rows(l.ctx, rel, []int{0}, [][]string{{"1"}}, nil)
		switch {
		case bypasses != (err == nil):
			t.Errorf("bypassrls %v: %v, %v", bypasses, rows, err)
		case bypasses && rows[0] == nil:
			t.Error("the row is not found")
		}
		if unreadable() == bypasses {
			t.Errorf("bypassrls %v, and check says otherwise", bypasses)
		}
	}
}
