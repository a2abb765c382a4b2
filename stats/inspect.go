// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
)

// processes is what /proc says of a container's processes. Those that end while it is read are left out.
type processes struct {
	count, files, sockets uint64
	// openFiles is the first process's soft RLIMIT_NOFILE, if limited is set.
	openFiles uint64
	limited   bool
}

func inspect(pids []int, first int) processes {
	p := processes{count: uint64(len(pids))}
	for _, pid := range pids {
		files, sockets := descriptors(pid)
		p.files += files
		p.sockets += sockets
	}
	var limit unix.Rlimit
	if first > 0 && unix.Prlimit(first, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		p.openFiles, p.limited = limit.Cur, true
	}
	return p
}

func descriptors(pid int) (files, sockets uint64) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var target [8]byte
	for _, name := range names {
		files++
		if n, err := unix.Readlinkat(int(dir.Fd()), name, target[:]); err == nil && strings.HasPrefix(string(target[:n]), "socket:[") {
			sockets++
		}
	}
	return files, sockets
}

// disk is the file system that holds a writable layer, and what the layer takes of it.
type disk struct {
	// mount is empty if nothing is known.
	mount                    string
	used                     uint64
	size, inodes, inodesFree uint64
}

func diskOf(u *cri.FilesystemUsage) disk {
	mount := u.GetFsId().GetMountpoint()
	var fs unix.Statfs_t
	if mount == "" || unix.Statfs(mount, &fs) != nil {
		return disk{}
	}
	return disk{mount: mount, used: u.GetUsedBytes().GetValue(), size: fs.Blocks * uint64(fs.Bsize), inodes: fs.Files, inodesFree: fs.Ffree}
}

// deviceName is /dev/sda for 8:0; the numbers where sysfs doesn't know the device.
func deviceName(io cgroup.IO) string {
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", io.Major, io.Minor))
	if err != nil {
		return fmt.Sprintf("%d:%d", io.Major, io.Minor)
	}
	return "/dev/" + filepath.Base(link)
}
