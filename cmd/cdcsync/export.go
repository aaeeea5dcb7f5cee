package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/replication"
	"github.com/cdcsync/cdcsync/internal/terminal"
)

// exportOptions are the flags of export.
type exportOptions struct {
	tables   []string
	mapping  string
	out      string
	where    string
	split    config.Size
	withSlot bool
}

// splitDefault stays below the 2 GB that StopChurn takes, whichever GB that is.
const splitDefault = "1900MiB"

func newExportCommand(a *app) *cobra.Command {
	var o exportOptions
	split := splitDefault
	cmd := &cobra.Command{
		Use:     "export --table TABLE --out DIR",
		Short:   "Write StopChurn's database-synchronization files",
		GroupID: groupOperate,
		Long: `export writes the rows of tables as the files that StopChurn's Back Office takes for the initial load: a JSON array of
{data, createdAt, updatedAt}, one table and one brand a file, rendered by the mapping that the changes go through, too.

With --with-slot it makes the replication slot and reads the tables as they are at its very beginning: upload the files, then
start cdcsync run, and nothing is missing and nothing comes twice. That needs a buffer that no daemon has used, and it holds a
snapshot, and with it VACUUM, for as long as it reads.

A file has its name when it is whole and on the disk; what an interruption leaves ends in .partial.`,
		Example: `  cdcsync export --table public.users --out ./upload
  cdcsync export --table public.users --table public.orders --out ./upload --with-slot`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			size, err := config.ParseSize(split)
			if err != nil {
				return fmt.Errorf("--split: %w", err)
			}
			o.split = size
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return a.export(ctx, &o)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&o.tables, "table", nil, "`schema.name` of a table that is mapped to a StopChurn sink; may be given several times (required)")
	flags.StringVar(&o.out, "out", "", "`directory` for the files (required)")
	flags.StringVar(&o.mapping, "mapping", "", "`name` of the mapping, when a table has several to StopChurn")
	flags.StringVar(&o.where, "where", "", "only rows that meet this SQL `condition` over the table's columns")
	flags.StringVar(&split, "split", splitDefault, "begin another file before one gets larger than this `size`")
	flags.BoolVar(&o.withSlot, "with-slot", false, "make the slot, and export what lies before its first change")
	if err := errors.Join(cmd.MarkFlagRequired("table"), cmd.MarkFlagRequired("out"), cmd.MarkFlagDirname("out")); err != nil {
		return cmd // cannot be: the flags exist
	}
	return cmd
}

func (a *app) export(ctx context.Context, o *exportOptions) (err error) {
	cfg, templates, err := a.compiled()
	if err != nil {
		return err
	}
	var chosen []*mapping.Template
	for _, table := range o.tables {
		t, err := exported(cfg, templates, mapping.ParseTable(table), o.mapping)
		if err != nil {
			return err
		}
		chosen = append(chosen, t)
	}
	if err := os.MkdirAll(o.out, 0o750); err != nil {
		return err
	}
	logger := a.newLogger(cfg.Log)
	source := sourceConfig(cfg, templates)
	x := &exporter{options: o, source: source, progress: newProgress(a.screen), files: newExportFiles(o.out, int64(o.split))}
	if x.reader, err = replication.NewReader(ctx, cfg.Source.QueryURL.Reveal(), replication.ReaderOptions{StatementTimeout: cfg.Source.QueryTimeout, Publication: cfg.Source.Publication}); err != nil {
		return err
	}
	defer x.reader.Close()
	defer func() { err = errors.Join(err, x.files.abandon()) }()
	if o.withSlot {
		err = x.withSlot(ctx, cfg, chosen, logger)
	} else {
		err = x.tables(ctx, chosen)
	}
	if err != nil {
		return err
	}
	for _, f := range x.files.written {
		fmt.Fprintf(a.stdout, "%s  %d rows, %d bytes\n", f.path, f.rows, f.size)
	}
	if x.rejected > 0 {
		return fmt.Errorf("%d of %d rows cannot be rendered and are in no file, the first: %w", x.rejected, x.rows, x.firstReject)
	}
	return nil
}

