// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// TestImageAccounts: whatever an image has as /etc/passwd and /etc/group, a container runs as who was asked for, or is refused. Nothing
// that can't be read makes it root.
func TestImageAccounts(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("web:x:1000:1000::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const passwd, group = "etc/passwd", "etc/group"
	file := func(name, text string) testimage.File { return testimage.File{Name: name, Body: []byte(text)} }
	web := func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "web" }
	number := func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1000} }
	image := func(*cri.LinuxContainerSecurityContext) {}
	for name, tt := range map[string]struct {
		files []testimage.File
		// user is the image's.
		user string
		who  func(*cri.LinuxContainerSecurityContext)
		// want is "uid gid groups"; empty where the container is refused, with an error that has all of texts.
		want  string
		texts []string
	}{
		"missing, number":        {nil, "", number, "1000 0 [0]", nil},
		"missing, name":          {nil, "", web, "", []string{"run_as_username", "web", "/etc/passwd"}},
		"missing, image's name":  {nil, "web", image, "", []string{"web", "/etc/passwd"}},
		"number not there":       {[]testimage.File{file(passwd, "web:x:5:5::/:\n")}, "", number, "1000 0 [0]", nil},
		"image's user and group": {[]testimage.File{file(passwd, "web:x:5:5::/:\n"), file(group, "staff:x:50:\n")}, "web:staff", image, "5 50 [50]", nil},
		"image's unknown group":  {[]testimage.File{file(passwd, "web:x:5:5::/:\n")}, "web:staff", image, "", []string{"staff", "/etc/group"}},
		"huge":                   {[]testimage.File{file(passwd, strings.Repeat(" ", 5<<20)+"\nweb:x:5:5::/:\n")}, "", web, "", []string{"/etc/passwd", "larger than"}},
		"huge group":             {[]testimage.File{file(group, strings.Repeat("x", 5<<20))}, "", number, "", []string{"/etc/group", "larger than"}},
		"long line":              {[]testimage.File{file(passwd, "web:x:5:6:"+strings.Repeat("x", 1<<20)+":/:\n")}, "", web, "5 6 [6]", nil},
		"FIFO":                   {[]testimage.File{{Name: passwd, FIFO: true}}, "", web, "", []string{"/etc/passwd", "not a regular file"}},
		"directory":              {[]testimage.File{{Name: passwd + "/", Dir: true}}, "", web, "", []string{"/etc/passwd", "not a regular file"}},
		"link out":               {[]testimage.File{{Name: passwd, Symlink: outside}}, "", web, "", []string{"/etc/passwd", "no such user"}},
		"link to itself":         {[]testimage.File{{Name: passwd, Symlink: "/etc/passwd"}}, "", web, "", []string{"/etc/passwd", "symbolic links"}},
		"link inside":            {[]testimage.File{{Name: passwd, Symlink: "../../../real"}, file("real", "web:x:5:6::/:\n")}, "", web, "5 6 [6]", nil},
		"number malformed":       {[]testimage.File{file(passwd, "web:x:five:5::/:\n")}, "", web, "", []string{"no such user"}},
		"number beyond the last": {[]testimage.File{file(passwd, "web:x:4294967296:5::/:\n")}, "", web, "", []string{"no such user"}},
		"root's line malformed":  {[]testimage.File{file(passwd, "x:x::7::/:\nweb:x:0:\n")}, "", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{} }, "0 0 [0]", nil},
		"group's number malformed": {
			[]testimage.File{file(passwd, "web:x:5:6::/:\n"), file(group, "zero:x:none:web\nempty:x::web\nshort\nmore:x:7:other,web\n")}, "", web, "5 6 [6 7]", nil,
		},
		"some lines malformed": {[]testimage.File{file(passwd, "\n#web:x:1:1\nweb\nweb:x\nweb:x:\n:x:1:1\nweb:x:-1:5\nweb:x:2:\n\tweb:x:5:6::/:\r\nweb:x:0:0::/:\n")}, "", web, "5 6 [6]", nil},
		"duplicates": {
			[]testimage.File{file(passwd, "web:x:5:6::/:\nweb:x:0:0::/:\nalso:x:5:0::/:\n"), file(group, "a:x:7:web,web\nb:x:7:web\na:x:8:web\n")}, "", web, "5 6 [6 7 8]", nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			ref := configured(t, n, v1.Config{User: tt.user}, layer(t, append(tt.files, file("name", name))...))
			kit.Pull(t, n, ref)
			made, err := pod.TryCreate(kit.ContainerConfig(t, ref, []string{"/name"}, security(tt.who)))
			if tt.want == "" {
				wantCode(t, err, codes.InvalidArgument, tt.texts...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err := n.Runtime.ContainerStatus(kit.Context(t), &cri.ContainerStatusRequest{ContainerId: made.GetContainerId()})
			u := s.GetStatus().GetUser().GetLinux()
			if got := fmt.Sprint(u.GetUid(), u.GetGid(), u.GetSupplementalGroups()); got != tt.want || err != nil {
				t.Errorf("user %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}
