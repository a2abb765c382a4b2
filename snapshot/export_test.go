// SPDX-License-Identifier: Apache-2.0

package snapshot

import "time"

// ForceWorker makes the store act as on a kernel without lowerdir+.
func (s *Store) ForceWorker() { s.mounter.probe.lowerPlus.Store(no) }

// HoldWalks keeps walks of writable layers from going on until release.
func (s *Store) HoldWalks() (release func()) {
	s.usage.walk.Lock()
	return s.usage.walk.Unlock
}

// Outdate makes the last reading of a writable layer an old one.
func (s *Store) Outdate(id string) {
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	s.usage.last[id].At = time.Unix(1, 0)
}
