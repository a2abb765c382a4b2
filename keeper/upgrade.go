// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// upgrade is a change of image under way. First the elder executes the new one in place, with all it holds; only when that one has
// spoken does the younger do the same and asks to be equipped. An image that can't live is found out while one keeper still runs the old
// one: it then becomes the elder, as after any other end of its elder.
type upgrade struct {
	c     *conn
	seq   uint64
	image int
}

// upgradeLocked begins an upgrade to the binary behind the request's descriptor.
func (y *younger) upgradeLocked(r *request) error {
	if len(r.fds) != 1 {
		return sys.At("upgrade", unix.EBADF)
	}
	if y.upgrading != nil {
		return sys.At("upgrade", unix.EBUSY)
	}
	u := &upgrade{c: r.c, seq: r.seq, image: -1}
	y.upgrading = u
	binary := r.take(0)
	go func() {
		image, err := seal(binary)
		unix.Close(binary)
		y.mu.Lock()
		defer y.mu.Unlock()
		if err != nil {
			y.upgrading = nil
			u.c.ackLocked(u.seq, sys.At("copy binary", err))
			return
		}
		u.image = image
		y.tellElderLocked(&proto.Upgrade{}, []int{image})
	}()
	return errLater
}

// upgradeAnswerLocked takes the elder's answer: an Ack is its refusal, Equipped comes from the new image.
func (y *younger) upgradeAnswerLocked(_ uint64, m proto.Message) {
	u := y.upgrading
	if u == nil || u.image < 0 {
		return
	}
	y.upgrading = nil
	defer unix.Close(u.image)
	if a, ok := m.(*proto.Ack); ok {
		u.c.ackLocked(u.seq, sys.At("upgrade: "+a.Error, syscall.Errno(a.Errno)))
		return
	}
	u.c.ackLocked(u.seq, nil)
	if err := unix.Dup3(u.image, fdImage, unix.O_CLOEXEC); err != nil {
		y.log.failed("upgrade", err)
		return
	}
	for fd := fdDir; fd <= fdHandover; fd++ {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0) //nolint:errcheck // it is open
	}
	err := unix.Exec("/proc/self/fd/"+strconv.Itoa(fdImage), []string{"shim-keeper", "younger"}, environ(y.nofile))
	for fd := fdDir; fd <= fdHandover; fd++ {
		unix.CloseOnExec(fd)
	}
	y.log.failed("execute new image", err)
}
