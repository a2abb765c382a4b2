// SPDX-License-Identifier: Apache-2.0

// Command helper is what the keeper's tests run as a container.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"
)

func main() {
	args := os.Args[1:]
	num := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	switch args[0] {
	case "lines": // N lines, flushed at odd moments
		w, buf := bufio.NewWriterSize(os.Stdout, 70000), []byte(nil)
		for i := range num(1) {
			buf = line(buf[:0], i)
			w.Write(buf)
			if i%7 == 3 && i%64 < 32 {
				w.Flush()
			}
		}
		w.Flush()
	case "late": // lines up to N, and when stdin ends the rest up to M
		var buf []byte
		for i := range num(1) {
			buf = line(buf, i)
		}
		os.Stdout.Write(buf)
		_, _ = io.Copy(io.Discard, os.Stdin)
		buf = buf[:0]
		for i := num(1); i < num(2); i++ {
			buf = line(buf, i)
		}
		os.Stdout.Write(buf)
	case "flood": // the same lines again and again, N blocks of 64 KiB
		var block []byte
		for i := 0; len(block) < 64<<10-160; i++ {
			block = line(block, i)
		}
		for range num(1) {
			os.Stdout.Write(block)
		}
	case "both": // N lines alternating between stdout and stderr
		for i := range num(1) {
			fmt.Fprintf([]*os.File{os.Stdout, os.Stderr}[i%2], "line %d\n", i)
		}
	case "print":
		fmt.Fprint(os.Stdout, args[1])
		if len(args) > 2 {
			fmt.Fprint(os.Stderr, args[2])
		}
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "wait": // until stdin ends
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(num(1))
	case "nap": // longer than a keeper waits for the news of an end
		time.Sleep(1500 * time.Millisecond)
		os.Exit(num(1))
	case "grandchild": // leaves a process that holds stdout until the file goes
		cmd := exec.Command("/proc/self/exe", "hold")
		cmd.Stdout, cmd.Stdin, cmd.Stderr = os.Stdout, os.Stdin, os.Stdin
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		fmt.Print("parent\nhalf")
	case "hold":
		_, _ = io.Copy(io.Discard, os.Stdin)
		fmt.Print("-full\n")
	case "status":
		for _, f := range []string{"status", "limits"} {
			b, err := os.ReadFile("/proc/self/" + f)
			if err != nil {
				panic(err)
			}
			os.Stdout.Write(b)
		}
		fds, _ := os.ReadDir("/proc/self/fd")
		for _, f := range fds {
			to, _ := os.Readlink("/proc/self/fd/" + f.Name())
			fmt.Println("fd", f.Name(), to)
		}
	}
	os.Exit(0)
}

func line(b []byte, i int) []byte {
	b = append(strconv.AppendInt(append(b, "line "...), int64(i), 10), ' ')
	for range i * 7919 % 150 {
		b = append(b, byte('a'+i%26))
	}
	return append(b, '\n')
}
