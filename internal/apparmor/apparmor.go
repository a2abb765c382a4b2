// SPDX-License-Identifier: Apache-2.0

// Package apparmor knows which AppArmor profiles the kernel has, and brings in the one that containers get by default.
//
// The kernel takes profiles in compiled form only, so that apparmor_parser, which every distribution with AppArmor has, is run
// once for the default one. Which container gets which profile is container's business, to set it launch's.
package apparmor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	_ "embed"

	"crishim.dev/internal/errs"
)

// Default is the name of the profile for containers that ask for RuntimeDefault.
const Default = "crishim-default"

//go:embed default.profile
var source string

// list is where the kernel lists what is loaded.
const list = "/sys/kernel/security/apparmor/profiles"

// parserLimit bounds a run of apparmor_parser.
const parserLimit = 30 * time.Second

// Loaded says whether the kernel has a profile of this name.
func Loaded(name string) (bool, error) {
	f, err := os.Open(list)
	if err != nil {
		return false, errs.As(errs.Unsupported, fmt.Errorf("list AppArmor profiles: %w", err))
	}
	defer f.Close()
	return listed(f, name)
}

// listed looks for a line "name (mode)".
func listed(r io.Reader, name string) (bool, error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		if i := strings.LastIndex(s.Text(), " ("); i >= 0 && s.Text()[:i] == name {
			return true, nil
		}
	}
	return false, s.Err()
}

// LoadDefault brings the default profile into the kernel, in the place of one of its name. errs.Unsupported when there is no parser.
func LoadDefault(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, parserLimit)
	defer cancel()
	// No cache is read or written: the profile comes from this program, not from a file.
	cmd := exec.CommandContext(ctx, "apparmor_parser", "--replace", "--skip-cache", "--quiet")
	cmd.Stdin = strings.NewReader(source)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return errs.As(errs.Unsupported, fmt.Errorf("load AppArmor profile %s: %w", Default, err))
	case err != nil:
		return fmt.Errorf("load AppArmor profile %s: %w: %s", Default, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}
