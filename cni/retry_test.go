// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim.dev/cni/builtin/testpod"
)

// until waits for a condition, ten seconds at most.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until", what)
		}
	}
}

// withPlugin makes a bridge network with a binary of that name behind the bridge.
func withPlugin(t *testing.T, n *Network, name, text string) {
	t.Helper()
	script(t, n, name, text)
	write(t, n, "10-x.conflist", strings.Replace(listOf("x", "10.4.0.0/24"), "}}]}", `}},{"type":"`+name+`"}]}`, 1))
}

// passOn is the part of a chained plugin's script that gives on what it was given.
const passOn = `[ $CNI_COMMAND = ADD ] && sed 's/.*"prevResult":\({.*}\),"type".*/\1/'; `

// A DEL that fails is tried again until it succeeds; until then the address is nobody else's.
func TestFailingDetachConverges(t *testing.T) {
	n := open(t, nil)
	n.retry.first = time.Millisecond
	stuck := filepath.Join(t.TempDir(), "stuck")
	withPlugin(t, n, "sticky", passOn+`[ $CNI_COMMAND = DEL ] && [ -e `+stuck+` ] && { echo '{"cniVersion":"1.1.0","code":11,"msg":"server is down"}'; exit 1; }; exit 0`)
	pod := podOf(testpod.New(t, 1))
	r := attach(t, n, pod)
	if err := os.WriteFile(stuck, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := n.Detach(context.Background(), Pod{ID: pod.ID})
	if err == nil || !strings.Contains(err.Error(), `type="sticky"`) || !strings.Contains(err.Error(), "server is down") {
		t.Fatalf("error %v; want one that names the plugin and its reason", err)
	}
	held := func() bool {
		leases, err := n.host.Leases("x")
		if err != nil {
			t.Fatal(err)
		}
		return len(leases) == 1 && leases[0].Addr == r.IPs[0]
	}
	if !n.records.has(pod.ID) || !held() {
		t.Fatal("the address is free though the plugin may still use it")
	}
	if err := os.Remove(stuck); err != nil {
		t.Fatal(err)
	}
	until(t, "the pod is detached in the background", func() bool { return !n.records.has(pod.ID) })
	if held() {
		t.Error("the address is still held")
	}
	detach(t, n, Pod{ID: pod.ID})
}

// A network that is configured no more has no plugin to wait for.
func TestDetachFromARemovedNetwork(t *testing.T) {
	n := open(t, nil)
	withPlugin(t, n, "sticky", passOn+`[ $CNI_COMMAND = DEL ] && exit 1; exit 0`)
	pod := podOf(testpod.New(t, 1))
	attach(t, n, pod)
	if err := n.Detach(context.Background(), Pod{ID: pod.ID}); err == nil {
		t.Fatal("no error though the plugin fails")
	}
	if err := os.Remove(filepath.Join(n.opts.ConfDir, "10-x.conflist")); err != nil {
		t.Fatal(err)
	}
	detach(t, n, Pod{ID: pod.ID})
	leases, err := n.host.Leases("x")
	if err != nil || len(leases) != 0 || n.records.has(pod.ID) {
		t.Errorf("left: %v, %v, attached %t", leases, err, n.records.has(pod.ID))
	}
}

// After a reboot a binary gets its DEL all the same, without a namespace; of what built-in plugins held nothing is left to undo.
func TestReboot(t *testing.T) {
	n := open(t, nil)
	machine := []*testpod.Pod{testpod.New(t, 1), testpod.New(t, 2), testpod.New(t, 3)}
	own, first, torn := podOf(machine[0]), podOf(machine[1]), podOf(machine[2])
	attach(t, n, own)
	if _, err := os.Stat(filepath.Join(n.opts.LastingDir, own.ID)); err == nil {
		t.Error("an attachment of built-in plugins outlives a reboot")
	}
	seen := filepath.Join(t.TempDir(), "seen")
	withPlugin(t, n, "server", passOn+`[ $CNI_COMMAND = DEL ] && env | grep ^CNI_ > `+seen+`; exit 0`)
	attach(t, n, first)
	attach(t, n, torn)
	if err := os.Truncate(filepath.Join(n.opts.LastingDir, torn.ID, recordName), 0); err != nil {
		t.Fatal(err)
	}
	o := n.opts
	o.CacheDir, o.StateDir = filepath.Join(t.TempDir(), "cache"), filepath.Join(t.TempDir(), "state")
	booted, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer booted.Close()
	for _, p := range machine { // as a reboot does
		p.Kill()
	}
	if err := booted.GC(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	until(t, "nobody is attached", func() bool {
		all, err := booted.records.list()
		return err == nil && len(all) == 0
	})
	env, err := os.ReadFile(seen)
	if err != nil || !strings.Contains(string(env), "CNI_CONTAINERID="+first.ID+"\n") || !strings.Contains(string(env), "CNI_NETNS=\n") {
		t.Errorf("the binary saw %q, %v; want a DEL of %s without a namespace", env, err, first.ID)
	}
	leases, err := booted.host.Leases("x")
	if err != nil || len(leases) != 0 {
		t.Errorf("leases %v, %v", leases, err)
	}
}

// Plugins that hang keep neither the daemon from starting nor, for longer than their deadline, pods from being attached.
func TestHangingPluginsAtStart(t *testing.T) {
	n := open(t, func(o *Options) { o.Timeout = time.Second })
	started := filepath.Join(t.TempDir(), "started")
	withPlugin(t, n, "slow", passOn+`case $CNI_COMMAND in GC|DEL) echo >> `+started+`; exec sleep 1000;; esac; exit 0`)
	pod := podOf(testpod.New(t, 1))
	attach(t, n, pod)
	began := time.Now()
	if err := n.GC(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	ctx, cancel := context.WithTimeout(context.Background(), n.opts.Timeout/6)
	defer cancel()
	if _, err := n.Attach(ctx, podOf(testpod.New(t, 2))); err == nil || !strings.Contains(err.Error(), "clear up") {
		t.Errorf("attach while plugins clear up: %v", err)
	}
	if took > n.opts.Timeout {
		t.Errorf("GC took %v", took)
	}
	attach(t, n, podOf(testpod.New(t, 3)))
	if _, err := os.Stat(started); err != nil {
		t.Error("the plugin was not asked:", err)
	}
	if !n.records.has(pod.ID) {
		t.Error("a pod whose DEL hangs is forgotten")
	}
	withPlugin(t, n, "slow", "exit 0")
	detach(t, n, pod)
}
