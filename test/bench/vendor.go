package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// receiver is the running child that stands in for the vendor.
type receiver struct {
	command *exec.Cmd
	stdin   io.Closer
	address string
}

func startReceiver(ctx context.Context) (*receiver, error) {
	command := exec.CommandContext(ctx, os.Args[0], "receiver")
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("receiver: %w", err)
	}
	return &receiver{command: command, stdin: stdin, address: strings.TrimSpace(line)}, nil
}

func (r *receiver) stop() error {
	return errors.Join(r.stdin.Close(), r.command.Wait())
}

// stats asks what has arrived; query is "?arrivals" to have each row's time, too.
func (r *receiver) stats(ctx context.Context, query string) (s stats, err error) {
	body, err := get(ctx, "http://"+r.address+"/stats"+query)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// reset forgets what has arrived; query is "?trace" to keep each row's time from now on.
func (r *receiver) reset(ctx context.Context, query string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.address+"/reset"+query, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, response.Status, bytes.TrimSpace(body))
	}
	return body, err
}

// awaitItems waits until so many items have arrived. Asking every 50 ms costs the receiver next to nothing; the times are its own.
func (r *receiver) awaitItems(ctx context.Context, want int, d *daemon) (s stats, err error) {
	const patience = 30 * time.Second // without a new item
	moved, last := time.Now(), 0
	for {
		if s, err = r.stats(ctx, ""); err != nil || s.Items >= want {
			return s, err
		}
		if s.Items > last {
			moved, last = time.Now(), s.Items
		}
		if time.Since(moved) > patience {
			return s, fmt.Errorf("%d of %d items arrived, none for %s%s", s.Items, want, patience, d.said())
		}
		if err := d.pause(ctx, 50*time.Millisecond); err != nil {
			return s, err
		}
	}
}
