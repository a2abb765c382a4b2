// SPDX-License-Identifier: Apache-2.0

// Command probe is the one static program inside the test images. By the name it is called (a hard link) or by its first
// argument it stands in for nginx, httpd, wget, pgrep, ipcs and a setuid program, tells what a container's process sees,
// and misbehaves in the ways a runtime must survive. It depends on the standard library and the kernel only.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// commands are what the program can be, by name.
func commands() map[string]func(args []string) error {
	return map[string]func([]string) error{
		"nginx":      nginx,
		"httpd":      httpd,
		"http":       serveHTTP,
		"wget":       wget,
		"get":        wget,
		"pgrep":      pgrep,
		"ipcs":       ipcs,
		"nnp":        effectiveUID,
		"env":        environ,
		"args":       arguments,
		"fds":        descriptors,
		"cat":        cat,
		"eat":        eat,
		"lines":      lines,
		"both":       both,
		"ignore":     ignore,
		"signals":    signals,
		"grandchild": grandchild,
		"zombies":    zombies,
		"exit":       exit,
		"die":        die,
		"hang":       hang,
		"pause":      hang,
		"mount":      mountAt,
		"keyring":    keyring,
		"session":    session,
		"stdout":     openStdout,
		"spin":       spin,
		"escape":     escape,
		"undo":       undo,
		"echo":       echo,
	}
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == "probe" || name == "exe" {
		if len(args) == 0 {
			fmt.Fprintln(os.Stderr, "usage: probe", strings.Join(names(), "|"))
			os.Exit(2)
		}
		name, args = args[0], args[1:]
	}
	if strings.HasPrefix(name, "nginx:") {
		name = "nginx"
	}
	run, ok := commands()[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "probe: no command %q\n", name)
		os.Exit(2)
	}
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func names() []string {
	var out []string
	for n := range commands() {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}
