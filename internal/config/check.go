package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/problem"
)

// checker looks at what goes over several keys.
type checker struct {
	config   *Config
	places   map[place]*yaml.Node
	stat     stater
	problems problem.List
	warnings problem.List
}

func (c *checker) run() {
	c.buffer()
	c.admin()
	for i := range c.config.Sinks {
		c.sink(&c.config.Sinks[i])
	}
	c.accounts()
	if n := c.places[place{c.config.File, "sinks"}]; n != nil && isEmpty(n) {
		c.wrong(c.config.File, "sinks", "no sink: there is nowhere to send to", "name one, and give it a type")
	}
	if n := c.places[place{c.config.File, "mappings"}]; len(c.config.Mappings) == 0 && (n == nil || isEmpty(n)) {
		c.wrong(c.config.File, "mappings", "no mapping: nothing would be sent", "write one, or include a file that has one")
	}
	for i := range c.config.Mappings {
		c.mapping(&c.config.Mappings[i])
	}
	c.names()
	c.unused()
	c.exposure()
}

// isEmpty says whether a mapping or list has nothing in it, as opposed to something that could not be read.
func isEmpty(n *yaml.Node) bool {
	return isNull(n) || n.Kind != yaml.ScalarNode && len(n.Content) == 0
}

func (c *checker) buffer() {
	b := &c.config.Buffer
	const largest = 64 << 20
	if b.MaxRow > largest {
		c.wrong(c.config.File, "buffer.max_row", "is more than 64MiB", "a row is in memory while it is handled; larger ones become dead letters")
	}
	if b.NATS == nil {
		return
	}
	if c.places[place{c.config.File, "buffer.dir"}] != nil {
		c.wrong(c.config.File, "buffer.dir", "the buffer is in NATS already", "write dir or nats")
	}
	b.Dir = ""
	if (b.NATS.CertFile == "") != (b.NATS.KeyFile == "") {
		c.wrong(c.config.File, "buffer.nats", "cert_file and key_file belong together", "")
	}
}

func (c *checker) admin() {
	a := c.config.Admin
	host, _, err := net.SplitHostPort(a.Listen)
	if err != nil || !a.Token.IsZero() || isLoopback(host) {
		return
	}
	c.wrong(c.config.File, "admin.listen", "others can reach this address, and there is no token",
		"write admin.token or admin.token_file, or listen on 127.0.0.1")
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (c *checker) sink(s *Sink) {
	path := join("sinks", s.Name)
	if s.Retry.Min > s.Retry.Max {
		c.wrong(c.config.File, path+".retry", "min is longer than max", "")
	}
	for key, address := range map[string]string{"url": s.URL, "auth.url": s.Auth.URL} {
		if u, err := url.Parse(address); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
			c.doubtful(c.config.File, path+"."+key, "credentials and personal data travel unencrypted", "use https")
		}
	}
	if twice := overlap(s.URL, EndpointPath(s.Type)); twice != "" {
		c.doubtful(c.config.File, path+".url", fmt.Sprintf("ends with %s, which the endpoint's own path %s begins with", twice, EndpointPath(s.Type)),
			"leave it out, unless a gateway wants it twice")
	}
}

// EndpointPath is what a sink of a type adds to its url; empty for an unknown type.
func EndpointPath(t SinkType) string { return sinkDefaults[t].path }

// overlap is the end of a url's path that is the beginning of the endpoint's, or all of it; empty when there is none.
func overlap(address, endpoint string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	given, path := strings.ToLower(strings.TrimRight(u.Path, "/")), strings.ToLower(endpoint)
	for end := len(path); end > 0; end = strings.LastIndexByte(path[:end], '/') {
		if strings.HasSuffix(given, path[:end]) {
			return endpoint[:end]
		}
	}
	return ""
}

// accounts gives the sinks of one account its rate.
func (c *checker) accounts() {
	rates := map[string]*Sink{}
	for i := range c.config.Sinks {
		s := &c.config.Sinks[i]
		if s.Rate == (Rate{}) {
			continue
		}
		first := rates[s.Account]
		if first != nil && first.Rate != s.Rate {
			c.wrong(c.config.File, join("sinks", s.Name)+".rate", fmt.Sprintf("sink %s says another rate for account %s", first.Name, s.Account),
				"the sinks of an account share one rate: write it once")
		}
		if first == nil {
			rates[s.Account] = s
		}
	}
	for i := range c.config.Sinks {
		if s := &c.config.Sinks[i]; rates[s.Account] != nil {
			s.Rate = rates[s.Account].Rate
		}
	}
}

