// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/census"
	"crishim.dev/internal/testnode/testimage"
)

// settleWithin is how long the kernel and the daemon get to put things away.
const settleWithin = 15 * time.Second

// maxLines bounds what Leaks says: a whole image left behind is one fault, not a thousand.
const maxLines = 20

// warmUp runs one pod and removes it, so that what the first pod brings and the node keeps (a bridge, a table of rules, a
// few descriptors) is there before stock is taken.
func (n *Node) warmUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	status, err := n.Runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask status: %w", err)
	}
	for _, c := range status.GetStatus().GetConditions() {
		if !c.GetStatus() {
			return nil // a node that is not ready, for a test that wants to see it
		}
	}
	config := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "warm-up", Namespace: "testnode", Uid: "warm-up"}, Linux: &cri.LinuxPodSandboxConfig{}}
	config.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 65000}}
	pod, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return fmt.Errorf("run first pod: %w", err)
	}
	err = n.warmUpContainer(ctx, pod.GetPodSandboxId(), config)
	_, terr := n.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
	_, serr := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()})
	_, rerr := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()})
	if err := errors.Join(err, terr, serr, rerr); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	return waitFor(func() error { return n.mentions(pod.GetPodSandboxId()) })
}

// mentions gives an error while anything on the node has the name of a pod, whose last traces go in the background.
func (n *Node) mentions(id string) error {
	nothing, err := census.Take(census.Options{})
	if err != nil {
		return err
	}
	all, err := census.Take(n.look())
	if err != nil {
		return err
	}
	for _, l := range census.Diff(nothing, all) {
		if strings.Contains(l, id) {
			return fmt.Errorf("pod %s is removed, but there is %s", id, l)
		}
	}
	return nil
}

// warmUpContainer runs one container in the pod, when there is an image for it, and removes the image.
func (n *Node) warmUpContainer(ctx context.Context, pod string, config *cri.PodSandboxConfig) error {
	if n.empty {
		return nil
	}
	image := &cri.ImageSpec{Image: testimage.Busybox}
	there, err := n.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: image})
	if err != nil {
		return fmt.Errorf("ask for image: %w", err)
	}
	if _, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: image}); err != nil {
		return fmt.Errorf("pull first image: %w", err)
	}
	made, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "warm-up"}, Image: image, Command: []string{"sleep", "600"}, Linux: &cri.LinuxContainerConfig{},
	}})
	if err != nil {
		return fmt.Errorf("create first container: %w", err)
	}
	if _, err := n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		return fmt.Errorf("start first container: %w", err)
	}
	if _, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: made.GetContainerId(), Cmd: []string{"true"}, Timeout: 10}); err != nil {
		return fmt.Errorf("first exec: %w", err)
	}
	if _, err := n.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		return fmt.Errorf("remove first container: %w", err)
	}
	if there.GetImage() != nil {
		return nil
	}
	if _, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image}); err != nil {
		return fmt.Errorf("remove first image: %w", err)
	}
	return nil
}

// Mark makes the present state of the node what Leaks compares with, once it is warm and stands still.
func (n *Node) Mark(ctx context.Context) error {
	if !n.cold {
		if err := n.warmUp(ctx); err != nil {
			return err
		}
	}
	images, err := n.Images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	n.images = nil
	for _, i := range images.GetImages() {
		n.images = append(n.images, i.GetId())
	}
	n.descriptors = make(map[string]marked)
	for end := time.Now().Add(settleWithin); ; {
		c, err := census.Take(n.look())
		if err != nil {
			return err
		}
		<-time.After(300 * time.Millisecond)
		again, err := census.Take(n.look())
		if err != nil {
			return err
		}
		moved := census.Diff(c, again)
		if len(moved) == 0 {
			n.census = again
			return n.markDescriptors()
		}
		if time.Now().After(end) {
			return fmt.Errorf("take stock: the node does not stand still: %q", moved)
		}
	}
}

// Leaks compares the node with what it was at the last Mark.
func (n *Node) Leaks(ctx context.Context) []string {
	if n.census == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	lines := census.Settle(ctx, n.census, n.look())
	for role, pid := range n.processes() {
		// One that has been replaced since is another process, with what it has opened so far.
		if m, ok := n.descriptors[role]; ok && m.pid == pid {
			lines = append(lines, census.Settle(ctx, m.census, descriptorsOf(role, pid))...)
		}
	}
	if len(lines) > maxLines {
		lines = append(lines[:maxLines:maxLines], fmt.Sprintf("and %d more", len(lines)-maxLines))
	}
	return lines
}

// removeImages removes what was pulled since the last Mark.
func (n *Node) removeImages(ctx context.Context) []string {
	images, err := n.Images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return []string{fmt.Sprintf("list images: %v", err)}
	}
	var out []string
	for _, i := range images.GetImages() {
		if slices.Contains(n.images, i.GetId()) {
			continue
		}
		if _, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.GetId()}}); err != nil {
			out = append(out, fmt.Sprintf("remove image %v: %v", i.GetRepoTags(), err))
		}
	}
	return out
}

// marked is what one of the runtime's processes had open at the last Mark.
type marked struct {
	pid    int
	census *census.Census
}

// processes are the runtime's own, by role.
func (n *Node) processes() map[string]int {
	out := n.Keepers()
	if pid := n.DaemonPID(); pid != 0 {
		out["daemon"] = pid
	}
	return out
}

func (n *Node) markDescriptors() error {
	for role, pid := range n.processes() {
		c, err := census.Take(descriptorsOf(role, pid))
		if err != nil {
			return err
		}
		n.descriptors[role] = marked{pid, c}
	}
	return nil
}

// descriptorsOf looks at what one process has open, without what the Go runtime makes when it first needs to wait.
func descriptorsOf(role string, pid int) census.Options {
	return census.Options{FDsOf: map[string]int{role: pid}, Ignore: func(_, object string) bool {
		return strings.HasSuffix(object, " to anon_inode:[eventpoll]") || strings.HasSuffix(object, " to anon_inode:[eventfd]")
	}}
}

// zygotes are the children of a keeper from which it forks containers: parts of it, made anew as need be.
func zygotes(keeper int) []int {
	var out []int
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	for _, s := range stats {
		text, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		var pid, parent int
		if _, err := fmt.Sscanf(string(text), "%d (shim-zygote) %1s %d", &pid, new(string), &parent); err == nil && parent == keeper {
			out = append(out, pid)
		}
	}
	return out
}

// look says what belongs to the node, its processes' descriptors aside.
func (n *Node) look() census.Options {
	own := map[int]string{os.Getpid(): "test"}
	mounts := map[string]int{"the node": 0}
	for role, pid := range n.processes() {
		own[pid] = role
		mounts[role] = pid
		for _, z := range zygotes(pid) {
			own[z] = "zygote"
		}
	}
	return census.Options{
		MountsOf: mounts, NetNamespaces: true, Net: true, Descendants: []int{1},
		Cgroups: []string{"/sys/fs/cgroup/*" + n.CgroupParent, "/sys/fs/cgroup" + n.CgroupParent},
		Dirs:    []string{n.State, n.Root, n.LogDir()},
		Ignore: func(kind, object string) bool {
			switch kind {
			case "process":
				var pid int
				_, err := fmt.Sscanf(object, "%d ", &pid)
				return err == nil && own[pid] != ""
			case "file":
				// The first is made for the first container with a volume of its image, and empty; the others mark layers that are
				// on disk by now.
				return object == n.Root+"/containers/" || strings.HasPrefix(object, n.Root+"/snapshots/layers/") && strings.Contains(object, "/durable")
			}
			return false
		},
	}
}
