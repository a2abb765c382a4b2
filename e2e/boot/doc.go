// SPDX-License-Identifier: Apache-2.0

// Package boot holds the black-box tests of the daemon's own start: its configuration, readiness, a node without a network
// configuration, and what is listed after a reboot. Each brings up a node of its own, one after the other.
package boot
