// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
)

const usage = `usage: shim-keeper [-d] DIRECTORY
Starts the keeper pair on DIRECTORY (a directory on tmpfs that only root may enter), unless one runs there.
-d: in the background.  version: prints the build.
`

// Main is the program shim-keeper; the result is its exit status. build names the binary to the other end of a connection.
func Main(build string) int {
	args := arguments()
	role := ""
	if len(args) > 1 {
		role = args[1]
	}
	var err error
	switch {
	case role == "elder" && len(args) == 3:
		err = runElder(build, args[2] == "fresh")
	case role == "younger":
		err = runYounger(build)
	case role == "version":
		unix.Write(1, []byte(build+"\n")) //nolint:errcheck // a closed stdout is the caller's wish
	case role == "-d" && len(args) == 3:
		err = detach(args[2])
	case role == "-r" && len(args) == 3:
		err = boot(args[2])
	case strings.HasPrefix(role, "/") && len(args) == 2:
		err = boot(role)
	default:
		unix.Write(2, []byte(usage)) //nolint:errcheck // nobody else to tell
		return 2
	}
	if err != nil {
		logger{role}.failed("stopped", err)
		return 1
	}
	return 0
}

// arguments reads the command line from /proc: os.Args would bring package os with it.
func arguments() []string {
	b, err := sys.ReadFile(unix.AT_FDCWD, "/proc/self/cmdline", 8192)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// detach runs boot in a process of its own session and waits until it has become the elder, or has failed.
func detach(dir string) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return sys.At("make pipe", err)
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return sys.At("open /dev/null", err)
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"shim-keeper", "-r", dir}, &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{uintptr(null), uintptr(null), 2, uintptr(p[1])}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return sys.At("start", err)
	}
	unix.Close(p[1])
	var b [1]byte
	for { // the pipe ends when the elder is executed, or at exit
		if n, err := unix.Read(p[0], b[:]); n == 0 || err != unix.EINTR {
			break
		}
	}
	var st unix.WaitStatus
	if got, err := unix.Wait4(pid, &st, unix.WNOHANG, nil); err == nil && got == pid && st != 0 {
		return sys.At("boot", unix.ECHILD)
	}
	return nil
}

// boot prepares the directory and turns this process into the elder. It returns nil if a pair runs there already.
func boot(dir string) error {
	runtime.LockOSThread() // unshare is per thread, and execve keeps the thread that calls it
	// detach's pipe, and what whoever started the daemon had open: the keeper would have it for ever.
	if err := unix.CloseRange(3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return sys.At("let go of inherited descriptors", err)
	}
	null, err := high(unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0))
	if err != nil {
		return sys.At("open /dev/null", err)
	}
	files, err := prepare(dir)
	if err == unix.EWOULDBLOCK { //nolint:errorlint // as prepare returns it
		return nil
	}
	if err != nil {
		return err
	}
	env := environ(raiseFiles())
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return sys.At("unshare mount namespace", err)
	}
	for fd := range 2 { // what children start with
		if err := unix.Dup3(null, fd, 0); err != nil {
			return sys.At("open /dev/null", err)
		}
	}
	for i, fd := range append(files, files[0], files[0]) { // all above fdHandover, so none is overwritten before its turn
		if err := unix.Dup3(fd, fdDir+i, 0); err != nil {
			return sys.At("place descriptor", err)
		}
	}
	return sys.At("execute elder", unix.Exec("/proc/self/fd/"+strconv.Itoa(fdImage), []string{"shim-keeper", "elder", "fresh"}, env))
}

// prepare opens the descriptors fdDir to fdState, with numbers above the fixed ones. EWOULDBLOCK: a pair runs there.
func prepare(dir string) ([]int, error) {
	if err := unix.Mkdir(dir, 0o700); err != nil && err != unix.EEXIST {
		return nil, sys.At("make "+dir, err)
	}
	dirFD, err := high(unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))
	if err != nil {
		return nil, sys.At("open "+dir, err)
	}
	lock, err := high(unix.Openat(dirFD, lockName, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600))
	if err != nil {
		return nil, sys.At("open lock", err)
	}
	if err := unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	self, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, sys.At("open own binary", err)
	}
	image, err := high(seal(self))
	if err != nil {
		return nil, sys.At("copy own binary", err)
	}
	sys.Unlink(dirFD, stateName)
	state, err := high(unix.Openat(dirFD, stateName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600))
	if err != nil {
		return nil, sys.At("make state", err)
	}
	if err := unix.Ftruncate(state, tableSize); err != nil {
		return nil, sys.At("make state", err)
	}
	listener, err := high(listen(dirFD))
	if err != nil {
		return nil, sys.At("listen", err)
	}
	return []int{dirFD, lock, listener, image, state}, nil
}

// high moves a new descriptor above the fixed ones.
func high(fd int, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 32)
}

func listen(dir int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	sys.Unlink(dir, socketName)
	// Through /proc, since the directory's own path may be longer than an address holds (108 bytes).
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(dir) + "/" + socketName}); err != nil {
		return -1, err
	}
	if err := unix.Fchmodat(dir, socketName, 0o600, 0); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, 128)
}

// seal copies a binary into a memfd that nobody can change: what runs can't be overwritten through /proc/PID/exe.
func seal(from int) (int, error) {
	const mfdExec = 0x10 // Linux 6.3; without it the file is executable anyway
	fd, err := unix.MemfdCreate("shim-keeper", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC|mfdExec)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("shim-keeper", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, err
	}
	for off := int64(0); ; {
		n, err := unix.Sendfile(fd, from, &off, 1<<20)
		if err != nil && err != unix.EINTR {
			unix.Close(fd)
			return -1, err
		}
		if err == nil && n == 0 {
			break
		}
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK
	for i := 0; ; i++ {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		if err == nil {
			return fd, nil
		}
		if err != unix.EBUSY || i == 100 {
			unix.Close(fd)
			return -1, err
		}
		time.Sleep(time.Millisecond) // EBUSY: pages of the copy are still in flight to the page cache
	}
}

// moveIn gives the process its own small root: a tmpfs with /proc, /sys and /r, the place for containers' roots. It must be
// alone in a mount namespace that is a copy of the host's.
func moveIn() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return sys.At("make mounts private", err)
	}
	root, err := newMount("tmpfs")
	if err != nil {
		return sys.At("mount root", err)
	}
	defer unix.Close(root)
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return sys.At("attach root", err)
	}
	for _, d := range []string{"proc", "sys", "r"} {
		if err := unix.Mkdirat(root, d, 0o755); err != nil {
			return sys.At("make /"+d, err)
		}
	}
	for d, fs := range map[string]string{"proc": "proc", "sys": "sysfs"} {
		m, err := newMount(fs)
		if err != nil {
			return sys.At("mount "+fs, err)
		}
		err = unix.MoveMount(m, "", root, d, unix.MOVE_MOUNT_F_EMPTY_PATH)
		unix.Close(m)
		if err != nil {
			return sys.At("attach "+fs, err)
		}
	}
	if err := unix.Fchdir(root); err != nil {
		return sys.At("enter root", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return sys.At("pivot root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return sys.At("leave old root", err)
	}
	return sys.At("enter root", unix.Chdir("/"))
}

// newMount makes a detached mount of a file system type.
func newMount(fs string) (int, error) {
	fd, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	if fs == "tmpfs" {
		if err := unix.FsconfigSetString(fd, "mode", "0755"); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}
