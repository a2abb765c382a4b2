// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Another process that swaps a directory of the layer for a link to the outside, again and again, leads nothing there.
func TestRaceWithLinks(t *testing.T) {
	needRoot(t)
	if root := os.Getenv("CRISHIM_SWAP"); root != "" {
		swapUntilEOF(root)
		return
	}
	outside, root := t.TempDir(), filepath.Join(t.TempDir(), "fs")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Chmod(outside, 0o700), os.Symlink(outside, root+"-link")); err != nil {
		t.Fatal(err)
	}
	entries := make([]e, 0, 4000)
	for i := range 1000 {
		entries = append(entries, dir("d", 0o777), file(fmt.Sprint("d/", i%10), "x"), file(fmt.Sprint("d/.wh.", i), ""), link(fmt.Sprint("l", i), fmt.Sprint("d/", i%10)))
	}
	b := archive(t, entries...)
	stop := startSwapping(t, root)
	for range 4 { // most are refused half way, because what was made is not there any more
		_, _ = Unpack(t.Context(), openDir(t, root), bytes.NewReader(b), Options{})
	}
	if swaps := stop(); swaps < 20 {
		t.Errorf("only %d swaps: the race was not on", swaps)
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("%d files outside", len(left))
	}
	if st := stat(t, outside); st.Mode&0o777 != 0o700 {
		t.Errorf("the mode of a directory outside was changed to %o", st.Mode)
	}
}

// startSwapping starts the other process. The function it returns ends it and gives the number of its swaps.
func startSwapping(t *testing.T, root string) (stop func() int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRaceWithLinks$")
	cmd.Env = append(os.Environ(), "CRISHIM_SWAP="+root)
	end, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	count, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := count.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	return func() int {
		_ = end.Close()
		said, err := io.ReadAll(count)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			t.Fatal(err)
		}
		swaps, err := strconv.Atoi(string(said))
		if err != nil {
			t.Fatal(err)
		}
		return swaps
	}
}

// swapUntilEOF is what the other process does, until its standard input ends.
func swapUntilEOF(root string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	fmt.Fprint(os.Stderr, " ")
	for swaps := 0; ; {
		select {
		case <-done:
			fmt.Fprint(os.Stderr, swaps)
			return
		default:
		}
		if unix.Renameat2(unix.AT_FDCWD, root+"/d", unix.AT_FDCWD, root+"-link", unix.RENAME_EXCHANGE) == nil {
			swaps++
		}
	}
}
