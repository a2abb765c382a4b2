// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

const (
	runtimeName = "shim"
	// kubeletAPIVersion is the version of kubelet's runtime API, unchanged since it was first numbered.
	kubeletAPIVersion = "0.1.0"
	// criVersion is the protocol's.
	criVersion = "v1"
)

// about answers what concerns the runtime as a whole.
type about struct{ o *Options }

// Version names the runtime. RuntimeVersion parses as semantic versioning, which has no v in front, in development
// builds too.
func (s about) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: kubeletAPIVersion, RuntimeName: runtimeName, RuntimeVersion: strings.TrimPrefix(s.o.Version, "v"), RuntimeApiVersion: criVersion}, nil
}

// Status says whether pods can be run, and what the handlers can do.
func (s about) Status(_ context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	network := &cri.RuntimeCondition{Type: cri.NetworkReady, Status: true}
	if err := s.o.Network.Status(); err != nil {
		network = &cri.RuntimeCondition{Type: cri.NetworkReady, Reason: "NetworkPluginNotReady", Message: "Network plugin returns error: " + err.Error()}
	}
	resp := &cri.StatusResponse{
		// Calls are answered only once recovery is complete, so being asked is being ready.
		Status:   &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{{Type: cri.RuntimeReady, Status: true}, network}},
		Features: s.o.Features,
	}
	for _, h := range append([]Handler{s.o.Default}, s.o.Handlers...) {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &cri.RuntimeHandler{
			Name:     h.Name,
			Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: h.RecursiveReadOnlyMounts, UserNamespaces: h.UserNamespaces},
		})
	}
	if r.GetVerbose() && s.o.Info != nil {
		resp.Info = s.o.Info()
	}
	return resp, nil
}

// RuntimeConfig tells kubelet the cgroup driver.
func (s about) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	driver := cri.CgroupDriver_CGROUPFS
	if s.o.SystemdCgroups {
		driver = cri.CgroupDriver_SYSTEMD
	}
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the node's pod CIDRs, comma-separated for two families. An empty one changes nothing.
func (s about) UpdateRuntimeConfig(_ context.Context, r *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	const field = "runtime_config.network_config.pod_cidr"
	text := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if text == "" {
		return &cri.UpdateRuntimeConfigResponse{}, nil
	}
	var cidrs []netip.Prefix
	for t := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(t))
		if err != nil {
			return nil, errs.Newf(errs.Invalid, "%s: %q is no CIDR", field, t)
		}
		if slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Addr().Is4() == p.Addr().Is4() }) {
			return nil, errs.Newf(errs.Invalid, "%s: %q has more than one CIDR of a family", field, text)
		}
		cidrs = append(cidrs, p.Masked())
	}
	if err := s.o.Network.SetPodCIDRs(cidrs); err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	return &cri.UpdateRuntimeConfigResponse{}, nil
}
