package main

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
	"strconv"
	"sync"
	"time"

	"github.com/sourcegraph/conc/pool"
)

// stats is what the receiver has seen. Arrivals are kept only while few rows have come: those of the latency run.
type stats struct {
	Items       int
	Requests    int
	Bytes       int64
	First, Last time.Time
	Usage       usage
	Arrivals    []arrival `json:",omitempty"`
}

// arrival is when the request that carried a row had been read from the socket.
type arrival struct {
	ID int64
	At time.Time
}

// vendor stands in for StopChurn: it reads the body, counts and forgets.
type vendor struct {
	mu      sync.Mutex
	stats   stats
	buffers sync.Pool
	trace   bool // keep arrivals
}

// receive is the child "receiver": it prints its address and serves until its standard input ends, as it does when the parent is gone.
func receive(ctx context.Context) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	v := &vendor{buffers: sync.Pool{New: func() any { return new(bytes.Buffer) }}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /client-data/update", v.update)
	mux.HandleFunc("GET /stats", v.show)
	mux.HandleFunc("POST /reset", v.reset)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	fmt.Println(listener.Addr())

	running := pool.New().WithErrors()
	running.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	running.Go(func() error {
		_, err := io.Copy(io.Discard, os.Stdin)
		return errors.Join(err, server.Close())
	})
	return running.Wait()
}

var (
	itemMark = []byte(`{"type":"`) // once for each item of a request; no seeded value holds it
	idMark   = []byte(`"data":{"id":`)
	liveMark = []byte(`"email":"user`) // of insertRow, before the @ and behind the id; seeded rows have a number before the @
	taken    = []byte(`{"statusCode":200,"message":"Updates received"}`)
)

func (v *vendor) update(w http.ResponseWriter, r *http.Request) {
	body, _ := v.buffers.Get().(*bytes.Buffer)
	defer v.buffers.Put(body)
	body.Reset()
	if _, err := body.ReadFrom(r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	v.count(body.Bytes(), time.Now())
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(taken)
}

func (v *vendor) count(body []byte, now time.Time) {
	items := bytes.Count(body, itemMark)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stats.Items == 0 {
		v.stats.First = now
	}
	v.stats.Items += items
	v.stats.Requests++
	v.stats.Bytes += int64(len(body))
	v.stats.Last = now
	if v.trace {
		v.note(body, now)
	}
}

// note keeps the arrival of each row of the request that a bench has committed one by one.
func (v *vendor) note(body []byte, now time.Time) {
	for at := 0; ; at++ {
		next := bytes.IndexByte(body[at:], '@') // the rarest byte: seeded rows, of which a request may have thousands, cost little
		if next < 0 {
			return
		}
		if at += next; !bytes.HasSuffix(body[:at], liveMark) {
			continue
		}
		id := body[bytes.LastIndex(body[:at], idMark)+len(idMark):]
		if n, err := strconv.ParseInt(string(id[:max(bytes.IndexAny(id, ",}"), 0)]), 10, 64); err == nil {
			v.stats.Arrivals = append(v.stats.Arrivals, arrival{ID: n, At: now})
		}
	}
}

func (v *vendor) show(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	s := v.stats
	v.mu.Unlock()
	if !r.URL.Query().Has("arrivals") {
		s.Arrivals = nil
	}
	var err error
	if s.Usage, err = usageOf(os.Getpid()); err == nil {
		err = json.NewEncoder(w).Encode(s)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (v *vendor) reset(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats, v.trace = stats{}, r.URL.Query().Has("trace")
	w.WriteHeader(http.StatusNoContent)
}
