// SPDX-License-Identifier: Apache-2.0

// Package executor makes processes: it runs launch programs (package proto) between clone and execve.
//
// A Nursery, the keeper's end, has one zygote: a small child that does nothing but clone (zygote.go). An Order asks it for a process, with
// a sealed program and its descriptors; the answer is a pid and its pidfd, or the kernel's refusal. What it clones runs the program with raw
// system calls only (exec.go). It starts by letting go of everything of the keeper's: descriptors, signal dispositions and mask, RLIMIT_NOFILE.
// The rest (umask, oom_score_adj, session) is the program's.
//
// From there on, the new process and the keeper speak through its report socket (note.go): it waits at its gate until OpenGate, sends notes, and
// the socket ends with execve, or with the process. Should the keeper's end go first, the process exits at its gate.
//
// The package knows nothing of containers, nor of who keeps what: it makes the process, the caller is its parent and keeps its descriptors.
package executor
