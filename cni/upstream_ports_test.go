// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"

	"crishim.dev/cni/builtin/testpod"
)

// reach writes down where the pod's port 80 answers on the node, and as whom it sees the caller.
func (s *side) reach() {
	for _, addr := range []string{"127.0.0.1:8080", "192.0.2.1:8080", "192.0.2.1:8081", "192.0.2.1:8082", "10.7.0.1:8080", "[2001:db8::1]:8080", "[fd00:7::1]:8080"} {
		got, err := read(addr)
		s.note("%s answers %t as %s", addr, err == nil, got)
	}
	if !s.pod.Gone() {
		got, err := ask(s.t, s.pod, "192.0.2.1:8080")
		s.note("from the pod itself: answers %t as %s", err == nil, got)
	}
}

// up attaches the pod and serves in it.
func (s *side) up() {
	s.rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{
		{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
		{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
		{"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
		{"hostPort": 8080, "containerPort": 81, "protocol": "udp"},
	}}
	s.add()
	serve(s.t, s.pod, "[::]:80")
	if strings.Contains(string(s.list.Bytes), "fd00:7::") { // upstream's bridge can't use its address for the first second or two
		until(s.t, "the pod answers over IPv6", func() bool {
			_, err := read("[fd00:7::2]:80")
			return err == nil
		})
	}
}

func (s *side) flush() {
	c, err := nftables.New()
	if err != nil {
		s.t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		s.t.Fatal(err)
	}
}

func TestHostPortsEqualToUpstream(t *testing.T) {
	testpod.Node(t)
	for _, tool := range []string{"iptables", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s, which upstream's portmap runs (hack/deps)", tool)
		}
	}
	const single, dual = `"subnet":"10.7.0.0/24"`, `"ranges":[[{"subnet":"10.7.0.0/24"}],[{"subnet":"fd00:7::/64"}]]`
	for name, c := range map[string]struct {
		ipam, portmap string
		steps         func(*side)
	}{
		"life": {dual, ``, func(s *side) {
			s.up()
			s.reach()
			s.check()
			s.del()
			s.reach()
			s.del()
		}},
		"life, nftables": {dual, `"backend":"nftables",`, func(s *side) {
			s.up()
			s.reach()
			s.check()
			s.del()
			s.reach()
		}},
		"without netns": {single, ``, func(s *side) {
			s.up()
			s.pod.Kill()
			s.rt.NetNS = ""
			s.del()
			s.reach()
			s.del()
		}},
		"check after a flush": {single, ``, func(s *side) {
			s.up()
			s.flush()
			s.check()
			s.reach()
			s.del()
		}},
		"gc": {single, ``, func(s *side) {
			s.up()
			s.gc()
			s.reach()
		}},
		"none": {single, ``, func(s *side) {
			s.add()
			s.check()
			s.del()
		}},
		"bad port": {single, ``, func(s *side) {
			s.rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": 70000, "containerPort": 80, "protocol": "tcp"}}}
			s.add()
		}},
		"bad protocol": {single, ``, func(s *side) {
			s.rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "smoke"}}}
			s.add()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			config := chainOf("1.1.0", `"isDefaultGateway":true,"hairpinMode":true`, c.ipam, `{"type":"portmap",`+c.portmap+`"capabilities":{"portMappings":true}}`)
			compare(t, config, nil, func(s *side) {
				world(s.t, 1)
				c.steps(s)
				s.flush()
			})
		})
	}
}
