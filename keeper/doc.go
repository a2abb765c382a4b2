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
//   - A status is stored in shared memory while the process is still a zombie, and only then reaped; why a launch failed is stored before the
//     report of it is taken out.
//   - An orphan is judged only when the last that its dead parent has said was heard.
//   - A process whose launch is under way has not ended before its launch has (the first of two processes ends without being the end).
//
// What two deaths at the same moment lose is what no other process holds: pipes' contents, the parenthood. The next pair, which the daemon
// starts, knows nothing of what there was. A container whose parents have both died is init's child, and nobody takes its output; the daemon,
// which holds its pidfd, ends it. Its status is then known from Linux 6.15 on (PIDFD_GET_INFO), and StatusUnknown before.
//
// # Its parts
//
//	keeper/executor   makes processes: the zygote, and what runs between clone and execve
//	keeper/pump       moves a process's output to its log and to attached clients
//	keeper/sys        what is needed of os, net and fmt, without them
//
// What is here decides what is kept and who is told: the elder (elder.go) and the younger (younger.go), the ledger that both have (ledger.go)
// and hand over (handover.go), the state that outlives both (state.go); of the younger, a launch (launch.go, follow.go), a process (proc.go) and
// the daemon's requests (serve.go).
//
// Lock order: ledger.mu, then a pump's.
package keeper
