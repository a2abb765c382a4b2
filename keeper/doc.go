// SPDX-License-Identifier: Apache-2.0

// Package keeper is the program shim-keeper: it starts the processes of containers, is their parent, keeps their stdio open, writes
// their logs and learns how they end. It knows nothing of Kubernetes: what is started is a launch program (package proto), which the
// daemon compiles.
//
// It is not a library. cmd/shim-keeper calls Main and nothing else is exported. The daemon speaks to it through keeper/client; the messages
// are in proto. It imports neither os nor fmt nor net: two of it run on every node for the life of all containers.
//
// # The pair
//
// Two processes run the same sealed binary. The younger works: it answers the daemon, launches, reaps, pumps logs. The elder holds: a
// second copy of every descriptor, and the numbers that go with them. The elder is the younger's parent and the subreaper of all.
//
//	younger ends  ▶ its children fall to the elder, which starts another younger; that one says Ready and is given everything
//	elder ends    ▶ the younger executes itself as the elder, in place, so its children stay its own; then it starts a younger
//	upgrade       ▶ the elder executes the new image in place; when that one speaks, the younger does so too
//
// All three are one path: a ledger of Keep records (ledger.go), each with its descriptors, goes from one process image to another: by
// message to a younger, across execve by a memfd. There is no orderly way out that would differ from kill -9: every step leaves behind, at any
// instruction, something from which the other one goes on. The rules for that:
//
//   - A Keep that was sent is held. The elder reads its queue to the end before it equips the next younger, so nobody waits for answers.
//   - What must be held is sent before it has effects: a process and its stdio before its gate opens, a reported descriptor before the report
//     is taken out of its socket (it is looked at with MSG_PEEK).
//   - A child waits at its gate until then. If its keeper dies first, the last copies of its report socket go, the gate ends, it exits:
//     the launch has not happened, and the daemon's repeated Spawn makes it happen.
//   - A status is stored in shared memory while the process is still a zombie, and only then reaped.
//   - A process whose launch is under way has not ended before its launch has (the first of two processes ends without being the end).
//
// What two deaths at the same moment lose is what no other process holds: pipes' contents, the parenthood. A container whose parents have
// both died is init's child; its exit code is then known from Linux 6.15 on (PIDFD_GET_INFO), and StatusUnknown before.
//
// # The executor
//
// exec.go runs a launch program between clone3 and execve, with raw system calls only, in a plain fork of the zygote (zygote.go), a small child of
// the younger that does nothing but clone. It starts by letting go of everything of the keeper's: descriptors, signal dispositions and mask,
// RLIMIT_NOFILE. The rest (umask, oom_score_adj, session) is the program's.
//
// # The log pump
//
// One worker at a time moves a container's output to its log, so its two streams, which share the file, are written in turn:
//
//	FIFO ──splice──▶ spool ──read──▶ lines ──pwrite──▶ log
//
// The spool is a file on tmpfs. The position is two slots in shared memory, of which an atomic counter says which is in force. For stream s, with
// size(s) the size of its spool, and P the position in force:
//
//	I1  consumed(s) = size(s)           the kernel moves a byte from pipe to spool as one step; a kill falls before or after
//	I2  P.spool[s] ≤ size(s)            what lies between has been consumed and is not yet in the log
//	I3  P.mode = 0   ⇒  log[0, P.log) = F(spool[0, P.spool))    and nothing after P.log counts
//	I4  P.mode = 1+s ⇒  a write of F(spool(s)[P.spool[s], P.end), P.time) to offset P.log may have begun
//	I5  holes are punched only below P.spool[s]
//
// F, the formatting, is a function of its arguments, the time among them; that is why the time is in the position before the lines are
// made (I4). A keeper that finds P.mode ≠ 0 does the same write again: the same bytes to the same place. Then it sets log and spool[s] and mode in one
// step (I3). So each byte is in the log exactly once, whatever is killed when. Reopening sets gen and log in one step between writes, after
// the elder has the new file and before it loses the old one.
//
// An idle stream costs an entry in an epoll set and 128 bytes of state: no goroutine, no buffer, no page of spool.
package keeper
