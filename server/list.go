// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"

	"google.golang.org/protobuf/proto"
)

// pieceSize is about how large one message of a streamed list is, well under what any client takes.
const pieceSize = 1 << 20

// inPieces sends items in order in as few messages of about pieceSize as it can; none when there are none.
func inPieces[T proto.Message](items []T, send func([]T) error) error {
	for start := 0; start < len(items); {
		end, size := start, 0
		for end < len(items) && (end == start || size < pieceSize) {
			size += proto.Size(items[end])
			end++
		}
		if err := send(items[start:end]); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// matchesID says whether id is the filter's or begins with it; an empty filter matches all.
func matchesID(id, filter string) bool { return strings.HasPrefix(id, filter) }

// matchesLabels says whether labels has every pair of the selector.
func matchesLabels(labels, selector map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
