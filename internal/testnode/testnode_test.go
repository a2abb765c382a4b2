// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// TestCutOff: inside there is loopback and a link to nowhere, a /run of its own, and nobody else's processes.
func TestCutOff(t *testing.T) {
	Need(t)
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name != "lo" && l.Name != "node0" && l.Name != "nowhere0" {
			t.Errorf("link %s", l.Name)
		}
		if l.Flags&net.FlagUp == 0 {
			t.Errorf("link %s is down", l.Name)
		}
	}
	if os.Getppid() != 1 {
		t.Errorf("parent is %d, not process 1 of a new namespace", os.Getppid())
	}
	entries, err := os.ReadDir("/run")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" && e.Name() != "netns" {
			t.Errorf("/run/%s", e.Name())
		}
	}
	if !strings.HasPrefix(os.Getenv("TMPDIR"), Dir()) {
		t.Errorf("temporary files go to %s, not below %s", os.Getenv("TMPDIR"), Dir())
	}
}

// TestSharedInsideOnly: a mount made here is seen by a new mount namespace of ours, as rshared volumes need.
func TestSharedInsideOnly(t *testing.T) {
	Need(t)
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[4] == "/" && !strings.Contains(line, " shared:") {
			t.Errorf("/ is not shared: %s", line)
		}
	}
}

func TestOrphansAreReaped(t *testing.T) {
	Need(t)
	out, err := exec.Command("/bin/sh", "-c", "/bin/true & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(out))
	if err := waitFor(func() error {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			return unix.EBUSY
		}
		return nil
	}); err != nil {
		t.Errorf("orphan %s: %v", pid, err)
	}
}

func TestRegistryServesImages(t *testing.T) {
	Need(t)
	r, err := StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Requests()
	for path, want := range map[string]int{
		"e2e-test-images/busybox/manifests/1.29-2": http.StatusOK,
		"library/busybox/manifests/latest":         http.StatusOK,
		"test/multi/manifests/1":                   http.StatusOK,
		"test/none/manifests/1":                    http.StatusNotFound,
	} {
		resp, err := http.Get("http://" + r.Host + "/v2/" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s; want %d", path, resp.Status, want)
		}
	}
	if got := r.Requests(); len(got) != 4 {
		t.Errorf("%d requests recorded; want 4: %q", len(got), got)
	}
	r.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "closed", http.StatusServiceUnavailable)
		return true
	})
	resp, err := http.Get("http://" + r.Host + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("intercepted: %s", resp.Status)
	}
}
