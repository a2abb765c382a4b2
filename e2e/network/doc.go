// SPDX-License-Identifier: Apache-2.0

// Package network tests pods' networks through the socket: on one node with plugins of others, and across several nodes that are joined by
// a cable. Each node is a testnode of its own, in a process of its own; the test holds the other end of the cable.
package network
