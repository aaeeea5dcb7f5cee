package config

import (
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"gopkg.in/yaml.v3"
)

// exposure warns about what lets others read secrets or rows: connections that prove nothing, tokens that can be guessed, files that
// everybody may read.
func (c *checker) exposure() {
	s, a := c.config.Source, c.config.Admin
	c.postgres("source.url", s.URL.Reveal())
	if c.configured("source.query_url") != "" {
		c.postgres("source.query_url", s.QueryURL.Reveal())
	}
	if n := c.config.Buffer.NATS; n != nil {
		c.nats(n)
	}
	c.token(a)
	c.readable()
	if dir := c.config.Buffer.Dir; dir != "" {
		if info, err := c.stat(dir); err == nil && info.Mode().Perm()&0o002 != 0 {
			c.doubtful(c.config.File, "buffer.dir", "everybody may write into the folder "+dir, "chmod 700 "+dir)
		}
	}
}

// configured is the key under which a secret stands in the file: its own, or that of its file. It is empty when there is neither.
func (c *checker) configured(key string) string {
	for _, k := range []string{key, key + "_file"} {
		if c.places[place{c.config.File, k}] != nil {
			return k
		}
	}
	return ""
}

// postgres looks at every host and every way of connecting that the URL stands for.
func (c *checker) postgres(key, address string) {
	cfg, err := pgconn.ParseConfig(address)
	if address == "" || err != nil {
		return // reported where it was read
	}
	ways := []*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}
	for _, way := range append(ways, cfg.Fallbacks...) {
		network, _ := pgconn.NetworkAddress(way.Host, way.Port)
		t := way.TLSConfig
		proven := t != nil && (!t.InsecureSkipVerify || t.VerifyPeerCertificate != nil || t.VerifyConnection != nil)
		if network == "unix" || isLoopback(way.Host) || proven {
			continue
		}
		c.doubtful(c.config.File, c.configured(key), fmt.Sprintf("nothing proves that %s is the database's server, and rows may travel unencrypted", way.Host),
			"write sslmode=verify-full, and sslrootcert for a certificate authority of your own")
		return
	}
}

// nats looks at each server of the list. A certificate file makes the client ask for TLS whatever the scheme is.
func (c *checker) nats(n *NATS) {
	if n.CAFile != "" || n.CertFile != "" {
		return
	}
	for server := range strings.SplitSeq(n.URL.Reveal(), ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil || isLoopback(u.Hostname()) || u.Scheme == "tls" || u.Scheme == "wss" {
			continue
		}
		c.doubtful(c.config.File, c.configured("buffer.nats.url"), fmt.Sprintf("rows and credentials travel to %s unencrypted", u.Hostname()), "use tls:// or write ca_file")
		return
	}
}

// shortest is the length of a token that others can try: 16 random letters and digits hold some 95 bits.
const shortest = 16

func (c *checker) token(a Admin) {
	token, host := a.Token.Reveal(), a.Listen
	if h, _, err := net.SplitHostPort(a.Listen); err == nil {
		host = h
	}
	key := c.configured("admin.token")
	switch {
	case key != "" && token == "" && !strings.Contains(c.places[place{c.config.File, key}].Value, ":-}"): // a default that is empty is meant
		c.doubtful(c.config.File, key, "is empty, which is no token: whoever reaches the listener may use it", "write one, or leave the key out")
	case token != "" && len(token) < shortest && !isLoopback(host):
		c.doubtful(c.config.File, key, fmt.Sprintf("is shorter than %d characters, and others can reach %s", shortest, a.Listen), "openssl rand -hex 32")
	}
}

// readable warns about files with secrets that everybody on the machine may read.
func (c *checker) readable() {
	literal := false
	for at, n := range c.places {
		if at.file != c.config.File || n.Kind != yaml.ScalarNode || n.Value == "" {
			continue
		}
		if holdsSecret(at.path, n.Value) {
			literal = true
		}
		if namesSecret(at.path) {
			c.closed(relativeTo(c.config.File, n.Value), at.path, "the secret file "+n.Value)
		}
	}
	if literal {
		c.closed(c.config.File, "", "this file, which holds a secret")
	}
}

func (c *checker) closed(name, path, what string) {
	if info, err := c.stat(name); err == nil && info.Mode().Perm()&0o004 != 0 {
		c.doubtful(c.config.File, path, "everybody on this machine may read "+what, "chmod 600 "+name)
	}
}

// holdsSecret reports whether the text of a key is a credential, or an address with a password, and not the name of a variable.
func holdsSecret(path, text string) bool {
	switch path {
	case "source.url", "source.query_url":
		cfg, err := pgconn.ParseConfig(text)
		return err == nil && cfg.Password != "" && strings.Contains(text, cfg.Password) && !strings.Contains(cfg.Password, "${")
	case "buffer.nats.url":
		u, err := url.Parse(strings.TrimSpace(strings.Split(text, ",")[0]))
		return err == nil && u.User != nil && !strings.Contains(text, "${")
	}
	last := path[strings.LastIndexByte(path, '.')+1:]
	return (last == "token" || last == "api_key" || last == "client_secret") && !strings.Contains(text, "${")
}

// namesSecret reports whether the text of a key is the name of a file with a secret.
func namesSecret(path string) bool {
	for _, end := range []string{"token_file", "api_key_file", "client_secret_file", "url_file", ".key_file", ".credentials_file"} {
		if strings.HasSuffix(path, end) {
			return true
		}
	}
	return false
}

// stater reports the state of a file: os.Stat but for tests.
type stater func(name string) (fs.FileInfo, error)
