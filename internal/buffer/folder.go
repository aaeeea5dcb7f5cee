package buffer

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// folder watches the files of the embedded store from outside: a file that is deleted while it is open can be written to and
// synced without an error. A nil folder, of an external cluster, is always intact.
type folder struct {
	path      string
	lock      *os.File
	dir, held os.FileInfo // the folder and its lock file as they were opened
	blocks    string      // where the files of the blocks lie
	streams   []string    // where those of the other streams lie

	mu     sync.Mutex
	made   bool // the streams' files are there
	newest int  // number of the newest file of the blocks; 0 when not known
	gone   error
	lost   chan struct{} // closed when gone is set
}

func newFolder(path string, lock *os.File, n *names) (*folder, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f := &folder{path: path, lock: lock, lost: make(chan struct{})}
	if f.dir, err = os.Stat(path); err != nil {
		return nil, err
	}
	if f.held, err = lock.Stat(); err != nil {
		return nil, err
	}
	f.blocks = streamFiles(path, n.blocks)
	f.streams = []string{streamFiles(path, n.letters), streamFiles(path, n.tracked), streamFiles(path, "KV_"+n.values)}
	return f, nil
}

// intact reports that the folder is no longer the one that was opened, as an *Error that stays. It costs three calls of stat.
func (f *folder) intact() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone != nil {
		return f.gone
	}
	const tries, again = 3, 20 * time.Millisecond // trimming replaces files
	var what string
	for range tries {
		if what = f.look(); what == "" {
			return nil
		}
		timer := time.NewTimer(again)
		<-timer.C
	}
	f.gone = &Error{
		Reason: fmt.Sprintf("the buffer's folder %s is no longer the one that this process opened (%s): what would be written now is lost", f.path, what),
		Solution: "nothing was confirmed that is not stored; put the folder back, then start again: " +
			"without it the start says what may be lost, and cdcsync recover goes on",
	}
	close(f.lost)
	return f.gone
}

// streamsMade says that from now on the streams have files.
func (f *folder) streamsMade() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made = true
}

// known is what intact has found before; it looks at nothing.
func (f *folder) known() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone
}

// look returns what is wrong; empty when nothing is. f.mu is held.
func (f *folder) look() string {
	dir, err := os.Stat(f.path)
	switch {
	case err != nil:
		return "it cannot be reached: " + err.Error()
	case !os.SameFile(dir, f.dir):
		return "another folder is in its place"
	}
	held, err := os.Stat(filepath.Join(f.path, lockName))
	switch {
	case err != nil:
		return "its lock file is gone"
	case !os.SameFile(held, f.held):
		return "its lock file was replaced"
	}
	if !f.made || f.newest > 0 && exists(f.file(f.newest)) {
		return ""
	}
	f.newest = newestFile(f.blocks)
	if f.newest == 0 {
		return "the files of the blocks are gone"
	}
	return ""
}

func (f *folder) file(n int) string { return filepath.Join(f.blocks, strconv.Itoa(n)+blockSuffix) }

// blockSuffix ends the names of the store's files, which are numbered.
const blockSuffix = ".blk"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// newestFile returns the highest number of a store's files; 0 when there is none.
func newestFile(dir string) int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	newest := 0
	for _, e := range entries {
		number, ok := strings.CutSuffix(e.Name(), blockSuffix)
		if n, err := strconv.Atoi(number); ok && err == nil {
			newest = max(newest, n)
		}
	}
	return newest
}

// inspect is intact for all streams, and looks for open files that were deleted: for the watcher, not for each block.
func (f *folder) inspect() error {
	if err := f.intact(); err != nil || f == nil {
		return err
	}
	f.mu.Lock()
	f.newest = 0 // look for the newest again
	made := f.made
	f.mu.Unlock()
	if !made {
		return nil
	}
	if err := f.intact(); err != nil {
		return err
	}
	const tries, again = 3, 50 * time.Millisecond
	var what string
	for range tries {
		if what = f.deleted(); what == "" {
			return nil
		}
		timer := time.NewTimer(again)
		<-timer.C
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone == nil {
		f.gone = &Error{
			Reason:   fmt.Sprintf("files of the buffer's folder %s were deleted while they were in use (%s): what is written to them is lost", f.path, what),
			Solution: "put the folder back as it was, or start again: the start says what may be lost, and cdcsync recover goes on",
		}
		close(f.lost)
	}
	return f.gone
}

// deleted names a file of the store that is gone; empty when none is.
func (f *folder) deleted() string {
	for _, dir := range f.streams {
		if newestFile(dir) == 0 {
			return "no file in " + dir
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return "" // not Linux
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if name, ok := strings.CutSuffix(target, " (deleted)"); ok && strings.HasPrefix(name, f.path+string(filepath.Separator)) && strings.HasSuffix(name, blockSuffix) {
			return name
		}
	}
	return ""
}
