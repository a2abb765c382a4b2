// SPDX-License-Identifier: Apache-2.0

package testimage

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Source is what the images are made from.
type Source struct {
	// Busybox is a static busybox whose shell does not prefer its own applets (hack/busybox).
	Busybox string
	// Probe is the built program of internal/testnode/probe.
	Probe string
	// Arch is the architecture of both, as Go names it.
	Arch string
}

// passwd and group are those of Docker's busybox image where the conformance suite looks.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	group = `root:x:0:
daemon:x:1:
bin:x:2:
adm:x:4:operator
audio:x:29:operator
www-data:x:33:
staff:x:50:
nogroup:x:65534:
`
)

// baseFiles are the tools: busybox and the probe. Every applet is a hard link, so that masking one path hides one applet.
func baseFiles(s Source) ([]File, error) {
	files := []File{
		{Name: "bin/", Dir: true}, {Name: "etc/", Dir: true}, {Name: "home/", Dir: true}, {Name: "lib/", Dir: true},
		{Name: "lib64/", Dir: true}, {Name: "root/", Dir: true, Mode: 0o700}, {Name: "tmp/", Dir: true, Mode: 0o1777},
		{Name: "usr/", Dir: true}, {Name: "usr/bin/", Dir: true}, {Name: "usr/sbin/", Dir: true}, {Name: "var/", Dir: true},
		{Name: "var/run/", Dir: true}, {Name: "var/www/", Dir: true, UID: 33, GID: 33}, {Name: "etc/nginx/", Dir: true},
		{Name: "etc/passwd", Body: []byte(passwd)}, {Name: "etc/group", Body: []byte(group)},
	}
	busybox, err := os.ReadFile(s.Busybox)
	if err != nil {
		return nil, fmt.Errorf("read busybox: %w", err)
	}
	list, err := exec.Command(s.Busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets of busybox: %w", err)
	}
	ours := []string{"wget", "pgrep", "ipcs", "httpd", "busybox", "probe"}
	files = append(files, File{Name: "bin/busybox", Mode: 0o755, Body: busybox})
	for applet := range strings.FieldsSeq(string(list)) {
		if !slices.Contains(ours, applet) && !strings.Contains(applet, "/") {
			files = append(files, File{Name: "bin/" + applet, Mode: 0o755, Link: "bin/busybox"})
		}
	}
	probe, err := os.ReadFile(s.Probe)
	if err != nil {
		return nil, fmt.Errorf("read probe: %w", err)
	}
	files = append(files, File{Name: "bin/probe", Mode: 0o755, Body: probe})
	for _, name := range []string{"bin/wget", "bin/pgrep", "bin/ipcs", "usr/sbin/nginx", "usr/sbin/httpd"} {
		files = append(files, File{Name: name, Mode: 0o755, Link: "bin/probe"})
	}
	return files, nil
}
