// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// holdStdio occupies the descriptors 0, 1 and 2, which are free when a program begins, until stdio sets them: else they would be given to
// what the program opens, and dup3 refuses to copy a descriptor onto itself.
func (p *prog) holdStdio() {
	p.step("hold stdio")
	for i := range 3 {
		p.do(unix.SYS_DUP3, std(proto.FDReport), imm(i), imm(unix.O_CLOEXEC))
	}
}

// stdio gives the process its descriptors 0, 1 and 2.
func (p *launchee) stdio() {
	d := p.d
	if d.TTY {
		p.tty()
		return
	}
	p.step("set up stdio")
	var null reg
	given := []bool{d.Stdin, d.Stdout, d.Stderr}
	if !d.Stdin || !d.Stdout || !d.Stderr {
		// Not by name alone: in a running container /dev/null may have become a link to anything.
		null = p.in(nil, imm(atCWD), "/dev/null", unix.O_RDWR)
	}
	for i, g := range given {
		if g {
			p.do(unix.SYS_DUP3, p.stdioFDs[i], imm(i), imm(0))
			if p.stdioFDs[i] == std(proto.FDStdin+i) { // closeAll closes those that were passed
				p.do(unix.SYS_CLOSE, p.stdioFDs[i])
			}
		} else {
			p.do(unix.SYS_DUP3, null.arg(), imm(i), imm(0))
		}
	}
	if !d.Stdin || !d.Stdout || !d.Stderr {
		p.close(null)
	}
}

// tty makes a pty in the container's devpts, gives its master to the keeper and its slave to the process.
func (p *launchee) tty() {
	p.step("make pty")
	master := p.in(nil, imm(atCWD), "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY)
	p.do(unix.SYS_IOCTL, master.arg(), imm(unix.TIOCSPTLCK), p.words(0))
	slave := p.open(nil, unix.SYS_IOCTL, master.arg(), imm(unix.TIOCGPTPEER), imm(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC))
	if p.d.UID != 0 {
		p.do(unix.SYS_FCHOWN, slave.arg(), imm(uint64(p.d.UID)), imm(^uint64(0)))
	}
	p.do(int(proto.PseudoReport), imm(p.master), master.arg())
	p.close(master)
	if p.console {
		p.step("mount /dev/console")
		// Missing where /dev is a volume; then there is no console.
		t := p.in(missing, imm(atCWD), "/dev/console", unix.O_PATH)
		p.ifOpen(t, func() {
			m := p.clone(slave.arg(), "", false)
			p.attach(m.arg(), t.arg())
			p.close(m)
		})
		p.close(t)
	}
	p.step("set up stdio")
	for i := range 3 {
		p.do(unix.SYS_DUP3, slave.arg(), imm(i), imm(0))
	}
	p.close(slave)
}
