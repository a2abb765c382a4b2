// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crishim.dev/internal/testnode"
)

// program names the built suite between the process outside the node, which can build it, and the one inside.
const program = "SHIM_NODE_CRITEST"

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && !testnode.Inside() && os.Getenv(program) == "" {
		tool := exec.Command("../../hack/tool", "critest")
		tool.Stderr = os.Stderr
		path, err := tool.Output()
		if err == nil {
			err = os.Setenv(program, strings.TrimSpace(string(path)))
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "get critest: %v\n", err)
			os.Exit(1)
		}
	}
	os.Exit(testnode.Main(m))
}

// mayFail is the one spec that no offline run can pass: it pulls an image by a digest that can't be built here.
const mayFail = "public image with digest"

// report is the part of a JUnit file that says how each spec ended.
type report struct {
	Suites []struct {
		Cases []struct {
			Name   string `xml:"name,attr"`
			Status string `xml:"status,attr"`
			Output string `xml:"system-err"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

func TestCritest(t *testing.T) {
	testnode.Need(t)
	if testing.Short() {
		t.Skip("-short: the suite takes a minute")
	}
	n, err := testnode.Start(t.Context(), testnode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	suite := exec.CommandContext(t.Context(), os.Getenv(program), "-runtime-endpoint", "unix://"+n.Socket,
		"-image-endpoint", "unix://"+n.Socket, "-ginkgo.no-color", "-ginkgo.junit-report="+filepath.Join(dir, "report.xml"))
	suite.Env = n.Env()
	suite.Dir = dir
	output, runErr := suite.CombinedOutput()
	specs, err := read(filepath.Join(dir, "report.xml")) // -report-dir, which critest takes as well, writes nothing
	if err != nil || len(specs.Suites) == 0 {
		t.Fatalf("read report: %v; critest: %v\n%s", err, runErr, output[max(0, len(output)-4000):])
	}
	ran := 0
	for _, s := range specs.Suites {
		for _, c := range s.Cases {
			if !strings.HasPrefix(c.Name, "[It]") || strings.Contains(c.Name, "benchmark") {
				continue
			}
			t.Run(strings.TrimPrefix(c.Name, "[It] [k8s.io] "), func(t *testing.T) {
				switch {
				case c.Status == "skipped" || c.Status == "pending":
					t.Skip("critest skips it here")
				case c.Status != "passed" && strings.Contains(c.Name, mayFail):
					t.Skip("needs the internet: " + mayFail)
				case c.Status != "passed":
					t.Errorf("%s\n%s", c.Status, c.Output[max(0, len(c.Output)-3000):])
				}
				ran++
			})
		}
	}
	if ran < 100 {
		t.Errorf("%d specs ran; want 107 or more", ran)
	}
	for _, l := range n.Clean(t.Context()) {
		t.Errorf("left behind: %s", l)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// read parses the report.
func read(path string) (report, error) {
	var r report
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	return r, xml.Unmarshal(text, &r)
}
