// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every point of KUBELET.md has a test by its number among the black-box tests, or in the package that decides it.
func TestEveryPointHasATest(t *testing.T) {
	text, err := os.ReadFile("KUBELET.md")
	if err != nil {
		t.Fatal(err)
	}
	points := regexp.MustCompile(`(?m)^([0-9]+)\. `).FindAllStringSubmatch(string(text), -1)
	if len(points) < 35 {
		t.Fatalf("only %d points found", len(points))
	}
	shown := map[string]bool{}
	name := regexp.MustCompile(`(?m)^func TestKubelet([0-9]{2})`)
	err = filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range name.FindAllStringSubmatch(string(source), -1) {
			shown[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		if number := fmt.Sprintf("%02s", p[1]); !shown[number] {
			t.Errorf("point %s has no test: want a TestKubelet%s…", p[1], number)
		}
	}
}
