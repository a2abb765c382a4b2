// SPDX-License-Identifier: Apache-2.0

package proto

// Version is refused by the other end when it differs.
const Version = 2

// MaxMessage is the size in bytes of the largest packet either end sends.
const MaxMessage = 128 << 10

// MaxFDs is the largest number of descriptors in one packet (the kernel's SCM_MAX_FD); MaxPassed that of a program's own.
const (
	MaxFDs    = 253
	MaxPassed = MaxFDs - 5
)

// Hello opens a connection, both ways.
type Hello struct {
	Version uint32
	// Build is the version string of the sender's binary, for upgrades and people.
	Build string
}

// Spawn starts a process. Descriptors: the program's memfd, then the log file if Log is set, then the program's own.
//
// The id names the process until Forget. A Spawn whose id is known joins it: the answer is that of the first one.
type Spawn struct {
	ID string
	// CloneFlags are the CLONE_NEW* flags of the first clone.
	CloneFlags uint64
	// Cgroup is the index among the program's own descriptors of the cgroup v2 directory for CLONE_INTO_CGROUP, or -1.
	Cgroup int32
	// Stdin, Stdout and Stderr ask for a FIFO; its container end is FDStdin, FDStdout, FDStderr of the program.
	Stdin, Stdout, Stderr bool
	// StdinOnce closes stdin when the first client that attached to it leaves.
	StdinOnce bool
	// Log says that the second descriptor is the log file. Without it output reaches attached clients only.
	Log bool
	// Run asks for a process that ends by itself: the answer comes when it has, Spawned.Status is set, and nothing is kept.
	Run bool
	// Hold keeps the child at its gate after the clone: the answer comes at once, with the pid, and the program starts with Release.
	// The systemd cgroup driver needs it.
	Hold bool
}

// Release lets a child that was spawned with Hold run its program; the answer is another Spawned.
type Release struct{ ID string }

// Spawned answers Spawn when execve has succeeded or the program failed. Descriptors: the pidfd (if the process was
// made), then those that the program reported with TagReturn.
type Spawned struct {
	PID int32
	// StartTime is field 22 of /proc/PID/stat: clock ticks since boot; with the pid it names the process for good.
	StartTime uint64
	// FailedOp is the index of the op that failed, or FailedNone, FailedClone, FailedKilled. Errno is its errno.
	FailedOp int32
	Errno    uint32
	// Status is the wait status of a Run process, or of one that was killed before execve.
	Status uint32
}

// Values of Spawned.FailedOp that are no index.
const (
	// FailedNone: nothing failed.
	FailedNone = -1
	// FailedClone: the clone itself failed, with Errno.
	FailedClone = -2
	// FailedKilled: the process was killed before execve; Status is its wait status.
	FailedKilled = -3
)

// Exited is an event: the process has ended and its output up to that moment is in the log. It is sent to every connection,
// and again by List, until Forget.
type Exited struct {
	ID string
	// Status is the wait status as wait4 gives it; StatusUnknown when nobody could learn it.
	Status uint32
	// Time is when the end was seen, in nanoseconds since 1970.
	Time int64
}

// StatusUnknown is no wait status.
const StatusUnknown = 0xffffffff

// List asks for all known processes; answers are Listed, as many as needed.
type List struct{}

// Process is one entry of Listed.
type Process struct {
	ID        string
	PID       int32
	StartTime uint64
	// Exited, Status and Time are as in Exited.
	Exited bool
	Status uint32
	Time   int64
}

// Listed is part of the answer to List. Descriptors: the pidfd of each process that has not exited, in order.
type Listed struct {
	Processes []Process
	More      bool
}

// Reopen gives a process a new log file (one descriptor) and is answered by Ack when output goes there.
type Reopen struct{ ID string }

// Attach copies a process's output to the caller from now on. Descriptors: the write ends for stdout and stderr as far
// as Stdout and Stderr say. The answer is an Ack with the write end of stdin, or the pty's master, when Stdin is set.
type Attach struct {
	ID                    string
	Stdin, Stdout, Stderr bool
}

