// SPDX-License-Identifier: Apache-2.0

package pump_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/pump"
	"crishim.dev/keeper/sys"
)

// owner holds one log and hears what the pump says.
type owner struct {
	t               *testing.T
	logs            map[uint32]int
	drained, closed chan struct{}
}

func (o *owner) LogFile(gen uint32) int      { return o.logs[gen] }
func (o *owner) HoldLog(gen uint32, fd int)  { o.logs[gen] = fd }
func (o *owner) KeepLog(gen uint32)          { o.logs = map[uint32]int{gen: o.logs[gen]} }
func (o *owner) Drained()                    { o.drained <- struct{}{} }
func (o *owner) Closed()                     { close(o.closed) }
func (o *owner) Failed(what string, e error) { o.t.Errorf("%s: %v", what, e) }

// fifo makes a pump on a FIFO with a log, and gives the writer and the log's name.
func fifo(t *testing.T) (*pump.Pump, *owner, *os.File, string) {
	t.Helper()
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	poller, err := sys.NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = poller.Run(func() {}) }() // for the life of the test's process: a keeper's never ends either
	t.Cleanup(func() { d.Close(); log.Close(); unix.Close(p[0]) })
	o := &owner{t: t, logs: map[uint32]int{0: int(log.Fd())}, drained: make(chan struct{}, 9), closed: make(chan struct{})}
	var at pump.Progress
	if err := at.Begin(int(log.Fd())); err != nil {
		t.Fatal(err)
	}
	pu := pump.New(pump.Options{
		Owner: o, Poller: poller, Pool: &pump.Pool{}, Progress: &at, Dir: int(d.Fd()), Name: "x-",
		Outputs: [2]int{p[0], -1}, Terminal: -1, Conduit: -1, Logged: true,
	})
	pu.Start()
	return pu, o, os.NewFile(uintptr(p[1]), "container's end"), log.Name()
}

// attach attaches to stdout and gives what comes.
func attach(t *testing.T, p *pump.Pump, stream int) *os.File {
	t.Helper()
	var c [2]int
	if err := unix.Pipe2(c[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := p.Attach(stream, c[1]); err != nil {
		t.Fatal(err)
	}
	r := os.NewFile(uintptr(c[0]), "client's end")
	t.Cleanup(func() { r.Close() })
	return r
}

func TestPump(t *testing.T) {
	p, o, w, log := fifo(t)
	early := attach(t, p, 0)
	if _, err := io.WriteString(w, "one\nrest"); err != nil {
		t.Fatal(err)
	}
	p.Ended(time.Now())
	<-o.drained
	b, err := os.ReadFile(log)
	if got := string(b); err != nil || !strings.HasSuffix(got, " stdout P rest\n") || !strings.Contains(got, " stdout F one\n") {
		t.Errorf("when it says that all is there the log is %q, %v", got, err)
	}
	w.Close()
	if got, err := io.ReadAll(early); err != nil || string(got) != "one\nrest" {
		t.Errorf("the client got %q, %v", got, err)
	}
	// A client of a stream that has ended, or is not there, does not wait for the process to end.
	for stream := range 2 {
		if got, err := io.ReadAll(attach(t, p, stream)); err != nil || len(got) != 0 {
			t.Errorf("stream %d: a late client got %q, %v", stream, got, err)
		}
	}
	p.Close()
	<-o.closed
	if err := p.Reopen(-1, func(error) { t.Error("a closed pump has reopened its log") }); err == nil {
		t.Error("a closed pump reopens its log")
	}
	if got, err := io.ReadAll(attach(t, p, 0)); err != nil || len(got) != 0 {
		t.Errorf("closed: a client got %q, %v", got, err)
	}
}
