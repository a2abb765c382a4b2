// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
)

// treeLayers packs about size bytes of the regular files below root into n archives. Real files compress like real images.
func treeLayers(t testing.TB, root string, size int64, n int) (layers [][]byte, files int) {
	t.Helper()
	var paths []string
	var total int64
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what can't be read is left out
		}
		st, err := d.Info()
		if err != nil || st.Size() > 64<<20 {
			return nil //nolint:nilerr // same
		}
		paths = append(paths, p)
		if total += st.Size(); total >= size {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	per := total/int64(n) + 1
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	flush := func() {
		_ = w.Close()
		layers = append(layers, bytes.Clone(b.Bytes()))
		b.Reset()
		w = tar.NewWriter(&b)
	}
	dirs := map[string]bool{}
	for _, p := range paths {
		body, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		name, _ := filepath.Rel(root, p)
		addDirs(w, filepath.Dir(name), dirs)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(body)
		files++
		if int64(b.Len()) > per {
			flush()
			clear(dirs)
		}
	}
	flush()
	return layers, files
}

func addDirs(w *tar.Writer, dir string, seen map[string]bool) {
	if dir == "." || seen[dir] {
		return
	}
	addDirs(w, filepath.Dir(dir), seen)
	seen[dir] = true
	_ = w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
}

// BenchmarkPull pulls an image of real files from a registry on loopback. CRISHIM_BENCH_TREE and CRISHIM_BENCH_MB say which and how
// much; by default 64 MB of /usr/local/go.
func BenchmarkPull(b *testing.B) {
	root, mb := "/usr/local/go", int64(64)
	if v := os.Getenv("CRISHIM_BENCH_TREE"); v != "" {
		root = v
	}
	if v, err := strconv.ParseInt(os.Getenv("CRISHIM_BENCH_MB"), 10, 64); err == nil {
		mb = v
	}
	layers, files := treeLayers(b, root, mb<<20, 10)
	var size int64
	for _, l := range layers {
		size += int64(len(l))
	}
	for name, pack := range map[string]func(testing.TB, []byte) []byte{
		"plain": func(_ testing.TB, b []byte) []byte { return b }, "gzip": registrytest.Gzip, "zstd": registrytest.Zstd,
	} {
		b.Run(name, func(b *testing.B) {
			reg := registrytest.New(b)
			reg.Push(b, "app", "v", registrytest.NewImage(b, layers, pack, nil))
			n := open(b, b.TempDir(), func(o *image.Options) { o.Parallel = 3 })
			b.SetBytes(size)
			b.ReportMetric(float64(files), "files")
			for b.Loop() {
				i := n.pull(b, reg.Host+"/app:v", nil)
				b.StopTimer()
				if err := n.Remove(b.Context(), i.ID); err != nil {
					b.Fatal(err)
				}
				if err := n.snap.Drain(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
