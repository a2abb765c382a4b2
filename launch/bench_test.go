// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/launch"
)

func BenchmarkContainer(b *testing.B) {
	d, f := minimal(), v1Facts()
	for b.Loop() {
		p, err := launch.Container(&d, f)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Program.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLaunch is a container from the fork to its exit, with the start of the test keeper around it.
func BenchmarkLaunch(b *testing.B) {
	needRoot(b)
	for b.Loop() {
		c := newBox(b, "")
		c.Args = []string{"true"}
		r := start(b, c.plan(b), c.list.Files, [3]*os.File{nil, os.Stdout, os.Stderr})
		if ws := r.wait(b); ws != unix.WaitStatus(0) {
			b.Fatal(ws)
		}
		r.end()
	}
}