// exported finds the mapping whose items the files have.
func exported(cfg *config.Config, templates []*mapping.Template, table mapping.Table, name string) (*mapping.Template, error) {
	var found []*mapping.Template
	var names []string
	for _, t := range templates {
		sink := cfg.Sink(t.Source.Sink)
		if t.Source.Table != table || sink == nil || sink.Type != config.StopChurn || t.Source.Refresh != nil || name != "" && t.Source.Name != name {
			continue
		}
		found, names = append(found, t), append(names, t.Source.Name)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("table %s has several mappings to StopChurn, choose one with --mapping: %s", table, strings.Join(names, ", "))
	case name != "":
		return nil, fmt.Errorf("table %s has no mapping %q to a StopChurn sink", table, name)
	}
	return nil, fmt.Errorf("table %s has no mapping to a StopChurn sink", table)
}

// exporter renders tables into files.
type exporter struct {
	options  *exportOptions
	source   replication.Config
	reader   *replication.Reader
	progress *progress
	files    *exportFiles
	snapshot string // to read in; empty for the present

	rows, rejected int64
	firstReject    error
	batch          exportBatch
}

func (x *exporter) tables(ctx context.Context, templates []*mapping.Template) error {
	for _, t := range templates {
		if err := x.table(ctx, t); err != nil {
			return err
		}
	}
	return x.files.finish()
}

// withSlot makes the slot first and keeps it only when the files are whole.
func (x *exporter) withSlot(ctx context.Context, cfg *config.Config, templates []*mapping.Template, logger *slog.Logger) (err error) {
	b, err := openBuffer(ctx, cfg, &x.source, logger, nil, false)
	if err != nil {
		return fmt.Errorf("buffer: %w", err)
	}
	defer func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, b.Close(grace))
	}()
	_, stored, err := b.Tail(ctx)
	if err != nil {
		return err
	}
	known, err := b.Source(ctx)
	if err != nil {
		return err
	}
	if stored || known != nil {
		if err := forgetExport(ctx, b); err != nil { // it was finished
			return err
		}
		return fmt.Errorf("the buffer in %s belongs to a slot already: export without --with-slot and use a backfill", cfg.Buffer.Dir)
	}
	if err := undoExport(ctx, b, x.source, logger); err != nil {
		return err
	}
	mark, err := newExportMark(x.options.out)
	if err != nil {
		return err
	}
	reservation, err := replication.Reserve(ctx, x.source, logger, func(ctx context.Context) error { return mark.store(ctx, b) })
	if err != nil { // the mark may stay: what a slot in the making becomes is not known
		return err
	}
	keep := false
	defer func() {
		ctx := context.WithoutCancel(ctx)
		released := reservation.Release(ctx, keep)
		if released == nil {
			released = forgetExport(ctx, b)
		}
		err = errors.Join(err, released)
	}()
	x.snapshot = reservation.Snapshot
	x.files.naming = func(names []string) error {
		mark.Files = names
		return mark.store(ctx, b)
	}
	if err := x.tables(ctx, templates); err != nil {
		return err
	}
	if err := reservation.Keep(ctx, b); err != nil {
		return err
	}
	keep = true
	return nil
}

// table exports one.
func (x *exporter) table(ctx context.Context, t *mapping.Template) error {
	spec := replication.BackfillSpec{Table: tableSpec(t.Source.Table), Sinks: []string{t.Source.Sink}, Where: x.options.where}
	source := replication.BackfillConfig{URL: x.source.URL, Publication: x.source.Publication, Manage: x.source.Manage, Needs: neededColumns([]*mapping.Template{t})}
	export, err := replication.OpenExport(ctx, source, spec)
	if err != nil {
		return err
	}
	defer export.Close(ctx)
	plan, problems := t.Compile(export.Relation())
	if err := problems.Err(); err != nil {
		return err
	}
	x.progress.begin(t.Source.Table.String(), export.Estimate())
	x.batch = exportBatch{exporter: x, template: t, plan: plan, relation: export.Relation()}
	err = export.Rows(ctx, x.snapshot, func(row []cdc.Value) error { return x.batch.add(ctx, row) })
	if err == nil {
		err = x.batch.flush(ctx)
	}
	x.progress.end()
	return err
}

// exportBatch gathers rows, so that lookups are asked for many at once.
type exportBatch struct {
	*exporter
	template *mapping.Template
	plan     *mapping.Plan
	relation *cdc.Relation

	rows  [][]cdc.Value
	bytes int
	route mapping.Route
	body  []byte
}

func (b *exportBatch) add(ctx context.Context, row []cdc.Value) error {
	const most, mostBytes = 500, 1 << 20
	copied := make([]cdc.Value, len(row))
	for i, v := range row {
		copied[i] = cdc.Value{Kind: v.Kind, Data: slices.Clone(v.Data)}
		b.bytes += len(v.Data)
	}
	b.rows = append(b.rows, copied)
	if len(b.rows) < most && b.bytes < mostBytes {
		return nil
	}
	return b.flush(ctx)
}

