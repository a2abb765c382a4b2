// SPDX-License-Identifier: Apache-2.0

package untar_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// model is a file tree in memory to which archives are applied in order, as tar would on a plain directory, with whiteouts as the OCI
// image specification has them. It shares no code with Unpack.
type model struct {
	root  *inode
	layer int
}

type inode struct {
	typ        byte
	mode       int64
	uid, gid   int
	mtime      time.Time // zero: whatever
	body       string
	link       string
	major      int64
	minor      int64
	xattrs     map[string]string
	children   map[string]*dirent // of a directory
	unmodified bool               // made without an entry: its times are open
}

type dirent struct {
	node *inode
	// born is the last layer that had an entry for it, or, of a directory, for something in it.
	born int
}

func newModel() *model {
	return &model{root: &inode{typ: tar.TypeDir, mode: 0o755, children: map[string]*dirent{}, unmodified: true}}
}

var errModel = errors.New("not possible")

func parts(name string) []string {
	return slices.DeleteFunc(strings.Split(name, "/"), func(s string) bool { return s == "" || s == "." })
}

// dir finds or makes a directory, through symbolic links.
func (m *model) dir(name string) (*inode, error) {
	stack := []*inode{m.root}
	rest := parts(name)
	for links := 0; len(rest) > 0; {
		p := rest[0]
		rest = rest[1:]
		at := stack[len(stack)-1]
		if p == ".." {
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		d := at.children[p]
		if d == nil {
			d = &dirent{&inode{typ: tar.TypeDir, mode: 0o755, children: map[string]*dirent{}, unmodified: true}, m.layer}
			at.children[p] = d
		}
		switch d.node.typ {
		case tar.TypeDir:
			d.born = m.layer
			stack = append(stack, d.node)
		case tar.TypeSymlink:
			if links++; links > 40 {
				return nil, errModel
			}
			if strings.HasPrefix(d.node.link, "/") {
				stack = stack[:1]
			}
			rest = append(parts(d.node.link), rest...)
		default:
			return nil, errModel
		}
	}
	return stack[len(stack)-1], nil
}

// clone copies the tree, hard links included.
func (m *model) clone() *model {
	copies := map[*inode]*inode{}
	var walk func(n *inode) *inode
	walk = func(n *inode) *inode {
		if c := copies[n]; c != nil {
			return c
		}
		c := *n
		copies[n] = &c
		if n.children != nil {
			c.children = map[string]*dirent{}
			for name, d := range n.children {
				c.children[name] = &dirent{walk(d.node), d.born}
			}
		}
		return &c
	}
	return &model{walk(m.root), m.layer}
}

// try applies an entry, or leaves the tree as it was.
func (m *model) try(h *tar.Header, body string) error {
	next := m.clone()
	if err := next.apply(h, body); err != nil {
		return err
	}
	*m = *next
	return nil
}

func (m *model) apply(h *tar.Header, body string) error {
	all := parts(h.Name)
	if len(all) == 0 {
		m.dress(m.root, h)
		return nil
	}
	base := all[len(all)-1]
	parent, err := m.dir(strings.Join(all[:len(all)-1], "/"))
	if err != nil {
		return err
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		d := parent.children[hidden]
		switch {
		case hidden == ".wh..opq":
			m.hideChildren(parent)
		case d == nil:
			return errModel // tools make whiteouts of what is there; overlayfs lists others as broken files
		case m.hide(d):
			delete(parent.children, hidden)
		}
		return nil
	}
	old := parent.children[base]
	if h.Typeflag == tar.TypeLink {
		target := parts(h.Linkname)
		from, err := m.dir(strings.Join(target[:len(target)-1], "/"))
		if err != nil {
			return err
		}
		d := from.children[target[len(target)-1]]
		if d == nil || d.node.typ == tar.TypeDir || old != nil && old.node.has(from) {
			return errModel
		}
		parent.children[base] = &dirent{d.node, m.layer}
		return nil
	}
	if h.Typeflag == tar.TypeDir && old != nil && old.node.typ == tar.TypeDir {
		old.born = m.layer
		m.dress(old.node, h)
		return nil
	}
	n := &inode{typ: h.Typeflag, body: body, link: h.Linkname, major: h.Devmajor, minor: h.Devminor}
	if h.Typeflag == tar.TypeDir {
		n.children = map[string]*dirent{}
	}
	m.dress(n, h)
	parent.children[base] = &dirent{n, m.layer}
	return nil
}

// has says that a directory is, or holds, another: what replaces it takes the other away.
func (n *inode) has(other *inode) bool {
	if n == other {
		return true
	}
	for _, d := range n.children {
		if d.node.has(other) {
			return true
		}
	}
	return false
}

func (m *model) dress(n *inode, h *tar.Header) {
	n.mode, n.uid, n.gid, n.mtime, n.unmodified = h.Mode, h.Uid, h.Gid, h.ModTime, false
	n.xattrs = map[string]string{}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			n.xattrs[name] = v
		}
	}
}

// hide takes away what lower layers have and says whether nothing of this one remains.
func (m *model) hide(d *dirent) bool {
	if d.node.typ == tar.TypeDir {
		m.hideChildren(d.node)
		return d.born != m.layer && len(d.node.children) == 0
	}
	return d.born != m.layer
}

func (m *model) hideChildren(n *inode) {
	for name, d := range n.children {
		if m.hide(d) {
			delete(n.children, name)
		}
	}
}

// paths lists everything, sorted, by name.
func (m *model) paths() map[string]*inode {
	out := map[string]*inode{}
	var walk func(prefix string, n *inode)
	walk = func(prefix string, n *inode) {
		out[prefix] = n
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			walk(prefix+"/"+name, n.children[name].node)
		}
	}
	walk("", m.root)
	return out
}

func (n *inode) String() string {
	return fmt.Sprintf("type %c mode %o owner %d:%d body %q link %q dev %d:%d xattrs %v", n.typ, n.mode, n.uid, n.gid, n.body, n.link, n.major, n.minor, n.xattrs)
}
