// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExplainPull(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "policy.toml", "default = \"accept\"\n[[rule]]\nmatch = \"docker.io/bad\"\npolicy = \"reject\"\n")
	if err := os.MkdirAll(filepath.Join(dir, "certs.d", "docker.io"), 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := write(t, filepath.Join(dir, "certs.d", "docker.io"), "hosts.toml", "[host.\"http://mirror.example:5000\"]\ncapabilities = [\"pull\"]\nskip_verify = true\n")
	file := write(t, dir, "config.toml", "[image]\ncerts_dir = \""+dir+"/certs.d\"\npolicy_file = \""+dir+"/policy.toml\"\nmirrors_only = true\n")
	for _, tt := range []struct {
		args string
		want []string
	}{
		{"busybox", []string{
			"docker.io/library/busybox:latest\nsignatures: accept, by the default of " + dir + "/policy.toml\n",
			"1  http://mirror.example:5000/v2 (https first) (any certificate)  no: it has not the capability resolve",
			"  yes  ", "none  ", "2  https://registry-1.docker.io/v2", "no: only mirrors are asked (image.mirrors_only)", hosts,
		}},
		{"--request-credentials bad/app", []string{"reject, by the rule for docker.io/bad in ", "none: the request's are not for mirrors", "the request's  "}},
		{"-o json reg.example:5000/app", []string{`"url": "https://reg.example:5000/v2"`, `"mirror": false`}},
	} {
		got, err := run(t, "", append([]string{"explain-pull", "--config", file}, strings.Fields(tt.args)...)...)
		for _, w := range tt.want {
			if err != nil || !strings.Contains(got, w) {
				t.Errorf("%s: %v\n%s\nwant %q in it", tt.args, err, got, w)
			}
		}
	}
	if _, err := run(t, "", "explain-pull", "--config", file, "UPPER"); err == nil {
		t.Error("explained a malformed reference")
	}
}