// TTY asks for the pty's master (for resizing); the answer is an Ack with one descriptor.
type TTY struct{ ID string }

// Forget drops a process that has exited, with its stdio and records. Unknown ids succeed.
type Forget struct{ ID string }

// Upgrade makes the keeper pair re-execute itself from the descriptor, a new keeper binary open for reading: both keep their
// children and all they hold. It is answered by an Ack before it happens, or with the reason why it can't. The connection
// then ends; the Hello of the next one tells which build runs.
type Upgrade struct{}

// Ack answers requests that have no answer of their own. Errno 0 is success; Error then is empty.
type Ack struct {
	Errno uint32
	Error string
}

func (*Hello) kind() uint16   { return 1 }
func (*Spawn) kind() uint16   { return 2 }
func (*Spawned) kind() uint16 { return 3 }
func (*Exited) kind() uint16  { return 4 }
func (*List) kind() uint16    { return 5 }
func (*Listed) kind() uint16  { return 6 }
func (*Reopen) kind() uint16  { return 7 }
func (*Attach) kind() uint16  { return 8 }
func (*TTY) kind() uint16     { return 9 }
func (*Forget) kind() uint16  { return 10 }
func (*Upgrade) kind() uint16 { return 11 }
func (*Ack) kind() uint16     { return 12 }
func (*Release) kind() uint16 { return 13 }

// newMessage gives an empty message of a kind, or nil.
func newMessage(kind uint16) Message {
	switch kind {
	case 1:
		return &Hello{}
	case 2:
		return &Spawn{}
	case 3:
		return &Spawned{}
	case 4:
		return &Exited{}
	case 5:
		return &List{}
	case 6:
		return &Listed{}
	case 7:
		return &Reopen{}
	case 8:
		return &Attach{}
	case 9:
		return &TTY{}
	case 10:
		return &Forget{}
	case 11:
		return &Upgrade{}
	case 12:
		return &Ack{}
	case 13:
		return &Release{}
	default:
		return newPairMessage(kind)
	}
}

func (m *Hello) fields(c *codec) { c.u32(&m.Version); c.str(&m.Build) }
func (m *Spawn) fields(c *codec) {
	c.str(&m.ID)
	c.u64(&m.CloneFlags)
	c.i32(&m.Cgroup)
	for _, b := range []*bool{&m.Stdin, &m.Stdout, &m.Stderr, &m.StdinOnce, &m.Log, &m.Run, &m.Hold} {
		c.bool(b)
	}
}
func (m *Spawned) fields(c *codec) {
	c.i32(&m.PID)
	c.u64(&m.StartTime)
	c.i32(&m.FailedOp)
	c.u32(&m.Errno)
	c.u32(&m.Status)
}
func (m *Exited) fields(c *codec) { c.str(&m.ID); c.u32(&m.Status); c.i64(&m.Time) }
func (m *List) fields(*codec)     {}
func (m *Process) fields(c *codec) {
	c.str(&m.ID)
	c.i32(&m.PID)
	c.u64(&m.StartTime)
	c.bool(&m.Exited)
	c.u32(&m.Status)
	c.i64(&m.Time)
}
func (m *Listed) fields(c *codec) {
	slice(c, &m.Processes, func(c *codec, p *Process) { p.fields(c) })
	c.bool(&m.More)
}
func (m *Reopen) fields(c *codec) { c.str(&m.ID) }
func (m *Attach) fields(c *codec) {
	c.str(&m.ID)
	c.bool(&m.Stdin)
	c.bool(&m.Stdout)
	c.bool(&m.Stderr)
}
func (m *TTY) fields(c *codec)     { c.str(&m.ID) }
func (m *Forget) fields(c *codec)  { c.str(&m.ID) }
func (m *Upgrade) fields(*codec)   {}
func (m *Ack) fields(c *codec)     { c.u32(&m.Errno); c.str(&m.Error) }
func (m *Release) fields(c *codec) { c.str(&m.ID) }
