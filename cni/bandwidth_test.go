// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"crishim.dev/cni/builtin/testpod"
	"crishim.dev/internal/errs"
)

// The built-in network honours Kubernetes' annotations.
func TestBandwidthAnnotations(t *testing.T) {
	n := open(t, nil)
	before := testpod.Links(t)
	pod := podOf(testpod.New(t, 1))
	pod.Annotations = map[string]string{ingressAnnotation: "8M", egressAnnotation: "1G"}
	r := attach(t, n, pod)
	l, err := netlink.LinkByName(r.HostInterfaces[1])
	if err != nil {
		t.Fatal(err)
	}
	qdiscs, err := netlink.QdiscList(l)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, q := range qdiscs {
		tbf, ok := q.(*netlink.Tbf)
		found = found || ok && tbf.Rate == 1e6 // bytes
	}
	if !found {
		t.Errorf("no limit of 8 Mbit/s among %v", qdiscs)
	}
	detach(t, n, pod)
	if after := testpod.Links(t); len(after) != len(before)+3 { // the bridge, its address and its route stay
		t.Errorf("before %q after %q", before, after)
	}
	bad := podOf(testpod.New(t, 2))
	bad.Annotations = map[string]string{ingressAnnotation: "fast"}
	if _, err := n.Attach(context.Background(), bad); !errors.Is(err, errs.Invalid) {
		t.Errorf("bad annotation: %v", err)
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"10M": 10e6, "1.5G": 1500e6, "512Ki": 512 << 10, "1000": 1000, "1e6": 1e6, "1P": 1e15,
		"": 0, "M": 0, "10X": 0, "-5M": 0, "999": 0, "2P": 0, "NaN": 0, "inf": 0, "1MM": 0, "10K": 0,
	} {
		got, err := parseRate(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}
