// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
	"crishim.dev/snapshot/untar"
)

func TestVerify(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	twice := registrytest.Tar(t, registrytest.File("f", "1"), registrytest.File("f", "2"))
	img := simple(t, "high")
	img = registrytest.NewImage(t, append(img.Tars, twice), nil, nil)
	reg.Push(t, "app", "v", img)
	ref := reg.Host + "/app:v"
	i := n.pull(t, ref, nil)
	checks, err := n.Verify(t.Context(), ref)
	if err != nil || len(checks) != 3 || checks[0].Err != nil || checks[1].Err != nil {
		t.Fatalf("%+v, %v", checks, err)
	}
	wantKind(t, checks[2].Err, errs.Unsupported)
	// One byte changes on disk, the size stays.
	if err := os.WriteFile(filepath.Join(n.snap.FSDir(i.Layers[1]), "etc/motd"), []byte("hiGh"), 0o644); err != nil {
		t.Fatal(err)
	}
	checks, err = n.Verify(t.Context(), ref)
	if err != nil || checks[0].Err != nil || !errors.Is(checks[1].Err, untar.ErrChanged) || !strings.Contains(checks[1].Err.Error(), "etc/motd") {
		t.Errorf("%+v, %v", checks, err)
	}
	_, err = n.Verify(t.Context(), "unknown")
	wantKind(t, err, errs.NotFound)
}
