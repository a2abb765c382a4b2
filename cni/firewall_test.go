// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"crishim.dev/cni/builtin/testpod"
)

// zones stands in for firewalld: it has the two methods and keeps what it is told.
type zones struct {
	mu      sync.Mutex
	sources []string
}

func (z *zones) AddSource(zone, source string) (string, *dbus.Error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.sources = append(z.sources, zone+" "+source)
	return zone, nil
}

func (z *zones) QuerySource(zone, source string) (bool, *dbus.Error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Contains(z.sources, zone+" "+source), nil
}

// bus starts a message bus of the test's own and makes it the system bus of this process.
func bus(t *testing.T) *dbus.Conn {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("needs dbus-daemon")
	}
	dir := t.TempDir()
	address := "unix:path=" + filepath.Join(dir, "bus")
	conf := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>` + address + `</listen><policy context="default"><allow send_destination="*"/><allow own="*"/><allow eavesdrop="true"/></policy></busconfig>`
	file := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--config-file="+file, "--nofork", "--print-address=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 256)); err != nil { // it listens once it has printed its address
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestFirewall(t *testing.T) {
	testpod.Node(t)
	conn := bus(t)
	n := open(t, nil)
	chain := func(firewall string) {
		write(t, n, "10-x.conflist", strings.Replace(listOf("x", "10.4.0.0/24"), "}}]}", "}},"+firewall+"]}", 1))
	}
	chain(`{"type":"firewall"}`)
	attach(t, n, podOf(testpod.New(t, 1))) // nobody there: fine
	chain(`{"type":"firewall","backend":"firewalld"}`)
	if _, err := n.Attach(context.Background(), podOf(testpod.New(t, 2))); err == nil || !strings.Contains(err.Error(), "find firewalld") {
		t.Errorf("without firewalld: %v", err)
	}
	z := &zones{}
	methods := map[string]string{"AddSource": "addSource", "QuerySource": "querySource"}
	if err := conn.ExportWithMap(z, methods, "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName("org.fedoraproject.FirewallD1", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	chain(`{"type":"firewall","firewalldZone":"pods"}`)
	start := time.Now()
	for i := range 3 {
		attach(t, n, podOf(testpod.New(t, 3+i)))
	}
	t.Log("three pods in", time.Since(start))
	if want := []string{"pods 10.4.0.0/24"}; !slices.Equal(z.sources, want) {
		t.Errorf("sources %q; want %q", z.sources, want)
	}
	p := podOf(testpod.New(t, 9))
	attach(t, n, p)
	if err := n.Check(context.Background(), p); err != nil {
		t.Error(err)
	}
	z.mu.Lock()
	z.sources = nil // firewalld restarts
	z.mu.Unlock()
	if err := n.Check(context.Background(), p); err == nil {
		t.Error("CHECK does not miss the source")
	}
	chain(`{"type":"firewall","backend":"iptables"}`)
	if err := n.Status(); err == nil || !strings.Contains(err.Error(), `backend "iptables" of firewall is not understood`) {
		t.Errorf("iptables: %v", err)
	}
}