func (c *checker) mapping(m *Mapping) {
	sinks := make([]string, len(c.config.Sinks))
	for i, s := range c.config.Sinks {
		sinks[i] = s.Name
	}
	if m.Sink != "" && !slices.Contains(sinks, m.Sink) {
		c.wrong(m.File, m.Path+".sink", fmt.Sprintf("there is no sink %q", m.Sink), problem.Nearest(m.Sink, sinks))
		return
	}
	switch {
	case m.Refresh != nil:
		c.refresh(m)
	case m.Item.Kind == 0 && !c.written(m, "refresh"):
		c.wrong(m.File, m.Path+".item", "missing", "what is sent, in the vendor's own field names; or refresh")
	}
	c.parents(m)
}

// refresh has nothing of its own to render, and needs a mapping that does.
func (c *checker) refresh(m *Mapping) {
	for _, key := range []string{"item", "lookups", "coalesce", "key", "backfill"} {
		if c.written(m, key) {
			c.wrong(m.File, m.Path+"."+key, "a mapping with refresh has none of its own", "the item of "+m.Refresh.Table.String()+" is sent")
		}
	}
	for i := range c.config.Mappings {
		if root := &c.config.Mappings[i]; root.Table == m.Refresh.Table && root.Sink == m.Sink && root.Refresh == nil {
			return
		}
	}
	if m.Refresh.Table != (Table{}) {
		c.wrong(m.File, m.Path+".refresh.table", fmt.Sprintf("no mapping sends %s to %s", m.Refresh.Table, m.Sink), "write one with an item")
	}
}

func (c *checker) written(m *Mapping, key string) bool {
	return c.places[place{m.File, m.Path + "." + key}] != nil
}

// parents must be mappings to the same sink, and none its own ancestor.
func (c *checker) parents(m *Mapping) {
	var siblings []string
	for i := range c.config.Mappings {
		if o := &c.config.Mappings[i]; o.Sink == m.Sink && o != m && o.Name != "" {
			siblings = append(siblings, o.Name)
		}
	}
	for i, p := range m.Parents {
		at := fmt.Sprintf("%s.parents[%d].mapping", m.Path, i)
		parent := c.parent(m, p)
		switch {
		case p.Mapping == "":
		case parent == nil:
			c.wrong(m.File, at, fmt.Sprintf("sink %s has no other mapping %q", m.Sink, p.Mapping), problem.Nearest(p.Mapping, siblings))
		case c.descends(parent, m, nil):
			c.wrong(m.File, at, fmt.Sprintf("%q waits for this mapping in its turn", p.Mapping), "")
		}
	}
}

// parent finds the mapping that p names, nil when there is none.
func (c *checker) parent(m *Mapping, p Parent) *Mapping {
	named, err := parseTable(p.Mapping)
	for i := range c.config.Mappings {
		o := &c.config.Mappings[i]
		if o != m && o.Sink == m.Sink && (o.Name == p.Mapping || err == nil && o.Table == named) {
			return o
		}
	}
	return nil
}

// descends says whether m has ancestor among its parents' parents.
func (c *checker) descends(m, ancestor *Mapping, seen []*Mapping) bool {
	if m == nil || slices.Contains(seen, m) {
		return false
	}
	seen = append(seen, m)
	return m == ancestor || slices.ContainsFunc(m.Parents, func(p Parent) bool { return c.descends(c.parent(m, p), ancestor, seen) })
}

func (c *checker) names() {
	first := map[string]*Mapping{}
	for i := range c.config.Mappings {
		m := &c.config.Mappings[i]
		other := first[m.Name]
		switch {
		case m.Name == "":
		case other == nil:
			first[m.Name] = m
		case c.written(m, "name"):
			c.wrong(m.File, m.Path+".name", fmt.Sprintf("the mapping on line %d of %s has this name", other.Line, other.File), "")
		default:
			c.wrong(m.File, m.Path, fmt.Sprintf("the mapping on line %d of %s sends %s to %s too", other.Line, other.File, m.Table, m.Sink),
				"give one of them a name")
		}
	}
}

func (c *checker) unused() {
	for i := range c.config.Sinks {
		s := &c.config.Sinks[i]
		if !slices.ContainsFunc(c.config.Mappings, func(m Mapping) bool { return m.Sink == s.Name }) {
			c.doubtful(c.config.File, join("sinks", s.Name), "no mapping uses this sink", "")
		}
	}
}

func (c *checker) wrong(file, path, message, hint string) {
	c.problems = append(c.problems, c.at(file, path, message, hint))
}

func (c *checker) doubtful(file, path, message, hint string) {
	c.warnings = append(c.warnings, c.at(file, path, message, hint))
}

// at places a problem at the value, or at the nearest section around it that is written.
func (c *checker) at(file, path, message, hint string) *problem.Problem {
	p := &problem.Problem{File: file, Path: path, Message: message, Hint: hint}
	for {
		if n := c.places[place{file, path}]; n != nil {
			p.Line, p.Column = n.Line, n.Column
			return p
		}
		if path == "" {
			return p
		}
		path = path[:max(0, strings.LastIndexByte(path, '.'))]
	}
}
