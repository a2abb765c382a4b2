// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// number reads argument i, or def when there is none.
func number(args []string, i, def int) int {
	if i < len(args) {
		if n, err := strconv.Atoi(args[i]); err == nil {
			return n
		}
	}
	return def
}

// eat touches MIB of memory, more each moment, and then sleeps.
func eat(args []string) error {
	var kept [][]byte
	for range number(args, 0, 1024) {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	fmt.Println("ate", len(kept))
	return hang(nil)
}

// lines writes N numbered lines, padded to WIDTH bytes, as fast as they are taken.
func lines(args []string) error {
	n, width := number(args, 0, 1000), number(args, 1, 0)
	w := bufio.NewWriterSize(os.Stdout, 64<<10)
	pad := strings.Repeat("x", max(width, 0))
	var buf []byte
	for i := range n {
		buf = strconv.AppendInt(buf[:0], int64(i), 10)
		if len(buf) < width {
			buf = append(append(buf, ' '), pad[:width-len(buf)-1]...)
		}
		if _, err := w.Write(append(buf, '\n')); err != nil {
			return err
		}
	}
	return w.Flush()
}

// both writes N lines to stdout and N to stderr, by turns, unbuffered.
func both(args []string) error {
	for i := range number(args, 0, 10) {
		if _, err := fmt.Fprintf(os.Stdout, "out %d\n", i); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(os.Stderr, "err %d\n", i); err != nil {
			return err
		}
	}
	return nil
}

// ignore ignores every signal that can be ignored.
func ignore([]string) error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	fmt.Println("ignoring")
	return hang(nil)
}

// signals prints the first signal that arrives and ends with 40 plus its number.
func signals([]string) error {
	c := make(chan os.Signal, 4)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	fmt.Println("ready")
	s := <-c
	fmt.Println("got", s)
	if n, ok := s.(syscall.Signal); ok {
		os.Exit(40 + int(n))
	}
	return nil
}

// grandchild leaves a process behind that keeps stdout open, and ends with 7.
func grandchild(args []string) error {
	child := exec.Command("/proc/self/exe", "hang", "left-behind")
	child.Args[0] = "probe"
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	fmt.Println("left", child.Process.Pid)
	os.Exit(number(args, 0, 7))
	return nil
}

// zombies makes N orphans that end at once, says so and sleeps.
func zombies(args []string) error {
	for range number(args, 0, 10) {
		if err := exec.Command("/bin/sh", "-c", "/bin/true & exit 0").Run(); err != nil {
			return err
		}
	}
	fmt.Println("orphaned")
	return hang(nil)
}

func exit(args []string) error {
	os.Exit(number(args, 0, 0))
	return nil
}

// die sends itself a signal by number.
func die(args []string) error {
	n := syscall.Signal(number(args, 0, int(syscall.SIGKILL)))
	signal.Reset(n)
	if err := syscall.Kill(os.Getpid(), n); err != nil {
		return err
	}
	return hang(nil)
}

// hang sleeps for ever; SIGTERM ends it.
func hang([]string) error {
	for {
		time.Sleep(time.Hour)
	}
}

// spin burns one CPU for SECONDS.
func spin(args []string) error {
	end := time.Now().Add(time.Duration(number(args, 0, 1)) * time.Second)
	for time.Now().Before(end) {
		continue
	}
	return nil
}

// escape double-forks a child into a session of its own, which goes on writing dots; the parent waits.
func escape([]string) error {
	child := exec.Command("/bin/sh", "-c", "trap '' HUP TERM; while :; do sleep 1; done")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	fmt.Println("escaped", child.Process.Pid)
	return hang(nil)
}
