// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"
)

// System calls that package syscall does not name; their numbers are the same on all architectures.
const (
	sysOpenTree     = 428
	sysMoveMount    = 429
	sysMountSetattr = 442
)

// atCWD and the flags are those of <linux/fcntl.h> and <linux/mount.h>.
const (
	atCWD         = ^uintptr(99)
	atEmptyPath   = 0x1000
	atRecursive   = 0x8000
	openTreeClone = 1
)

// call makes a system call whose second argument is a path.
func call(nr, a uintptr, p string, args ...uintptr) (uintptr, error) {
	s, err := syscall.BytePtrFromString(p)
	if err != nil {
		return 0, err
	}
	var rest [4]uintptr
	copy(rest[:], args)
	r, _, errno := syscall.Syscall6(nr, a, uintptr(unsafe.Pointer(s)), rest[0], rest[1], rest[2], rest[3])
	runtime.KeepAlive(s)
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

// loosen clears the flags of a mount that the host may have set.
func loosen(dir uintptr, path string, flags uintptr, clear uint64) error {
	attr := [4]uint64{0, clear, 0, 0}
	_, err := call(sysMountSetattr, dir, path, flags, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	return err
}

// undo tries to take away, loosen, uncover and move every mount of the process, and prints what works, the attack first. It is meant for
// a root with CAP_SYS_ADMIN in a user namespace.
func undo([]string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var targets []string
	flags := map[string]string{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		targets = append(targets, f[4])
		flags[f[4]] = "," + f[5] + ","
	}
	try := func(attack, target string, err error) {
		if err == nil {
			fmt.Println(attack, target)
		}
	}
	// Each in a mount namespace of its own that is a copy: what one attack takes away, the next would miss.
	for _, t := range targets {
		for name, attack := range attacks() {
			try(name, t, privately(func() error { return attack(t, flags[t]) }))
		}
	}
	for _, fs := range []string{"proc", "sysfs"} {
		try("mount another", fs, another(fs))
	}
	return nil
}

// privately runs fn in a mount namespace of its own.
func privately(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		err := syscall.Unshare(syscall.CLONE_NEWNS | syscall.CLONE_FS)
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// attacks are what is tried on a mount, with its flags.
func attacks() map[string]func(target, flags string) error {
	out := map[string]func(target, flags string) error{
		"umount":      func(t, _ string) error { return syscall.Unmount(t, 0) },
		"umount lazy": func(t, _ string) error { return syscall.Unmount(t, syscall.MNT_DETACH) },
		"move": func(t, _ string) error {
			if err := os.MkdirAll("/tmp/moved", 0o700); err != nil {
				return err
			}
			return syscall.Mount(t, "/tmp/moved", "", syscall.MS_MOVE, "")
		},
		"move_mount": func(t, _ string) error {
			to, err := syscall.BytePtrFromString("/tmp")
			if err != nil {
				return err
			}
			_, err = call(sysMoveMount, atCWD, t, atCWD, uintptr(unsafe.Pointer(to)), 0)
			return err
		},
		"umount in a copy": func(t, _ string) error {
			if err := os.MkdirAll("/tmp/copy", 0o700); err != nil || t == "/" {
				return errors.Join(err, syscall.EINVAL)
			}
			if err := syscall.Mount("/", "/tmp/copy", "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
				return err
			}
			return syscall.Unmount("/tmp/copy"+t, syscall.MNT_DETACH)
		},
		"copy without what is mounted on": func(t, _ string) error {
			parent := t[:strings.LastIndexByte(t, '/')+1]
			_, err := call(sysOpenTree, atCWD, parent, openTreeClone)
			return err
		},
		"pivot over": func(t, _ string) error { return syscall.PivotRoot(t, t) },
	}
	for name, bit := range map[string]uint64{"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8} {
		set := func(flags string) bool { return strings.Contains(flags, ","+name+",") }
		out["clear "+name] = func(t, flags string) error {
			if !set(flags) {
				return syscall.EINVAL
			}
			return loosen(atCWD, t, 0, bit)
		}
		out["clear "+name+" in a clone"] = func(t, flags string) error {
			if !set(flags) {
				return syscall.EINVAL
			}
			fd, err := call(sysOpenTree, atCWD, t, openTreeClone|atRecursive)
			if err != nil {
				return err
			}
			return loosen(fd, "", atEmptyPath, bit)
		}
	}
	out["remount"] = func(t, flags string) error {
		if !strings.Contains(flags, ",ro,") {
			return syscall.EINVAL
		}
		return syscall.Mount("", t, "", syscall.MS_REMOUNT|syscall.MS_BIND, "")
	}
	return out
}

// another mounts a new instance of a file system.
func another(fstype string) error {
	return privately(func() error {
		if err := os.MkdirAll("/tmp/another", 0o700); err != nil {
			return err
		}
		flags := uintptr(syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC | syscall.MS_RDONLY)
		return syscall.Mount(fstype, "/tmp/another", fstype, flags, "")
	})
}
