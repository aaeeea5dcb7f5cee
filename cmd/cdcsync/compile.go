package main

import (
	"errors"
	"strings"

	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/problem"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// compiled loads the configuration and compiles its mappings, one template a mapping, as far as that needs no database. Its error is
// a problem.List of everything that is wrong; the Config is never nil.
func (a *app) compiled() (*config.Config, []*mapping.Template, error) {
	cfg, err := config.Load(a.configPath, a.lookupEnv)
	var problems problem.List
	if err != nil && !errors.As(err, &problems) {
		return cfg, nil, err
	}
	templates := make([]*mapping.Template, 0, len(cfg.Mappings))
	for i := range cfg.Mappings {
		m := &cfg.Mappings[i]
		spec, known := mappingSpec(cfg.Sink(m.Sink))
		if !known || isWrong(m, problems) {
			continue
		}
		template, found := mapping.Parse(mappingSource(m), spec)
		problems = append(problems, found...)
		templates = append(templates, template)
	}
	if len(problems) == 0 {
		problems = mapping.Link(templates)
	}
	if err := problems.Err(); err != nil {
		return cfg, nil, err
	}
	return cfg, templates, nil
}

// isWrong says whether a problem of the mapping is known already: its template would only complain again.
func isWrong(m *config.Mapping, problems problem.List) bool {
	for _, p := range problems {
		if p.File == m.File && (p.Path == m.Path || strings.HasPrefix(p.Path, m.Path+".")) {
			return true
		}
	}
	return false
}

// sinkConfig is a sink as its adapter takes it.
func sinkConfig(s *config.Sink) sinks.Config {
	confirm := sinks.ConfirmProcessed
	if s.Confirm == config.ConfirmAccepted {
		confirm = sinks.ConfirmAccepted
	}
	return sinks.Config{
		Name: s.Name, Type: string(s.Type), URL: s.URL, Timeout: s.Timeout, Concurrency: s.Concurrency,
		APIKey:          s.APIKey,
		Auth:            sinks.Auth(s.Auth),
		SystemID:        s.SystemID,
		Confirm:         confirm,
		InviteOnlyTiers: s.InviteOnlyTiers,
	}
}

// mappingSpec is what mapping must know of a sink; known is false when the sink or its type could not be read.
func mappingSpec(s *config.Sink) (spec mapping.Spec, known bool) {
	if s == nil {
		return mapping.Spec{}, false
	}
	adapter := sinkConfig(s)
	of, known := adapter.Spec()
	if !known {
		return mapping.Spec{}, false
	}
	spec = mapping.Spec{Item: of.Item, On: of.On, Deletes: mapping.DeleteAsItem, Coalesce: mapping.CoalesceNone, Leave: mapping.LeaveKeep, FullRows: of.FullRows}
	if of.Deletes {
		spec.Leave = mapping.LeaveDelete
	}
	if of.Withdraw {
		spec.Deletes = mapping.DeleteWithdraw
	}
	if of.Latest {
		spec.Coalesce = mapping.CoalesceLatest
	}
	return spec, true
}

// mappingSource is a mapping as package mapping takes it.
func mappingSource(m *config.Mapping) mapping.Source {
	source := mapping.Source{
		File: m.File, Path: m.Path, Index: m.Index, Name: m.Name, Table: mapping.Table(m.Table), Sink: m.Sink, On: m.On,
		When: m.When, Key: m.Key, Item: m.Item,
	}
	switch m.Coalesce {
	case config.CoalesceNone:
		source.Coalesce = mapping.CoalesceNone
	case config.CoalesceLatest:
		source.Coalesce = mapping.CoalesceLatest
	}
	switch m.Leave {
	case config.LeaveDelete:
		source.Leave = mapping.LeaveDelete
	case config.LeaveKeep:
		source.Leave = mapping.LeaveKeep
	}
	for _, l := range m.Lookups {
		source.Lookups = append(source.Lookups, mapping.Lookup(l))
	}
	for _, p := range m.Parents {
		source.Parents = append(source.Parents, mapping.Parent(p))
	}
	if m.Refresh != nil {
		source.Refresh = &mapping.Refresh{Table: mapping.Table(m.Refresh.Table), Key: m.Refresh.Key, By: m.Refresh.By}
	}
	return source
}
