// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Descriptors that every keeper process has from its start, at fixed numbers: they go from image to image by execve and
// from the elder to the younger by fork, so no message has to name them. All are open at all times, with something else where there is
// nothing to hold: so no other descriptor ever gets one of these numbers.
const (
	fdDir      = 3 // the directory of sockets, FIFOs, spools and exit records, opened in the host's mount namespace
	fdLock     = 4 // its lock file; the lock lives as long as one of the pair does
	fdListener = 5
	fdImage    = 6 // the sealed memfd with this binary
	fdState    = 7 // the shared state table
	fdPair     = 8 // the socket pair between elder and younger
	fdHandover = 9 // only right after execve: what the image before left
)

// Names in the directory. None is a valid process id.
const (
	lockName   = ".lock"
	stateName  = ".state"
	socketName = "keeper.sock"
)

// logger writes lines to standard error. The keeper has little to say: what went wrong with itself.
type logger struct{ who string }

func (l logger) say(parts ...string) {
	var line strings.Builder
	line.WriteString("shim-keeper " + l.who + ": ")
	for _, p := range parts {
		line.WriteString(p)
	}
	unix.Write(2, []byte(line.String()+"\n")) //nolint:errcheck // there is nobody else to tell
}

// failed is say for an error; nil says nothing.
func (l logger) failed(what string, err error) {
	if err != nil {
		l.say(what, ": ", err.Error())
	}
}
