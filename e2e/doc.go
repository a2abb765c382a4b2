// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the black-box tests: a node of their own, the CRI socket, crictl, and the kernel as judge.
//
// TestKubeletNN_… are the points of KUBELET.md by number; the others follow the CRI service's subjects. The tests
// run in parallel on one node, each on its own pods; those that end daemons and keepers are in e2e/restart. The node must
// be as it was when all have run.
package e2e
