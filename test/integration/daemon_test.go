package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that must happen.
const patience = 2 * time.Minute

// daemon is `cdcsync run` as a process of its own, which a test may kill.
type daemon struct {
	tb     testing.TB
	config string
	admin  string // host:port
	log    *logBuffer

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone
	err    error         // of Wait, after exited
}

// logBuffer keeps what all runs of a daemon wrote.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newDaemon writes a configuration with a source and an admin listener of its own before rest, and keeps the buffer in the test's folder.
func newDaemon(tb testing.TB, sourceURL, rest string) *daemon {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	admin := listener.Addr().String()
	_ = listener.Close()
	dir := tb.TempDir()
	d := &daemon{tb: tb, config: filepath.Join(dir, "config.yaml"), admin: admin, log: &logBuffer{}}
	d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\n%s", sourceURL, slotName(tb), admin, rest))
	tb.Cleanup(func() {
		d.kill()
		checkLog(tb, d.log.String())
		if tb.Failed() {
			tb.Logf("the daemon's log:\n%s", tail(d.log.String(), 8<<10))
		}
	})
	return d
}

func slotName(tb testing.TB) string {
	tb.Helper()
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(tb.Name()))
	return name[:min(len(name), 50)]
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (d *daemon) configure(yaml string) {
	d.tb.Helper()
	if !strings.Contains(yaml, "\nbuffer:") {
		yaml += fmt.Sprintf("\nbuffer: {dir: %q}\n", d.bufferDir())
	}
	if err := os.WriteFile(d.config, []byte(yaml), 0o600); err != nil {
		d.tb.Fatal(err)
	}
}

func (d *daemon) bufferDir() string { return filepath.Join(filepath.Dir(d.config), "data") }

// start runs the daemon and returns at once.
func (d *daemon) start(flags ...string) {
	d.tb.Helper()
	d.cmd = exec.Command(binary, append([]string{"run", "--config", d.config}, flags...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		d.tb.Fatal(err)
	}
	cmd, exited := d.cmd, make(chan struct{})
	d.exited = exited
	go func() {
		d.err = cmd.Wait()
		close(exited)
	}()
}

// ready waits until the pipeline makes progress.
func (d *daemon) ready() {
	d.tb.Helper()
	d.wait("the daemon to be ready", func() (bool, string) {
		response, err := http.Get("http://" + d.admin + "/readyz")
		if err != nil {
			return false, err.Error()
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return response.StatusCode == http.StatusOK, string(body)
	})
}

// wait polls until done says so; it fails the test when that takes longer than patience, or when the daemon ends.
func (d *daemon) wait(what string, done func() (ok bool, state string)) {
	d.tb.Helper()
	waitFor(d.tb, what, func() (bool, string) {
		select {
		case <-d.exited:
			d.tb.Fatalf("waiting for %s: the daemon ended: %v", what, d.err)
		default:
		}
		return done()
	})
}

func waitFor(tb testing.TB, what string, done func() (ok bool, state string)) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, state := done()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("waited %v for %s: %s", patience, what, state)
		}
		<-tick.C
	}
}

// kill ends the daemon as a loss of power would.
func (d *daemon) kill() {
	if d.cmd == nil || d.exited == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.exited
}

// stop asks the daemon to end, and waits until it has.
func (d *daemon) stop() {
	d.tb.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.tb.Fatal(err)
	}
	if err := d.end(); err != nil {
		d.tb.Fatalf("the daemon ended with %v", err)
	}
}

// end waits until the daemon has ended by itself and returns how.
func (d *daemon) end() error {
	d.tb.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		d.tb.Fatalf("the daemon did not end within %v", patience)
	}
	return d.err
}

// status is the daemon's own view, as JSON decoded into dst.
func (d *daemon) status(ctx context.Context, dst any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.admin+"/api/v1/status", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status: %s", response.Status)
	}
	return json.NewDecoder(response.Body).Decode(dst)
}

// readyNow says what /readyz says.
func (d *daemon) readyNow(tb testing.TB) bool {
	tb.Helper()
	response, err := http.Get("http://" + d.admin + "/readyz")
	if err != nil {
		tb.Fatal(err)
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}
