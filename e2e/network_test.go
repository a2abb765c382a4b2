// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func TestPodsReachEachOtherAndTheNode(t *testing.T) {
	n := node(t)
	web, client := kit.RunPod(t, n), kit.RunPod(t, n)
	server := web.Run(testimage.Nginx, nil)
	c := client.Run(testimage.Busybox, kit.Sleep())
	url := "http://" + web.IP() + "/"
	kit.Until(t, func() error {
		r, err := c.ExecSync(10, "wget", "-q", "-O", "-", url)
		if err == nil && !strings.Contains(string(r.GetStdout()), "Welcome to nginx!") {
			err = fmt.Errorf("%s%s", r.GetStdout(), r.GetStderr())
		}
		return err
	})
	server.WaitLog("GET / HTTP/1.1")
	resp, err := http.Get(url)
	if err != nil {
		t.Fatalf("from the node: %v", err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "Welcome") {
		t.Errorf("from the node: %q, %v", body, err)
	}
	l, err := net.Listen("tcp", testnode.NodeIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) }))
	}()
	if got := c.Exec("wget", "-q", "-O", "-", "http://"+l.Addr().String()+"/"); !strings.HasPrefix(got, client.IP()+":") {
		t.Errorf("the node saw %q; want the pod's own address %s", got, client.IP())
	}
	if got := c.Exec("wget", "-q", "-O", "-", "http://"+web.IP()+"/remote"); !strings.HasPrefix(got, client.IP()+":") {
		t.Errorf("the other pod saw %q; want %s", got, client.IP())
	}
}

func TestContainersOfAPodShareLoopback(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	pod.Run(testimage.Busybox, []string{"probe", "http", "127.0.0.1:8080", "by loopback"})
	c := pod.Run(testimage.Busybox, kit.Sleep())
	kit.Until(t, func() error {
		r, err := c.ExecSync(10, "wget", "-q", "-O", "-", "http://127.0.0.1:8080/")
		if err == nil && string(r.GetStdout()) != "by loopback\n" {
			err = fmt.Errorf("%s%s", r.GetStdout(), r.GetStderr())
		}
		return err
	})
}

func TestPodsHaveAddressesOfTheirOwn(t *testing.T) {
	n := node(t)
	seen := make(map[string]bool)
	for range 5 {
		ip := kit.RunPod(t, n).IP()
		if seen[ip] || net.ParseIP(ip) == nil {
			t.Errorf("address %q, after %v", ip, seen)
		}
		seen[ip] = true
	}
}

func TestHostPort(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 18080}, {ContainerPort: 81}}
	})
	pod.Run(testimage.Nginx, nil)
	kit.Until(t, func() error {
		resp, err := http.Get("http://" + testnode.NodeIP + ":18080/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
}
