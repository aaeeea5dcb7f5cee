package pgtest

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/sourcegraph/conc"
)

// process is a child that somebody waits for.
type process struct {
	cmd    *exec.Cmd
	wait   conc.WaitGroup
	exited chan struct{} // closed when the child is gone
}

// startProcess starts a command whose output goes to logs.
func startProcess(cmd *exec.Cmd, logs *tail) (*process, error) {
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.WaitDelay = 5 * time.Second // for output of children that outlive a killed parent
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	p.wait.Go(func() {
		defer close(p.exited)
		_ = cmd.Wait() // the signal that ended it is ours, and what else went wrong is in the log
	})
	return p, nil
}

// end sends the signal and waits for the child; when it takes longer than patience, or ctx ends, the child is killed.
func (p *process) end(ctx context.Context, signal syscall.Signal, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = p.cmd.Process.Signal(signal) // fails when it is gone already
	var err error
	select {
	case <-p.exited:
	case <-ctx.Done():
		err = fmt.Errorf("pid %d did not end on %v, killed: %w", p.cmd.Process.Pid, signal, ctx.Err())
		_ = p.cmd.Process.Kill()
	}
	p.wait.Wait()
	return err
}

// tail keeps the end of what is written to it. It is safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 32 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
