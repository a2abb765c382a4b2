// SPDX-License-Identifier: Apache-2.0

package image

import (
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image/registry/registrytest"
)

// The best of an index for a platform: the newest variant that runs, the version of the operating system where one is wanted.
func TestPick(t *testing.T) {
	p := func(arch, variant string) v1.Platform {
		return v1.Platform{OS: "linux", Architecture: arch, Variant: variant}
	}
	versioned := func(version string) v1.Platform {
		return v1.Platform{OS: "linux", Architecture: "amd64", OSVersion: version}
	}
	for name, tt := range map[string]struct {
		want v1.Platform
		have []v1.Platform
		best int // -1: none
	}{
		"exact":               {p("arm64", ""), []v1.Platform{p("amd64", ""), p("arm64", "v8")}, 1},
		"other names":         {p("amd64", ""), []v1.Platform{p("aarch64", ""), p("x86_64", "v1")}, 1},
		"newest that runs":    {p("arm", "v7"), []v1.Platform{p("arm", "v5"), p("arm", "v6"), p("arm64", "")}, 1},
		"too new":             {p("amd64", ""), []v1.Platform{p("amd64", "v3"), p("amd64", "v2")}, -1},
		"not too new":         {p("amd64", ""), []v1.Platform{p("amd64", "v3"), p("amd64", "")}, 1},
		"newer wanted":        {p("amd64", "v3"), []v1.Platform{p("amd64", ""), p("amd64", "v3")}, 1},
		"first of equals":     {p("amd64", ""), []v1.Platform{p("amd64", ""), p("amd64", "")}, 0},
		"32 bits at last":     {p("amd64", ""), []v1.Platform{p("386", ""), p("amd64", "")}, 1},
		"32 bits only":        {p("amd64", ""), []v1.Platform{p("arm64", ""), p("386", "")}, 1},
		"another system":      {p("amd64", ""), []v1.Platform{{OS: "windows", Architecture: "amd64"}}, -1},
		"wanted os.version":   {versioned("2"), []v1.Platform{versioned("1"), versioned("2")}, 1},
		"unwanted os.version": {p("amd64", ""), []v1.Platform{versioned("1"), versioned("2")}, 0},
	} {
		var index []v1.Descriptor
		for i, have := range tt.have {
			index = append(index, v1.Descriptor{Digest: registrytest.DigestOf([]byte{byte(i)}), Platform: &have})
		}
		got, err := pick(index, tt.want)
		switch {
		case tt.best < 0:
			if err == nil {
				t.Errorf("%s: picked %+v", name, got)
			}
		case err != nil || got.Digest != string(index[tt.best].Digest):
			t.Errorf("%s: %+v, %v; want number %d", name, got, err, tt.best)
		}
	}
}
