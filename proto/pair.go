// SPDX-License-Identifier: Apache-2.0

package proto

// What the elder and the younger keeper say to each other, on a SOCK_SEQPACKET socket pair. A packet that has been sent is
// in the other's hands: the elder reads its queue to the end before it equips the next younger.

// Ready is a younger's first message: it asks for everything the elder holds, one Keep for each process, then Equipped.
type Ready struct{}

// Equipped ends the answer to Ready. Build is the elder's.
type Equipped struct{ Build string }

// Keep is all that must outlive the sender about one process; it replaces what an earlier Keep said of it, except that
// descriptors are added and dropped one by one. From elder to younger (after Ready), Add names all there are.
type Keep struct {
	ID        string
	Slot      uint32
	PID       int32
	StartTime uint64
	Flags     KeepFlags
	// Add names the descriptors of this packet, in order. Drop names those to be closed.
	Add, Drop []Held
}

// KeepFlags says what a process is and how far its launch has come.
type KeepFlags uint32

// The flags.
const (
	// KeepRun: it was spawned with Run; a new younger kills it.
	KeepRun KeepFlags = 1 << iota
	// KeepGated: it was spawned with Hold and not released yet.
	KeepGated
	// KeepLaunched: execve succeeded, or its report socket has ended otherwise.
	KeepLaunched
	// KeepStdinOnce is Spawn.StdinOnce.
	KeepStdinOnce
)

// Held names one kept descriptor of a process.
type Held struct {
	Kind HeldKind
	// Arg tells several of one kind apart: the generation of a log file, the op that reported a descriptor.
	Arg uint32
}

// HeldKind says what a kept descriptor is for.
type HeldKind uint32

// The kinds of kept descriptor.
const (
	// HeldPIDFD is the process's pidfd.
	HeldPIDFD HeldKind = 1 + iota
	// HeldReport is the keeper's end of the report socket of a launch under way.
	HeldReport
	// HeldStdin is the write end of stdin's FIFO.
	HeldStdin
	// HeldStdout and HeldStderr are the read ends of the FIFOs.
	HeldStdout
	HeldStderr
	// HeldPTY is the pty's master.
	HeldPTY
	// HeldLog is a log file.
	HeldLog
	// HeldReturn was reported with TagReturn.
	HeldReturn
)

// Drop ends the keeping of a process. Unknown ids are ignored.
type Drop struct{ ID string }

// Reaped tells the younger that the elder has reaped a process; its status is in the shared state.
type Reaped struct{ ID string }

// Handover is what a keeper leaves to its next image across execve, in a memfd.
type Handover struct {
	// Younger and YoungerPIDFD name the elder's running younger; 0 and -1 if there is none.
	Younger, YoungerPIDFD int32
	// Keep has everything kept; Add names the descriptors, whose numbers follow in FDs, for one Keep after the other.
	Keep []Keep
	FDs  []int32
}

func (*Ready) kind() uint16    { return 32 }
func (*Keep) kind() uint16     { return 33 }
func (*Drop) kind() uint16     { return 34 }
func (*Equipped) kind() uint16 { return 35 }
func (*Reaped) kind() uint16   { return 36 }
func (*Handover) kind() uint16 { return 37 }

func newPairMessage(kind uint16) Message {
	switch kind {
	case 32:
		return &Ready{}
	case 33:
		return &Keep{}
	case 34:
		return &Drop{}
	case 35:
		return &Equipped{}
	case 36:
		return &Reaped{}
	case 37:
		return &Handover{}
	default:
		return nil
	}
}

func (m *Ready) fields(*codec)      {}
func (m *Equipped) fields(c *codec) { c.str(&m.Build) }
func (m *Drop) fields(c *codec)     { c.str(&m.ID) }
func (m *Reaped) fields(c *codec)   { c.str(&m.ID) }

func (h *Held) fields(c *codec) {
	c.u32((*uint32)(&h.Kind))
	c.u32(&h.Arg)
}

func (m *Keep) fields(c *codec) {
	c.str(&m.ID)
	c.u32(&m.Slot)
	c.i32(&m.PID)
	c.u64(&m.StartTime)
	c.u32((*uint32)(&m.Flags))
	held := func(c *codec, h *Held) { h.fields(c) }
	slice(c, &m.Add, held)
	slice(c, &m.Drop, held)
}

func (m *Handover) fields(c *codec) {
	c.i32(&m.Younger)
	c.i32(&m.YoungerPIDFD)
	slice(c, &m.Keep, func(c *codec, k *Keep) { k.fields(c) })
	slice(c, &m.FDs, (*codec).i32)
}
