// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/image/registry"
	"crishim.dev/proto/admin"
)

func pullCommand(f *flags) *cobra.Command {
	var user string
	var quiet bool
	c := &cobra.Command{
		Use:     "pull IMAGE",
		Short:   "Fetch an image and print its id; how far it is goes to standard error",
		Example: "  shim image pull docker.io/library/busybox:1.36\n  shim image pull --user joe registry.example/web:1 < password",
		Args:    cobra.ExactArgs(1),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			auth, err := credentials(user, c.InOrStdin())
			if err != nil {
				return err
			}
			show := func() {}
			if ref, err := registry.Parse(args[0]); err == nil && !quiet {
				show = showProgress(c.Context(), to.admin, ref.String(), newMeter(c.ErrOrStderr()))
			}
			resp, err := to.images.PullImage(c.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: args[0]}, Auth: auth})
			show()
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), resp.ImageRef)
			return nil
		}),
	}
	c.Flags().StringVar(&user, "user", "", "name at the registry; the password is read from standard input, so that no process list shows it")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show how far it is")
	return c
}

func credentials(user string, in io.Reader) (*cri.AuthConfig, error) {
	if user == "" {
		return nil, nil
	}
	password, err := io.ReadAll(io.LimitReader(in, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	return &cri.AuthConfig{Username: user, Password: strings.TrimRight(string(password), "\r\n")}, nil
}

func pullsCommand(f *flags) *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:     "pulls",
		Short:   "Show the pulls under way, whoever asked for them, and how far each is",
		Example: "  shim image pulls\n  shim image pulls -o json",
		Args:    cobra.NoArgs,
		RunE: f.with(func(c *cobra.Command, _ []string, to *client) error {
			resp, err := to.admin.Pulls(c.Context(), &admin.PullsRequest{})
			if err != nil {
				return err
			}
			now := time.Now()
			return o.print(c.OutOrStdout(), messages(resp.Pulls), "IMAGE\tLAYERS\tFETCHED\tSIZE\tSINCE", func(w io.Writer) {
				for _, p := range resp.Pulls {
					done, fetched, total := sum(p)
					fmt.Fprintf(w, "%s\t%d/%d\t%s\t%s\t%s\n", p.Reference, done, len(p.Layers), size(fetched), size(total), age(p.Since, now))
				}
			})
		}),
	}
	o.flag(c)
	return c
}

// sum adds up a pull's layers: how many are done, and the bytes of all. What was on disk before counts as fetched.
func sum(p *admin.Pull) (done int, fetched, total uint64) {
	for _, l := range p.Layers {
		total += uint64(l.Size)
		if l.Done {
			done++
			fetched += uint64(l.Size)
		} else {
			fetched += uint64(l.Fetched)
		}
	}
	return done, fetched, total
}

// showProgress draws how far the pull of ref is until the function that it returns is called.
func showProgress(ctx context.Context, from admin.AdminClient, ref string, m *meter) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(m.every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				m.clear()
				return
			case now := <-tick.C:
				resp, err := from.Pulls(ctx, &admin.PullsRequest{})
				if err != nil {
					continue // the pull itself says what is wrong
				}
				for _, p := range resp.Pulls {
					if p.Reference == ref {
						m.draw(p, now)
					}
				}
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// meter draws a pull's progress: bars on a terminal, elsewhere a line now and then.
type meter struct {
	w     io.Writer
	width int // of the terminal; 0: it is none
	every time.Duration
	lines int // drawn, to be drawn over
	last  string
}

func newMeter(w io.Writer) *meter {
	m := &meter{w: w, every: 5 * time.Second}
	if f, ok := w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			m.width, m.every = max(int(size.Col), 40), 200*time.Millisecond
		}
	}
	return m
}

// draw draws the state at a moment.
func (m *meter) draw(p *admin.Pull, now time.Time) {
	done, fetched, total := sum(p)
	line := fmt.Sprintf("%d of %d layers, %s of %s", done, len(p.Layers), size(fetched), size(total))
	if len(p.Layers) == 0 {
		line = "looking for the image"
	}
	if m.width == 0 {
		if line != m.last { // a pull that hangs says so once
			fmt.Fprintf(m.w, "%s: %s after %s\n", p.Reference, line, age(p.Since, now))
		}
		m.last = line
		return
	}
	m.clear()
	for _, l := range p.Layers {
		if l.Done || l.Fetched == 0 {
			continue
		}
		text := fmt.Sprintf(" %9s of %9s", size(uint64(l.Fetched)), size(uint64(l.Size)))
		fmt.Fprintf(m.w, "%s %s%s\n", short(l.Digest), bar(m.width-len(text)-14, l.Fetched, l.Size), text)
		m.lines++
	}
	if elapsed := now.Sub(time.Unix(0, p.Since)).Seconds(); elapsed > 1 && fetched > 0 {
		line += fmt.Sprintf(", %s/s", size(uint64(float64(fetched)/elapsed)))
	}
	fmt.Fprintln(m.w, line)
	m.lines++
}

// clear removes what was drawn from the terminal.
func (m *meter) clear() {
	if m.lines > 0 {
		fmt.Fprintf(m.w, "\x1b[%dA\x1b[J", m.lines)
		m.lines = 0
	}
}

// bar draws n of total in width characters.
func bar(width int, n, total int64) string {
	inner := max(width-2, 1)
	full := inner
	if total > 0 {
		full = int(min(n*int64(inner)/total, int64(inner)))
	}
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", inner-full) + "]"
}
