// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListenAnswersRootAlone: even on a socket that everybody may connect to, another user gets no answer.
func TestListenAnswersRootAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it becomes somebody else")
	}
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
	}()
	// By its descriptor the socket is reached whatever the directories above say.
	entry, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(entry)
	for uid, want := range map[int]string{65534: "", 0: "hello"} {
		if got, err := answerTo(uid, fmt.Sprintf("/proc/self/fd/%d", entry)); err != nil || got != want {
			t.Errorf("user %d gets %q, %v; want %q", uid, got, err, want)
		}
	}
}

// answerTo is what a client of that user reads. The user is that of one thread, which ends with the goroutine: it stays locked.
func answerTo(uid int, path string) (answer string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			err = errno
			return
		}
		var c net.Conn
		if c, err = net.Dial("unix", path); err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 16)
		n, e := c.Read(b)
		if answer = string(b[:n]); n == 0 && !errors.Is(e, unix.ECONNRESET) && !errors.Is(e, io.EOF) {
			err = e
		}
	}()
	<-done
	return answer, err
}
