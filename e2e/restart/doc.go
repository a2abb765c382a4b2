// SPDX-License-Identifier: Apache-2.0

// Package restart holds the black-box tests that end the daemon, the keepers, and calls in flight: what runs goes on, what
// was written is in the log once and in order, exit codes are known, and nothing is left behind. They run one after the
// other on a node of their own.
package restart
