// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// pgrep prints the pids of the processes with this name.
func pgrep(args []string) error {
	found := false
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	for _, c := range comms {
		text, err := os.ReadFile(c)
		if err == nil && len(args) > 0 && strings.Contains(string(text), args[len(args)-1]) {
			pid := filepath.Base(filepath.Dir(c))
			if pid != strconv.Itoa(os.Getpid()) {
				fmt.Println(pid)
				found = true
			}
		}
	}
	if !found {
		os.Exit(1)
	}
	return nil
}

// ipcs lists System V shared memory segments by id.
func ipcs([]string) error {
	text, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		return err
	}
	fmt.Println("key        shmid      owner      perms      bytes      nattch")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 6 && f[0] != "key" {
			fmt.Printf("%-10s %-10s %-10s %-10s %-10s %-10s\n", f[0], f[1], f[7], f[2], f[3], f[6])
		}
	}
	return nil
}

func effectiveUID([]string) error {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
	return nil
}

// environ prints the environment as the kernel was given it, odd names included, one per line.
func environ([]string) error {
	text, err := os.ReadFile("/proc/self/environ")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(bytes.ReplaceAll(text, []byte{0}, []byte{'\n'}))
	return err
}

// arguments prints each argument quoted on a line.
func arguments(args []string) error {
	for _, a := range args {
		fmt.Printf("%q\n", a)
	}
	return nil
}

// descriptors prints the open descriptors and what they point at, without those of the Go runtime.
func descriptors([]string) error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		target, err := os.Readlink("/proc/self/fd/" + n)
		if err != nil || n == strconv.Itoa(int(dir.Fd())) || strings.Contains(target, "eventpoll") || strings.Contains(target, "eventfd") || strings.HasPrefix(target, "/sys/fs/cgroup/") {
			continue
		}
		fmt.Println(n, target)
	}
	return nil
}

func cat(args []string) error {
	for _, a := range args {
		f, err := os.Open(a)
		if err != nil {
			return err
		}
		if _, err := io.Copy(os.Stdout, f); err != nil {
			return err
		}
	}
	return nil
}

// session prints pid, process group, session and the terminal's foreground group (0 without a terminal).
func session([]string) error {
	sid, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	var fg int32
	if tty, err := os.Open("/dev/tty"); err == nil {
		_, _, _ = syscall.RawSyscall(syscall.SYS_IOCTL, tty.Fd(), syscall.TIOCGPGRP, uintptr(unsafe.Pointer(&fg)))
	}
	fmt.Println(os.Getpid(), syscall.Getpgrp(), sid, fg)
	return nil
}

// keyring prints the serial of the session keyring and its description.
func keyring([]string) error {
	const keyctlGetKeyringID, keyctlDescribe, specSession = 0, 6, ^uintptr(2) // -3
	id, _, errno := syscall.Syscall(sysKeyctl, keyctlGetKeyringID, specSession, 0)
	if errno != 0 {
		return errno
	}
	var buf [256]byte
	n, _, errno := syscall.Syscall6(sysKeyctl, keyctlDescribe, id, uintptr(unsafe.Pointer(&buf)), uintptr(len(buf)), 0, 0)
	if errno != 0 {
		return errno
	}
	fmt.Printf("%d %s\n", int32(id), bytes.TrimRight(buf[:n], "\x00"))
	return nil
}

// openStdout opens /dev/stdout and /dev/stderr by name and writes to them.
func openStdout([]string) error {
	for _, name := range []string{"/dev/stdout", "/dev/stderr"} {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(f, "by name"); err != nil {
			return err
		}
	}
	return nil
}

// mountAt tries to bind the first argument over the second.
func mountAt(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: mount SOURCE TARGET")
	}
	return syscall.Mount(args[0], args[1], "", syscall.MS_BIND, "")
}
