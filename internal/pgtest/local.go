package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	bootTime     = 30 * time.Second
	shutdownTime = 30 * time.Second
)

// local is a server from local binaries: a child process and a folder.
type local struct {
	bin        string
	dir        string // ours: socket, lock and, unless the options name a DataDir, the data
	data       string
	arguments  []string
	credential *syscall.Credential // nil: as ourselves
	lock       *os.File            // held as long as dir is in use
	logs       *tail
	process    *process // nil when down
}

// binaries finds the folder of initdb and postgres.
func binaries(dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv("CDCSYNC_TEST_PG_BIN")
	}
	if dir != "" {
		if !hasServer(dir) {
			return "", fmt.Errorf("%s holds no initdb and postgres: name the folder of the server's binaries in CDCSYNC_TEST_PG_BIN", dir)
		}
		return dir, nil
	}
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin"} {
		matches, _ := filepath.Glob(pattern) // the only error is a malformed pattern
		found = append(found, matches...)
	}
	slices.SortFunc(found, func(a, b string) int { return major(b) - major(a) })
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, filepath.Dir(path))
	}
	for _, dir := range found {
		if hasServer(dir) {
			return dir, nil
		}
	}
	return "", errMissing()
}

func hasServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.IsDir() {
			return false
		}
	}
	return true
}

// major is the version in a path such as /usr/lib/postgresql/17/bin, 0 when there is none.
func major(dir string) int {
	name := filepath.Base(filepath.Dir(dir))
	n, _ := strconv.Atoi(name[strings.LastIndexAny(name, "@-")+1:])
	return n
}

