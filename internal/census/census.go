// SPDX-License-Identifier: Apache-2.0

// Package census takes stock of a node's kernel objects, so that a test can show that nothing is left behind: mounts, network
// namespaces, links, addresses, routes, rules and nftables objects, control groups, processes, open descriptors, files.
//
// It reads /proc, netlink and the file systems itself and shares no code with the runtime, whose mistakes it is there to find.
// It is part of the test kit and is linked into no program.
//
//	before, err := census.Take(o)
//	… the test …
//	for _, line := range census.Settle(ctx, before, o) { t.Error(line) }
//
// An object is a line of text that says all that is compared (a link's name, kind, master, MTU); what may change without
// anything being left behind (an index, a holder) is a note that is only printed.
package census

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Options say what to look at. The zero value looks at nothing.
type Options struct {
	// MountsOf are processes by a name for messages; their mount tables are listed. 0 is the caller.
	MountsOf map[string]int
	// NetNamespaces lists every network namespace of the machine that a process, an open file or a mount in any mount
	// namespace holds. One held by a socket alone is not seen.
	NetNamespaces bool
	// Net lists links, addresses, routes, rules and nftables objects of NetNS (a path such as /proc/1/ns/net or a pin);
	// "" is the calling thread's namespace.
	Net   bool
	NetNS string
	// Cgroups are directories below which control groups are listed, themselves included, as filepath.Glob patterns:
	// "/sys/fs/cgroup/*/mynode".
	Cgroups []string
	// Descendants are pids whose descendants are listed, themselves excluded.
	Descendants []int
	// InCgroups lists the processes in these groups and below, as in /proc/PID/cgroup ("/mynode"), of any hierarchy.
	InCgroups []string
	// InNamespaces lists the processes with one of these namespaces, named as /proc/PID/ns links are ("pid:[4026531836]").
	InNamespaces []string
	// FDsOf are processes by name; their open descriptors are counted by what they refer to.
	FDsOf map[string]int
	// Dirs are directories whose files are listed, without crossing into other file systems.
	Dirs []string
	// Ignore drops what it says true to. kind is the word that Diff prints first ("mount", "file", …).
	Ignore func(kind, object string) bool
}

// Census is what Take found. Not changed after Take. The zero Census is empty.
type Census struct{ objects map[key]*object }

type key struct{ kind, name string }

type object struct {
	n     int
	notes []string
}

// taker collects objects.
type taker struct {
	Options
	c *Census
}

func (t *taker) add(kind, name, note string) {
	if t.Ignore != nil && t.Ignore(kind, name) {
		return
	}
	k := key{kind, name}
	o := t.c.objects[k]
	if o == nil {
		o = &object{}
		t.c.objects[k] = o
	}
	o.n++
	if note != "" && len(o.notes) < 8 {
		o.notes = append(o.notes, note)
	}
}

// Take looks at the machine. Objects that vanish while it looks are left out.
func Take(o Options) (*Census, error) {
	t := &taker{Options: o, c: &Census{objects: map[key]*object{}}}
	for _, f := range []func() error{t.mounts, t.netNamespaces, t.network, t.cgroups, t.processes, t.descriptors, t.files} {
		if err := f(); err != nil {
			return nil, fmt.Errorf("take census: %w", err)
		}
	}
	return t.c, nil
}

// Diff says what after has more ("+ …") and less ("- …") than before, sorted; nothing if they are the same.
func Diff(before, after *Census) []string {
	all := map[key]*object{}
	maps.Copy(all, before.objects)
	maps.Copy(all, after.objects)
	var lines []string
	for k := range all {
		b, a := before.objects[k], after.objects[k]
		n := count(a) - count(b)
		if n == 0 {
			continue
		}
		o, sign := a, "+"
		if n < 0 {
			o, sign, n = b, "-", -n
		}
		var line strings.Builder
		fmt.Fprintf(&line, "%s %s %s", sign, k.kind, k.name)
		if n > 1 {
			fmt.Fprintf(&line, " (%d times)", n)
		}
		for _, note := range o.notes {
			line.WriteString(" [" + note + "]")
		}
		lines = append(lines, line.String())
	}
	slices.Sort(lines)
	return lines
}

func count(o *object) int {
	if o == nil {
		return 0
	}
	return o.n
}

// Len is how many objects were found.
func (c *Census) Len() int {
	n := 0
	for _, o := range c.objects {
		n += o.n
	}
	return n
}

// Settle compares the machine with before until there is no difference or ctx ends, and returns the last difference: the kernel
// frees network namespaces and what is in them some time after their last user has gone. An error is a line as well.
func Settle(ctx context.Context, before *Census, o Options) []string {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		after, err := Take(o)
		var lines []string
		if err != nil {
			lines = []string{err.Error()}
		} else if lines = Diff(before, after); len(lines) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return lines
		case <-time.After(wait):
		}
	}
}
