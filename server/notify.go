// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// NotifyReady tells the service manager, if one waits, that calls are answered: see sd_notify(3). It belongs after
// recovery, not after Listen.
func NotifyReady() error { return notify(os.Getenv("NOTIFY_SOCKET"), "READY=1") }

// NotifyStopping tells the service manager that the daemon is about to end.
func NotifyStopping() error { return notify(os.Getenv("NOTIFY_SOCKET"), "STOPPING=1") }

func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	// A leading @ names an abstract socket, for Go as for systemd.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	if _, err = c.Write([]byte(state)); err != nil {
		err = fmt.Errorf("notify service manager: %w", err)
	}
	return errors.Join(err, c.Close())
}
