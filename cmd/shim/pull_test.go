// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"crishim.dev/proto/admin"
)

func half(since time.Time) *admin.Pull {
	return &admin.Pull{Reference: "docker.io/library/app:v", Since: since.UnixNano(), Layers: []*admin.PullLayer{
		{Digest: "sha256:aaaaaaaaaaaaaaaa", Size: 1 << 20, Done: true},
		{Digest: "sha256:bbbbbbbbbbbbbbbb", Size: 4 << 20, Fetched: 2 << 20},
		{Digest: "sha256:cccccccccccccccc", Size: 1 << 20},
	}}
}

func TestMeter(t *testing.T) {
	now := time.Now()
	var out bytes.Buffer
	m := newMeter(&out)
	for range 2 {
		m.draw(half(now.Add(-3*time.Second)), now)
	}
	m.draw(&admin.Pull{Reference: "x", Since: now.UnixNano()}, now)
	m.clear()
	if got, want := out.String(), "docker.io/library/app:v: 1 of 3 layers, 3.0 MiB of 6.0 MiB after 3s\nx: looking for the image after 0s\n"; got != want {
		t.Errorf("lines %q, want %q", got, want)
	}
	out.Reset()
	m.width = 60
	m.draw(half(now.Add(-3*time.Second)), now)
	m.draw(half(now.Add(-3*time.Second)), now)
	m.clear()
	one := "bbbbbbbbbbbb [" + strings.Repeat("=", 10) + strings.Repeat(" ", 11) + "]   2.0 MiB of   4.0 MiB\n1 of 3 layers, 3.0 MiB of 6.0 MiB, 1.0 MiB/s\n"
	const up = "\x1b[2A\x1b[J"
	if got, want := out.String(), one+up+one+up; got != want {
		t.Errorf("bars %q, want %q", got, want)
	}
}

func TestPullsCommand(t *testing.T) {
	d := newDaemon()
	flags := start(t, d)
	d.admin.pulls = []*admin.Pull{half(time.Now().Add(-72 * time.Hour))}
	got, err := run(t, "", append([]string{"image", "pulls"}, flags...)...)
	want := "IMAGE                    LAYERS  FETCHED  SIZE     SINCE\ndocker.io/library/app:v  1/3     3.0 MiB  6.0 MiB  3d\n"
	if err != nil || got != want {
		t.Errorf("%v %q, want %q", err, got, want)
	}
}