func startLocal(ctx context.Context, o Options, bin string) (*Server, error) {
	l := &local{bin: bin, logs: &tail{}}
	if err := l.prepare(ctx, o); err != nil {
		return nil, errors.Join(err, l.remove())
	}
	s := &Server{logs: l.logs, local: l, close: l.close}
	query := url.Values{"host": {l.dir}, "port": {"5432"}, "sslmode": {"disable"}}
	s.base = url.URL{Scheme: "postgres", User: url.User("postgres"), RawQuery: query.Encode()}
	port := "5432"
	if o.TCP {
		var err error
		if port, err = freePort(ctx); err != nil {
			return nil, errors.Join(err, l.remove())
		}
		s.base.Host, s.base.RawQuery = net.JoinHostPort("127.0.0.1", port), "sslmode=disable"
	}
	l.arguments = l.settings(o, port)
	if err := l.boot(ctx, s.URL("postgres")); err != nil {
		return nil, errors.Join(err, l.close(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// prepare makes the folders and, where there is none yet, the cluster.
func (l *local) prepare(ctx context.Context, o Options) error {
	if os.Geteuid() == 0 {
		credential, err := unprivileged()
		if err != nil {
			return err
		}
		l.credential = credential
	}
	if err := l.makeFolder(); err != nil {
		return err
	}
	l.data = o.DataDir
	if l.data == "" {
		l.data = filepath.Join(l.dir, "data")
	}
	if _, err := os.Stat(filepath.Join(l.data, "PG_VERSION")); err == nil {
		return nil
	}
	if err := os.MkdirAll(l.data, 0o700); err != nil {
		return err
	}
	if err := l.give(l.data); err != nil {
		return err
	}
	initdb := l.command(ctx, "initdb", "-D", l.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb in %s: %w: %s", l.data, err, out)
	}
	return nil
}

// unprivileged is the user that the server runs as when we are root.
func unprivileged() (*syscall.Credential, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("Postgres does not run as root, and there is no user postgres to run it as: %w", err) //nolint:staticcheck // a name
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

const (
	folderPrefix = "cdcsync-pg-"
	// A unix socket's path has room for some 100 bytes; this leaves "/cdcsync-pg-0123456789/.s.PGSQL.5432" its place.
	longestParent = 60
)

// makeFolder makes the server's own folder, locked, and removes those whose owners were killed.
func (l *local) makeFolder() error {
	parent := os.TempDir()
	if len(parent) > longestParent || os.Geteuid() == 0 { // root's own TMPDIR is often closed to others
		parent = "/tmp"
	}
	sweep(parent)
	dir, err := os.MkdirTemp(parent, folderPrefix)
	if err != nil {
		return err
	}
	l.dir = dir
	if l.lock, err = lockFolder(dir); err != nil {
		return err
	}
	return l.give(dir)
}

// give makes the server's user the owner.
func (l *local) give(path string) error {
	if l.credential == nil {
		return nil
	}
	return os.Chown(path, int(l.credential.Uid), int(l.credential.Gid))
}

func lockFolder(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// sweep removes the folders whose owners ended without doing so. It is tidiness: what fails is left to the next time.
func sweep(parent string) {
	const settled = time.Minute // a younger one may be about to be locked
	dirs, _ := filepath.Glob(filepath.Join(parent, folderPrefix+"*"))
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil || time.Since(info.ModTime()) < settled {
			continue
		}
		if file, err := lockFolder(dir); err == nil {
			_ = os.RemoveAll(dir)
			file.Close()
		}
	}
}

// settings are the server's command line.
func (l *local) settings(o Options, port string) []string {
	all := map[string]string{
		"unix_socket_directories":    l.dir,
		"listen_addresses":           "",
		"port":                       port,
		"dynamic_shared_memory_type": "mmap", // in the data folder, so that a killed server leaves nothing in /dev/shm
	}
	if o.TCP {
		all["listen_addresses"] = "127.0.0.1"
	}
	return append([]string{"-D", l.data}, settingArguments(all, o)...)
}

// settingArguments are "-c name=value" for own settings, this package's defaults and the options', the later ones winning.
func settingArguments(own map[string]string, o Options) []string {
	all := map[string]string{
		"wal_level":             "logical",
		"max_wal_senders":       "64",
		"max_replication_slots": "64",
		"max_connections":       "200",
		"log_line_prefix":       "%m [%p] ",
		"timezone":              "UTC",
	}
	if !o.Durable {
		all["fsync"] = "off"
		all["full_page_writes"] = "off"
	}
	for _, settings := range []map[string]string{own, o.Settings} {
		maps.Copy(all, settings)
	}
	arguments := make([]string, 0, 2*len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		arguments = append(arguments, "-c", name+"="+all[name])
	}
	return arguments
}

func freePort(ctx context.Context) (string, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	return port, err
}

// command is one of the server's binaries, run as the server's user, in a group of its own: Ctrl-C is ours to handle.
func (l *local) command(ctx context.Context, name string, arguments ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(l.bin, name), arguments...)
	cmd.Dir = l.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	cmd.SysProcAttr = childOf(syscall.SIGQUIT)
	cmd.SysProcAttr.Credential = l.credential
	return cmd
}

// boot starts the postmaster and waits until it answers. After a crash the old shared memory may be in use for a moment: it is tried again.
func (l *local) boot(ctx context.Context, address string) error {
	if l.process != nil {
		return errors.New("boot: the server is up")
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	return until(ctx, 20*time.Millisecond, func() error {
		if l.process == nil {
			p, err := startProcess(l.command(context.WithoutCancel(ctx), "postgres", l.arguments...), l.logs)
			if err != nil {
				return err
			}
			l.process = p
		}
		select {
		case <-l.process.exited:
			l.process = nil
			return fmt.Errorf("postgres ended at once; its log: %s", l.logs)
		default:
		}
		conn, err := pgx.Connect(ctx, address)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
}

func (l *local) shutdown(ctx context.Context, mode Mode) error {
	if l.process == nil {
		return nil
	}
	signal := map[Mode]syscall.Signal{Fast: syscall.SIGINT, Immediate: syscall.SIGQUIT, Crash: syscall.SIGKILL}[mode]
	if signal == 0 {
		return fmt.Errorf("shutdown: unknown mode %d", mode)
	}
	err := l.process.end(ctx, signal, shutdownTime)
	l.process = nil
	return err
}

func (l *local) pid() int {
	if l.process == nil {
		return 0
	}
	return l.process.cmd.Process.Pid
}

func (l *local) close(ctx context.Context) error {
	mode := Fast
	if filepath.Dir(l.data) == l.dir {
		mode = Immediate // what is about to be removed needs no checkpoint
	}
	return errors.Join(l.shutdown(ctx, mode), l.remove())
}

func (l *local) remove() error {
	if l.dir == "" {
		return nil
	}
	err := os.RemoveAll(l.dir)
	if l.lock != nil {
		l.lock.Close()
	}
	l.dir = ""
	return err
}
