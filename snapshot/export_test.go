// SPDX-License-Identifier: Apache-2.0

package snapshot

// ForceWorker makes the store act as on a kernel without lowerdir+.
func (s *Store) ForceWorker() { s.mounter.probe.lowerPlus.Store(no) }
