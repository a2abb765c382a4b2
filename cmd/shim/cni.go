// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"crishim.dev/cni"
	"crishim.dev/config"
)

// networkOptions says where the network has its state: the same for the daemon and for our plugins as processes.
func networkOptions(cfg config.Config) cni.Options {
	return cni.Options{
		ConfDir: cfg.Network.ConfDir, BinDirs: cfg.Network.BinDirs, Builtin: cfg.Network.Builtin,
		CacheDir: filepath.Join(cfg.State, "network", "cache"), StateDir: filepath.Join(cfg.State, "network", "state"),
		LastingDir: filepath.Join(cfg.Root, "network"),
	}
}

// asPlugin says that this process was started by the name of a CNI plugin, through a link that `shim cni install` made.
func asPlugin(program string) (typ string, ok bool) {
	typ = filepath.Base(program)
	return typ, slices.Contains(cni.Types(), typ)
}

// runPlugin serves one call of a CNI plugin and gives the exit status.
func runPlugin(f *flags, typ string) int {
	cfg, err := f.load()
	if err != nil {
		cfg = config.Default() // what is wrong with the file is the daemon's to say
		fmt.Fprintln(os.Stderr, "shim:", err)
	}
	return cni.Plugin(networkOptions(cfg), typ)
}

func cniCommand(f *flags) *cobra.Command {
	c := &cobra.Command{
		Use:   "cni TYPE",
		Short: "Be a CNI plugin: " + strings.Join(cni.Types(), ", "),
		Long: "Be the CNI plugin of that type: read the configuration from standard input and CNI_COMMAND and the other variables of the\n" +
			"specification from the environment. The same happens when the program is started by the plugin's name; \"shim cni install\"\n" +
			"makes such links, for plugins that run others. Addresses and host ports are shared with the daemon.",
		Example:   "  shim cni host-local < net.conf",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: cni.Types(),
		RunE: func(_ *cobra.Command, args []string) error {
			os.Exit(runPlugin(f, args[0]))
			return nil
		},
	}
	var dir string
	install := &cobra.Command{
		Use:     "install",
		Short:   "Link the names of the built-in CNI plugins that the plugin directory lacks to this program",
		Example: "  shim cni install --dir /opt/cni/bin",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			if dir == "" && len(cfg.Network.BinDirs) > 0 {
				dir = cfg.Network.BinDirs[0]
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			made, err := cni.Install(self, dir)
			for _, typ := range made {
				fmt.Fprintln(c.OutOrStdout(), filepath.Join(dir, typ))
			}
			return err
		},
	}
	install.Flags().StringVar(&dir, "dir", "", "where plugins are looked for; by default the first of network.bin_dirs")
	c.AddCommand(install)
	return c
}
