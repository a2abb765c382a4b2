// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// TestBrokenClients: execs and attaches whose clients break off at random moments, however and over either protocol, leave
// nothing: no process, descriptor, mount or cgroup on the node, no goroutine in the daemon. `make nightly` does 10,000 and 1,000.
// It is not parallel: nothing else happens on the node meanwhile.
func TestBrokenClients(t *testing.T) {
	testnode.Need(t)
	execs, attaches := 300, 50
	if os.Getenv("SHIM_NIGHTLY") != "" {
		execs, attaches = 10000, 1000
	}
	if testing.Short() {
		execs, attaches = 40, 10
	}
	n := shared
	t.Cleanup(func() { // the first to be registered is the last to run: what the package's end compares with has another daemon now
		if err := n.Mark(context.Background()); err != nil {
			t.Error(err)
		}
	})
	pod := kit.RunPod(t, n)
	inside := pod.Run(testimage.Busybox, kit.Sleep()) // its first process reaps what execs orphan
	plain := pod.Run(testimage.Busybox, []string{"sh", "-c", "echo begun; while read l; do echo $l; done"}, func(c *cri.ContainerConfig) { c.Stdin = true })
	tty := pod.Run(testimage.Busybox, []string{"sh", "-c", "echo begun; exec cat"}, func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true })
	plain.WaitLog("begun") // and the first output makes its spool
	tty.WaitLog("begun")
	breakOff(t, 1, execs/50, execURLs(t, inside)) // the first of each kind may leave what all use
	breakOff(t, 1, attaches/10, attachURLs(t, plain, tty))
	before := goroutines(t, n)
	if err := n.Mark(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	breakOff(t, 2, execs, execURLs(t, inside))
	breakOff(t, 3, attaches, attachURLs(t, plain, tty))
	t.Logf("%d execs and %d attaches broken off in %v", execs, attaches, time.Since(began))
	for _, l := range n.Leaks(t.Context()) {
		t.Errorf("left behind: %s", l)
	}
	for _, c := range []*kit.Container{inside, plain, tty} {
		if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container is %v", s.State)
		}
	}
	// The daemon of before has served a handful of clients; this one thousands.
	if after := goroutines(t, n); after > before+3 {
		t.Errorf("%d goroutines; %d before", after, before)
	}
}

// goroutines stops the daemon with its stacks, counts those, and starts the next one.
func goroutines(t *testing.T, n *testnode.Node) int {
	t.Helper()
	<-time.After(settled)
	if err := n.Restart(t.Context(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	log := n.Log(1 << 20)
	log = log[max(0, strings.LastIndex(log, "SIGQUIT: quit")):]
	count := strings.Count(log, "\ngoroutine ")
	if count == 0 {
		t.Fatalf("no stacks in the daemon's log")
	}
	return count
}

// settled is when the last broken connection is forgotten: one that breaks before its streams are open is after the creation
// timeout, and the daemon keeps any for 5 s after its request has ended.
const settled = creationTimeout + 6*time.Second

// execURLs gives execs of different kinds: quick, lasting, loud, in a terminal, with children.
func execURLs(t *testing.T, c *kit.Container) func(i int) (string, []string) {
	commands := [][]string{{"true"}, {"cat"}, {"sleep", "600"}, {"sh", "-c", "while :; do echo loud; done"}, {"sh", "-c", "sleep 600 & sleep 600"}, {"/no/such/program"}}
	return func(i int) (string, []string) {
		r := &cri.ExecRequest{Cmd: commands[i%len(commands)], Stdin: true, Stdout: true, Stderr: true}
		streams := []string{stdin, stdout, stderr}
		if i%5 == 0 {
			r.Tty, r.Stderr, streams = true, false, []string{stdin, stdout, resize}
		}
		return execURL(t, c, r), streams
	}
}

func attachURLs(t *testing.T, plain, tty *kit.Container) func(i int) (string, []string) {
	return func(i int) (string, []string) {
		if i%2 == 0 {
			return attachURL(t, tty, &cri.AttachRequest{Stdin: true, Stdout: true, Tty: true}), []string{stdin, stdout, resize}
		}
		return attachURL(t, plain, &cri.AttachRequest{Stdin: true, Stdout: true, Stderr: true}), []string{stdin, stdout, stderr}
	}
}

// breakOff opens n connections, four at a time, and breaks each off within 15 ms.
func breakOff(t *testing.T, seed uint64, n int, next func(i int) (string, []string)) {
	t.Helper()
	work := make(chan int)
	var wg sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for i := range work {
				u, streams := next(i)
				if err := breakOne(rng, u, streams); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
}

// breakOne closes a client's connection at a random moment: before its request, in its handshake, with all streams open; with a
// goodbye or by a reset.
func breakOne(rng *rand.Rand, rawURL string, streams []string) error {
	tcp, u, err := dial(rawURL)
	if err != nil {
		return err
	}
	if rng.IntN(2) == 0 {
		if err := tcp.(*net.TCPConn).SetLinger(0); err != nil {
			return errors.Join(err, tcp.Close())
		}
	}
	// The library waits up to 30 s for what never comes on a closed connection; nobody waits for it.
	if rng.IntN(3) == 0 {
		go useSocket(tcp, u, [...]string{"v4.channel.k8s.io", "v5.channel.k8s.io"}[rng.IntN(2)])
	} else {
		go useSPDY(tcp, u, streams)
	}
	<-time.After(time.Duration(rng.IntN(15000)) * time.Microsecond)
	if err := tcp.Close(); err != nil && !errors.Is(err, net.ErrClosed) { // the library closes it when the server does
		return err
	}
	return nil
}

// useSocket types and reads until the connection ends; so does useSPDY.
func useSocket(tcp net.Conn, u *url.URL, version string) {
	ws, err := socket(tcp, u, version)
	if err != nil {
		return
	}
	_, _ = fmt.Fprint(ws, "\x00typed\n")
	_, _ = io.Copy(io.Discard, ws)
}

func useSPDY(tcp net.Conn, u *url.URL, streams []string) {
	s, err := onto(tcp, u, streams...)
	if err != nil {
		return
	}
	_, _ = io.WriteString(s.stdin, "typed\n")
	for _, from := range []httpstream.Stream{s.status, s.stdout, s.stderr} {
		if from != nil { // one that nobody reads would keep the others from noticing the end
			go func() { _, _ = io.Copy(io.Discard, from) }()
		}
	}
}
