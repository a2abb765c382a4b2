// SPDX-License-Identifier: Apache-2.0

// Package proto is what the daemon and the keeper say to each other, and nothing else: messages on a SOCK_SEQPACKET
// unix socket (one message a packet, descriptors by SCM_RIGHTS) and the launch program with its operation type.
//
// Both ends are always on one machine and may be of different versions, so a message is encoded field by field; a
// receiver that finds bytes left over, or too few, refuses the message. Hello comes first and carries Version.
//
// Neighbours: keeper executes, keeper/client speaks for the daemon, launch writes the programs.
package proto
