// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"math"
	"strconv"
	"strings"

	"crishim.dev/internal/errs"
)

// The annotations by which Kubernetes limits a pod's bandwidth, in bits per second.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// Limits that Kubernetes sets to them.
const (
	minBandwidth = 1e3
	maxBandwidth = 1e15
)

// bandwidth is what the pod asks for by field or, without, by annotations. The burst is then as large as it can be, as other runtimes have it.
func (p *Pod) bandwidth() (Bandwidth, error) {
	if p.Bandwidth != (Bandwidth{}) {
		return p.Bandwidth, nil
	}
	var b Bandwidth
	for _, a := range []struct {
		name        string
		rate, burst *uint64
	}{{ingressAnnotation, &b.IngressRate, &b.IngressBurst}, {egressAnnotation, &b.EgressRate, &b.EgressBurst}} {
		text, ok := p.Annotations[a.name]
		if !ok {
			continue
		}
		rate, err := parseRate(text)
		if err != nil {
			return Bandwidth{}, errs.Newf(errs.Invalid, "annotation %s: %w", a.name, err)
		}
		*a.rate, *a.burst = rate, math.MaxUint32
	}
	return b, nil
}

// parseRate reads a Kubernetes quantity such as 10M, 1.5G or 512Ki.
func parseRate(text string) (uint64, error) {
	factor := 1.0
	number := strings.TrimRight(text, "KMGTPEki")
	switch unit := text[len(number):]; unit {
	case "":
	case "k", "M", "G", "T", "P", "E":
		factor = math.Pow(1000, float64(strings.Index("kMGTPE", unit)+1))
	case "Ki", "Mi", "Gi", "Ti", "Pi", "Ei":
		factor = math.Pow(1024, float64(strings.Index("KMGTPE", unit[:1])+1))
	default:
		return 0, errs.Newf(errs.Invalid, "quantity %q", text)
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) {
		return 0, errs.Newf(errs.Invalid, "quantity %q", text)
	}
	if v *= factor; v < minBandwidth || v > maxBandwidth {
		return 0, errs.Newf(errs.Invalid, "bandwidth %s is not between 1k and 1P", text)
	}
	return uint64(v), nil
}
