// SPDX-License-Identifier: Apache-2.0

// Package sys is what the keeper needs of the packages that it does without: errors that name their step (fmt), small files and
// processes (os), packets with descriptors (net), waiting for descriptors without goroutines (the runtime's own poller), signals
// and memory given back. With os alone would come a third of the binary, goroutines, and a raised RLIMIT_NOFILE.
//
// It knows nothing of what a keeper does. Only the keeper's packages use it.
package sys