func (b *exportBatch) flush(ctx context.Context) error {
	found, err := b.lookUp(ctx)
	if err != nil {
		return err
	}
	for _, row := range b.rows {
		if err := b.write(row, found); err != nil {
			return err
		}
	}
	b.exporter.rows += int64(len(b.rows))
	b.progress.add(len(b.rows))
	b.rows, b.bytes = b.rows[:0], 0
	return ctx.Err()
}

// parts routes a row as a backfill does.
func (b *exportBatch) parts(row []cdc.Value) (*cdc.Change, error) {
	change := &cdc.Change{Op: cdc.OpRead, Relation: b.relation, New: row}
	return change, b.plan.Route(&b.route, change)
}

// lookUp runs each lookup for all rows.
func (b *exportBatch) lookUp(ctx context.Context) ([]map[string]mapping.Rows, error) {
	lookups := b.template.Source.Lookups
	keys := make([][]string, len(lookups))
	for _, row := range b.rows {
		if len(lookups) == 0 {
			return nil, nil
		}
		if _, err := b.parts(row); err != nil {
			return nil, err
		}
		for _, part := range b.route.Parts {
			for i, key := range part.Lookups {
				if key != nil && !slices.Contains(keys[i], string(key)) {
					keys[i] = append(keys[i], string(key))
				}
			}
		}
	}
	found := make([]map[string]mapping.Rows, len(lookups))
	for i := range lookups {
		if len(keys[i]) == 0 {
			continue
		}
		var err error
		if found[i], err = (source{b.reader}).Lookup(ctx, lookups[i].SQL, keys[i], nil); err != nil {
			return nil, fmt.Errorf("lookup %s of mapping %s: %w", lookups[i].Name, b.template.Source.Name, err)
		}
	}
	return found, nil
}

// write renders a row into its file.
func (b *exportBatch) write(row []cdc.Value, found []map[string]mapping.Rows) error {
	change, err := b.parts(row)
	if err != nil {
		return err
	}
	for i := range b.route.Parts {
		part := &b.route.Parts[i]
		if part.Reject != nil {
			b.reject(part.Reject)
			continue
		}
		var env mapping.Env
		for i, key := range part.Lookups {
			env.Lookups = append(env.Lookups, found[i][string(key)])
		}
		b.body, err = b.plan.Append(b.body[:0], change, part, &env)
		var reject *mapping.RejectError
		switch {
		case errors.As(err, &reject):
			b.reject(reject)
			continue
		case err != nil:
			return err
		}
		if err := b.files.add(b.body); err != nil {
			return err
		}
	}
	return nil
}

func (b *exportBatch) reject(err error) {
	if b.rejected++; b.firstReject == nil {
		b.firstReject = err
	}
}

// exportFiles writes items, each into the file of its brand and table.
type exportFiles struct {
	dir     string
	split   int64
	open    map[string]*exportFile // by name without its number
	written []*exportFile
	partial []string                   // that are not renamed yet
	naming  func(names []string) error // is told before files get their names; nil for nobody
	line    []byte
}

// exportFile is one, while it is named .partial.
type exportFile struct {
	name   string
	number int
	path   string // when it is whole
	file   *os.File
	out    *bufio.Writer
	rows   int64
	size   int64
}

const partialSuffix = ".partial"

func newExportFiles(dir string, split int64) *exportFiles {
	return &exportFiles{dir: dir, split: split, open: make(map[string]*exportFile)}
}

// add appends an item of StopChurn's.
func (f *exportFiles) add(body []byte) error {
	var item struct {
		BrandID   json.RawMessage `json:"brandId"`
		TableName string          `json:"tableName"`
		Data      json.RawMessage `json:"data"`
		CreatedAt json.RawMessage `json:"createdAt"`
		UpdatedAt json.RawMessage `json:"updatedAt"`
	}
	if err := json.Unmarshal(body, &item); err != nil {
		return fmt.Errorf("item of the mapping: %w", err)
	}
	f.line = fmt.Appendf(f.line[:0], `{"data":%s,"createdAt":%s,"updatedAt":%s}`, item.Data, item.CreatedAt, item.UpdatedAt)
	name := fileName(item.TableName, "-") + "-brand-" + fileName(strings.Trim(string(item.BrandID), `"`), "")
	file := f.open[name]
	const brackets = int64(len(",\n]\n"))
	if file != nil && file.size+int64(len(f.line))+brackets > f.split {
		if err := file.close(); err != nil {
			return err
		}
		next, err := f.create(name, file.number+1)
		if err != nil {
			return err
		}
		file = next
	}
	if file == nil {
		var err error
		if file, err = f.create(name, 1); err != nil {
			return err
		}
	}
	return file.add(f.line)
}

