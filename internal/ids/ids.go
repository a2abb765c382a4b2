// SPDX-License-Identifier: Apache-2.0

// Package ids makes the ids of pods and containers, and finds an object by its id or by the beginning of it.
package ids

import (
	"crypto/rand"
	"encoding/hex"
	"strings"

	"crishim.dev/internal/errs"
)

// New is a random id: 64 hexadecimal digits.
func New() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it never fails, the process would rather end
	return hex.EncodeToString(b[:])
}

// Find gives the object with an id, or the only one whose id begins so, of those that are listed. Without one the error is
// errs.NotFound, with several errs.Invalid; kind is what it calls the object.
func Find[K ~string, V any](all map[K]V, id, kind string, listed func(V) bool) (found V, err error) {
	if v, ok := all[K(id)]; ok && listed(v) {
		return v, nil
	}
	matches := 0
	for full, v := range all {
		if id != "" && strings.HasPrefix(string(full), id) && listed(v) {
			found = v
			matches++
		}
	}
	var none V
	switch matches {
	case 0:
		return none, errs.Newf(errs.NotFound, "find %s %q: no such %s", kind, id, kind)
	case 1:
		return found, nil
	default:
		return none, errs.Newf(errs.Invalid, "find %s %s: several ids begin so", kind, id)
	}
}
