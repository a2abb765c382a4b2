// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"crishim.dev/image/registry/registrytest"
)

// Two images with the same layers in opposite order, each of which needs what is below it, pulled at the same moment: neither pull waits for the
// other.
func TestLayersInOppositeOrder(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 40 {
		layer := func(name string) []byte { // whose directories are the bottom layer's
			return registrytest.Tar(t, registrytest.File("d/"+name, fmt.Sprint(name, i)))
		}
		bottom := registrytest.Tar(t, registrytest.Dir("d"), registrytest.File("large", string(make([]byte, 2<<20))+fmt.Sprint(i)))
		a, b := layer("a"), layer("b")
		var pulls sync.WaitGroup
		for name, layers := range map[string][][]byte{"ab": {bottom, a, b}, "ba": {bottom, b, a}} {
			ref := fmt.Sprintf("%s/%s%d:v", reg.Host, name, i)
			reg.Push(t, fmt.Sprint(name, i), "v", registrytest.NewImage(t, layers, nil, nil))
			pulls.Go(func() {
				img, err := n.Pull(ctx, ref, nil)
				if err != nil {
					t.Errorf("%s: %v", ref, err)
				} else if got := n.read(t, img, "d/a") + n.read(t, img, "d/b"); got != fmt.Sprintf("a%[1]db%[1]d", i) {
					t.Errorf("%s has %q", ref, got)
				}
			})
		}
		pulls.Wait()
		if t.Failed() {
			return
		}
	}
}
