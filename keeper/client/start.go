// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"crishim.dev/internal/errs"
	"crishim.dev/proto"
)

// SocketName is the keeper's socket in its directory.
const SocketName = "keeper.sock"

// Start starts the keeper pair from the shim-keeper binary on dir, a directory on tmpfs that only root may enter, and returns when its
// socket is there. It is harmless when a pair runs on dir. The pair is in a session of its own and writes its few complaints to this
// process's standard error.
func Start(binary, dir string) error {
	cmd := exec.Command(binary, "-d", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start keeper %s on %s: %w", binary, dir, err)
	}
	return nil
}

// Upgrade makes the running pair go over to another binary. What it keeps goes on; it returns when the new one answers.
func (c *Client) Upgrade(ctx context.Context, binary string) error {
	out, err := exec.CommandContext(ctx, binary, "version").Output()
	if err != nil {
		return errs.Newf(errs.Precondition, "upgrade keeper: run %s: %w", binary, err)
	}
	want := strings.TrimSpace(string(bytes.TrimSuffix(out, []byte("\n"))))
	f, err := os.Open(binary)
	if err != nil {
		return fmt.Errorf("upgrade keeper: %w", err)
	}
	defer f.Close()
	// Who answers goes over next: its connection ends with it. An earlier one may have ended while the request was under way.
	r, err := c.ask(ctx, &proto.Upgrade{}, f)
	if err != nil {
		return fmt.Errorf("upgrade keeper: %w", err)
	}
	select {
	case <-r.next:
	case <-ctx.Done():
		return fmt.Errorf("upgrade keeper: wait for the new one: %w", context.Cause(ctx))
	}
	if got := c.Build(); got != want {
		return errs.Newf(errs.Unavailable, "upgrade keeper: %q answers, not %q", got, want)
	}
	return nil
}
