// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"crishim.dev/config"
	"crishim.dev/server"
)

func serveCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: "Run the daemon until SIGTERM or SIGINT. Containers run on without it; the next daemon finds them again.\n" +
			"With NOTIFY_SOCKET set, readiness is reported once everything of before has been recovered.",
		Example: "  shim serve\n  shim serve --config /etc/shim/config.toml --state /run/shim",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			log := logger(c.ErrOrStderr(), cfg.Log)
			// The streaming library logs through klog.
			klog.SetLogger(logr.FromSlogHandler(log.With("from", "streaming").Handler()))
			return serve(c.Context(), cfg, log)
		},
	}
}

// serve runs the daemon until ctx is done or a socket fails.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger) (err error) {
	if cfg.Keeper, err = keeperPath(cfg); err != nil {
		return err
	}
	// The sockets come first: they are what keeps a second daemon from touching the state. Callers wait in their backlogs.
	criSocket, err := server.Listen(ctx, cfg.Socket)
	if err != nil {
		return err
	}
	defer closing(&err, criSocket)
	adminSocket, err := server.Listen(ctx, cfg.AdminSocketPath())
	if err != nil {
		return err
	}
	defer closing(&err, adminSocket)

	n, err := build(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer closing(&err, n)
	n.cri.Info = func() map[string]string { return map[string]string{"config": printed(cfg)} }
	criServer, adminServer := server.New(n.cri), server.NewAdmin(n.admin)
	failed := make(chan error, 2)
	go func() { failed <- criServer.Serve(criSocket) }()
	go func() { failed <- adminServer.Serve(adminSocket) }()
	if err := server.NotifyReady(); err != nil {
		log.Warn("service manager not notified", "err", err)
	}
	log.Info("ready", "version", version, "socket", cfg.Socket)
	select {
	case <-ctx.Done():
		log.Info("stopping; containers run on")
	case err = <-failed:
	}
	if e := server.NotifyStopping(); e != nil {
		log.Warn("service manager not notified", "err", e)
	}
	criServer.Stop()
	adminServer.Stop()
	return err
}

// closing closes c and joins its error to *err. A listener that its server has closed already is no error.
func closing(err *error, c io.Closer) {
	if e := c.Close(); e != nil && !errors.Is(e, os.ErrClosed) && !strings.Contains(e.Error(), "use of closed network connection") {
		*err = errors.Join(*err, e)
	}
}

// printed is the configuration in force as a JSON string of TOML; it has no secrets.
func printed(cfg config.Config) string {
	var b strings.Builder
	if err := config.Print(&b, cfg); err != nil {
		return "null"
	}
	text, err := json.Marshal(b.String())
	if err != nil {
		return "null"
	}
	return string(text)
}

func logger(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	// Validated with the configuration.
	_ = level.UnmarshalText([]byte(c.Level))
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// keeperPath finds the keeper's binary: as configured, beside our own, or in PATH.
func keeperPath(cfg config.Config) (string, error) {
	if cfg.Keeper != "" {
		return cfg.Keeper, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "shim-keeper")
		if fi, err := os.Stat(beside); err == nil && fi.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath("shim-keeper")
	if err != nil {
		return "", fmt.Errorf("find shim-keeper: neither beside the shim binary nor in PATH (set keeper in the configuration): %w", err)
	}
	return path, nil
}