// fileName keeps what every file system takes, and those in also, and escapes the rest, so that no two names become one.
func fileName(s, also string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || strings.IndexByte(also, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func (f *exportFiles) create(name string, number int) (*exportFile, error) {
	path := filepath.Join(f.dir, fmt.Sprintf("%s-%03d.json", name, number))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, fmt.Errorf("%s exists already: choose an empty directory", path))
	}
	file, err := os.OpenFile(path+partialSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	const buffered = 1 << 20
	made := &exportFile{name: name, number: number, path: path, file: file, out: bufio.NewWriterSize(file, buffered)}
	f.open[name] = made
	f.written, f.partial = append(f.written, made), append(f.partial, path+partialSuffix)
	return made, nil
}

func (f *exportFile) add(line []byte) error {
	separator := ",\n"
	if f.rows == 0 {
		separator = "["
	}
	_, err := f.out.WriteString(separator)
	if err == nil {
		_, err = f.out.Write(line)
	}
	f.rows++
	f.size += int64(len(separator) + len(line))
	return err
}

// close makes the file durable; it keeps its name for now.
func (f *exportFile) close() error {
	if f.file == nil {
		return nil
	}
	const end = "]\n"
	_, err := f.out.WriteString(end)
	f.size += int64(len(end))
	err = errors.Join(err, f.out.Flush(), f.file.Sync(), f.file.Close())
	f.file = nil
	return err
}

// finish gives all files their names, when all are whole.
func (f *exportFiles) finish() error {
	for _, file := range f.written {
		if err := file.close(); err != nil {
			return err
		}
	}
	if f.naming != nil {
		names := make([]string, len(f.written))
		for i, file := range f.written {
			names[i] = filepath.Base(file.path)
		}
		if err := f.naming(names); err != nil {
			return err
		}
	}
	for _, file := range f.written {
		if err := os.Rename(file.path+partialSuffix, file.path); err != nil {
			return err
		}
	}
	f.partial = nil
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// abandon removes what is not whole.
func (f *exportFiles) abandon() error {
	var all []error
	for _, file := range f.written {
		if file.file != nil {
			all = append(all, file.file.Close())
		}
	}
	for _, path := range f.partial {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// progress tells how far an export is: a bar on a terminal, else a line now and then.
type progress struct {
	out      io.Writer
	terminal bool
	what     string
	total    int64
	rows     int64
	began    time.Time
	told     time.Time
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out}
	if file, ok := out.(*os.File); ok {
		info, err := file.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) begin(what string, total int64) {
	p.what, p.total, p.rows, p.began, p.told = what, total, 0, time.Now(), time.Now()
}

func (p *progress) add(rows int) {
	const onTerminal, inLog = 200 * time.Millisecond, 10 * time.Second
	p.rows += int64(rows)
	interval := inLog
	if p.terminal {
		interval = onTerminal
	}
	if time.Since(p.told) >= interval {
		p.told = time.Now()
		p.tell(false)
	}
}

func (p *progress) end() { p.tell(true) }

func (p *progress) tell(last bool) {
	rate := float64(p.rows) / max(time.Since(p.began).Seconds(), 0.001)
	total := max(p.total, p.rows)
	if last {
		total = p.rows
	}
	line := fmt.Sprintf("%s: %d of about %d rows, %.0f rows/s", p.what, p.rows, total, rate)
	if last {
		line = fmt.Sprintf("%s: %d rows, %.0f rows/s", p.what, p.rows, rate)
	}
	if !p.terminal {
		fmt.Fprintln(p.out, line)
		return
	}
	const width = 30
	filled := width
	if total > 0 {
		filled = int(width * p.rows / total)
	}
	fmt.Fprintf(p.out, "\r[%s%s] %s\x1b[K", strings.Repeat("█", filled), strings.Repeat("░", width-filled), terminal.Line(line))
	if last {
		fmt.Fprintln(p.out)
	}
}
