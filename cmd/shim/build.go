// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"

	"crishim.dev/config"
	"crishim.dev/internal/errs"
	"crishim.dev/server"
)

// node is everything behind the sockets.
type node struct {
	cri   server.Options
	admin server.AdminOptions
	// closers undo build, to be run backwards.
	closers []func() error
}

// Close lets go of everything; containers run on.
func (n *node) Close() error {
	var all []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		all = append(all, n.closers[i]())
	}
	return errors.Join(all...)
}

// build makes every object of the daemon and brings back the state of before. When it returns, calls can be answered.
func build(_ context.Context, _ config.Config, _ *slog.Logger) (*node, error) {
	return nil, errs.Newf(errs.Unsupported, "build node: the managers are not wired yet")
}
