// SPDX-License-Identifier: Apache-2.0

// Package conformance runs critest, the CRI conformance suite, against a node of its own and reports each spec as a test.
// hack/critest runs it by hand, in part, in parallel or several times.
package conformance
