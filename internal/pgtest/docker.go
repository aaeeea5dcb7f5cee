package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// dockerTime includes pulling the image.
const dockerTime = 5 * time.Minute

func dockerAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, "docker", "info", "--format", "{{.ServerVersion}}").Run() == nil
}

// startDocker runs the image in the foreground of a docker client that passes our signals on, so that the container ends with us.
func startDocker(ctx context.Context, o Options, image string) (*Server, error) {
	name := "cdcsync-pg-" + strings.ToLower(rand.Text()[:10])
	arguments := []string{
		"run", "--rm", "--name", name, "--publish", "127.0.0.1::5432", "--shm-size", "256m",
		"--env", "POSTGRES_HOST_AUTH_METHOD=trust", image,
	}
	arguments = append(arguments, settingArguments(nil, o)...)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "docker", arguments...)
	cmd.SysProcAttr = childOf(syscall.SIGINT)
	s := &Server{logs: &tail{}}
	p, err := startProcess(cmd, s.logs)
	if err != nil {
		return nil, fmt.Errorf("docker run %s: %w", image, err)
	}
	s.close = func(ctx context.Context) error {
		err := p.end(ctx, syscall.SIGINT, shutdownTime)
		// Gone already in the normal case, when this fails.
		_ = exec.CommandContext(context.WithoutCancel(ctx), "docker", "rm", "--force", "--volumes", name).Run()
		return err
	}
	if err := s.awaitDocker(ctx, p, name); err != nil {
		return nil, errors.Join(fmt.Errorf("docker run %s: %w; its log: %s", image, err, s.logs), s.close(ctx))
	}
	return s, nil
}

// awaitDocker learns the port and waits until the server answers on it.
func (s *Server) awaitDocker(ctx context.Context, p *process, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, dockerTime, errors.New("no answer in time"))
	defer cancel()
	var gone error
	err := until(ctx, 100*time.Millisecond, func() error {
		select {
		case <-p.exited:
			gone = errors.New("the container ended")
			return nil
		default:
		}
		out, err := exec.CommandContext(ctx, "docker", "port", name, "5432/tcp").Output()
		if err != nil {
			return fmt.Errorf("docker port %s: %w", name, err)
		}
		address, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		s.base = url.URL{Scheme: "postgres", User: url.User("postgres"), Host: address, RawQuery: "sslmode=disable"}
		// The image's set-up runs a server of its own that listens on a socket only: an answer here is the real one's.
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	return errors.Join(err, gone)
}
