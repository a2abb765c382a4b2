// SPDX-License-Identifier: Apache-2.0

// Command shim is the daemon ("shim serve") and the administrator's view of it.
//
// serve.go runs the daemon and build.go makes every object of it by hand, on one screen. The other commands are clients:
// of the CRI socket where CRI has an answer, else of the admin socket.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"crishim.dev/config"
)

// version is set at link time; see Makefile.
var version = "v0.0.0-dev"

func main() {
	if typ, ok := asPlugin(os.Args[0]); ok {
		os.Exit(runPlugin(&flags{config: config.DefaultPath, set: func(string) bool { return false }}, typ))
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, os.Interrupt)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "shim:", err)
		os.Exit(1)
	}
}

// flags are those that all commands have. Those that are set override the configuration files.
type flags struct {
	config, socket, root, state, keeper string
	set                                 func(name string) bool
}

func command() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:           "shim",
		Short:         "A container runtime for Kubernetes",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	p := c.PersistentFlags()
	p.StringVar(&f.config, "config", config.DefaultPath, "configuration file; *.toml in config.d beside it are read too")
	p.StringVar(&f.socket, "socket", "", "unix socket of the CRI service")
	p.StringVar(&f.root, "root", "", "directory of the persistent state")
	p.StringVar(&f.state, "state", "", "directory of this boot's state")
	p.StringVar(&f.keeper, "keeper", "", "the shim-keeper binary")
	f.set = p.Changed
	c.AddCommand(serveCommand(&f), configCommand(&f), versionCommand(&f), imageCommand(&f), psCommand(&f), inspectCommand(&f),
		planCommand(&f), explainPullCommand(&f), whyCommand(&f), checkCommand(&f), statsCommand(&f), eventsCommand(&f), cniCommand(&f))
	return c
}

// load is the configuration: defaults, files, flags.
func (f *flags) load() (config.Config, error) {
	c, err := config.Load(f.config, f.set("config"))
	if err != nil {
		return c, err
	}
	for _, o := range []struct {
		flag  string
		value string
		to    *string
	}{{"socket", f.socket, &c.Socket}, {"root", f.root, &c.Root}, {"state", f.state, &c.State}, {"keeper", f.keeper, &c.Keeper}} {
		if f.set(o.flag) {
			*o.to = o.value
		}
	}
	return c, c.Validate()
}

func configCommand(f *flags) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show the configuration"}
	c.AddCommand(&cobra.Command{
		Use:     "default",
		Short:   "Print the defaults, with what each key means",
		Example: "  shim config default > /etc/shim/config.toml",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return config.Print(c.OutOrStdout(), config.Default()) },
	}, &cobra.Command{
		Use:     "show",
		Short:   "Print the configuration in force: defaults, files and flags",
		Example: "  shim config show\n  shim config show --config ./config.toml --root /srv/shim",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			return config.Print(c.OutOrStdout(), cfg)
		},
	})
	return c
}
