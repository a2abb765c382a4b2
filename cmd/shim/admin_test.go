// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/proto/admin"
)

// ListPodSandboxStats uses 250 ms of CPU in each second, and as much memory as it was asked.
func (d *daemon) ListPodSandboxStats(context.Context, *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	d.asked++
	cpu := &cri.CpuUsage{Timestamp: int64(d.asked) * 1e9, UsageCoreNanoSeconds: &cri.UInt64Value{Value: uint64(d.asked) * 250e6}}
	memory := &cri.MemoryUsage{WorkingSetBytes: &cri.UInt64Value{Value: uint64(d.asked) << 20}}
	return &cri.ListPodSandboxStatsResponse{Stats: []*cri.PodSandboxStats{{
		Attributes: &cri.PodSandboxAttributes{Id: "aaaaaaaaaaaaaaaaaaaa", Metadata: &cri.PodSandboxMetadata{Namespace: "default", Name: "web"}},
		Linux: &cri.LinuxPodSandboxStats{
			Cpu: cpu, Memory: memory, Process: &cri.ProcessUsage{ProcessCount: &cri.UInt64Value{Value: 3}},
			Network: &cri.NetworkUsage{DefaultInterface: &cri.NetworkInterfaceUsage{RxBytes: &cri.UInt64Value{Value: 1024}, TxBytes: &cri.UInt64Value{}}},
			Containers: []*cri.ContainerStats{{
				Attributes: &cri.ContainerAttributes{Id: "cccccccccccccccccccc", Metadata: &cri.ContainerMetadata{Name: "nginx"}},
				Cpu:        cpu, Memory: memory, WritableLayer: &cri.FilesystemUsage{UsedBytes: &cri.UInt64Value{Value: 4096}},
			}},
		},
	}}}, nil
}

func (d *daemon) GetContainerEvents(_ *cri.GetEventsRequest, to grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	for _, e := range d.events {
		if err := to.Send(e); err != nil {
			return err
		}
	}
	return d.eventsEnd
}

func (d *adminDaemon) Why(_ context.Context, r *admin.WhyRequest) (*admin.WhyResponse, error) {
	resp := &admin.WhyResponse{}
	for _, a := range d.activities {
		if strings.HasPrefix(a.PodSandboxId, r.PodSandboxId) {
			resp.Activities = append(resp.Activities, a)
		}
	}
	return resp, nil
}

func TestStats(t *testing.T) {
	flags := append(start(t, newDaemon()), "--interval", "1ms")
	const header = "ID            NAME         CPU    MEMORY   PROCESSES  RECEIVED  SENT  DISK\n"
	const pod = "aaaaaaaaaaaa  default/web  0.250  2.0 MiB  3          1.0 KiB   0 B   -\n"
	const container = "cccccccccccc  └ nginx      0.250  2.0 MiB  -          -         -     4.0 KiB\n"
	if got, err := run(t, "", append([]string{"stats"}, flags...)...); err != nil || got != header+pod+container {
		t.Errorf("stats: %v\n%s", err, got)
	}
	got, err := run(t, "", append([]string{"stats", "cccc", "-o", "json"}, flags...)...)
	if err != nil || strings.Contains(got, "default_interface") || !strings.Contains(got, `"nginx"`) {
		t.Errorf("stats of a container: %v\n%s", err, got)
	}
	if _, err := run(t, "", append([]string{"stats", "nothing"}, flags...)...); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("stats of an unknown id: %v", err)
	}
}

func TestEvents(t *testing.T) {
	d := newDaemon()
	flags := start(t, d)
	at := time.Date(2026, 11, 1, 12, 0, 0, 5e6, time.Local)
	pod := &cri.PodSandboxStatus{Metadata: &cri.PodSandboxMetadata{Namespace: "default", Name: "web"}}
	d.events = []*cri.ContainerEventResponse{
		{ContainerId: "aaaaaaaaaaaaaaaaaaaa", ContainerEventType: cri.ContainerEventType_CONTAINER_CREATED_EVENT, CreatedAt: at.UnixNano(), PodSandboxStatus: pod},
		{
			ContainerId: "cccccccccccccccccccc", ContainerEventType: cri.ContainerEventType_CONTAINER_STOPPED_EVENT, CreatedAt: at.UnixNano(), PodSandboxStatus: pod,
			ContainersStatuses: []*cri.ContainerStatus{{Id: "cccccccccccccccccccc", Metadata: &cri.ContainerMetadata{Name: "nginx"}, ExitCode: 137, Reason: "OOMKilled"}},
		},
	}
	stamp := at.Format("2006-01-02T15:04:05.000Z07:00")
	want := stamp + "  created  aaaaaaaaaaaa  default/web\n" + stamp + "  stopped  cccccccccccc  default/web/nginx  exited 137 (OOMKilled)\n"
	if got, err := run(t, "", append([]string{"events"}, flags...)...); err != nil || got != want {
		t.Errorf("events: %v\n%q\nwant\n%q", err, got, want)
	}
	got, err := run(t, "", append([]string{"events", "-o", "json"}, flags...)...)
	if err != nil || strings.Count(got, "\n") != 2 {
		t.Fatalf("as JSON: %v\n%s", err, got)
	}
	for line := range strings.Lines(got) {
		var e struct {
			Kind string `json:"container_event_type"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || !strings.HasPrefix(e.Kind, "CONTAINER_") {
			t.Errorf("%v in %s", err, line)
		}
	}
	d.eventsEnd = status.Error(codes.ResourceExhausted, "too slow")
	if _, err := run(t, "", append([]string{"events"}, flags...)...); err == nil || err.Error() != "too slow" {
		t.Errorf("a lost consumer: %v", err)
	}
}

func TestWhy(t *testing.T) {
	d := newDaemon()
	flags := start(t, d)
	why := func(args ...string) string {
		t.Helper()
		got, err := run(t, "", append(append([]string{"why"}, args...), flags...)...)
		if err != nil {
			t.Errorf("why %q: %v", args, err)
		}
		return got
	}
	if got := why(); got != "Nothing is under way.\n" {
		t.Errorf("idle: %q", got)
	}
	d.admin.activities = []*admin.Activity{{
		PodSandboxId: "aaaaaaaaaaaaaaaaaaaa", ContainerId: "cccccccccccccccccccc", Operation: "stop", Stage: "wait for the end after SIGTERM",
		Since: time.Now().Add(-90 * time.Second).UnixNano(),
	}, {PodSandboxId: "eeeeeeeeeeeeeeeeeeee", Operation: "run", Stage: "attach to the network", Since: time.Now().Add(-3 * day).UnixNano()}}
	if got := why(); !strings.Contains(got, "attach to the network           3d\n") || !strings.Contains(got, "wait for the end after SIGTERM  1m30s\n") {
		t.Errorf("all: %s", got)
	}
	got := why("aaaa")
	for _, want := range []string{"wait for the end after SIGTERM", "pod default/web: ready\n", "container nginx: running\n", "container init: exited 128 (StartError): no such file\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "attach to the network") {
		t.Errorf("another pod's operation:\n%s", got)
	}
	if got := why("eeee"); !strings.Contains(got, "attach to the network") {
		t.Errorf("a pod that has no status yet:\n%s", got)
	}
	var e struct {
		Operations []any
		Pod        struct{ ID, State string }
	}
	if got := why("-o", "json", "bbbb"); json.Unmarshal([]byte(got), &e) != nil || e.Pod.ID != "bbbbbbbbbbbbbbbbbbbb" || !strings.HasPrefix(e.Pod.State, "SANDBOX_") || e.Operations == nil {
		t.Errorf("as JSON: %s", got)
	}
	if _, err := run(t, "", append([]string{"why", "nothing"}, flags...)...); err == nil || err.Error() != "no such pod" {
		t.Errorf("why of an unknown pod: %v", err)
	}
}

// TestAbsentDaemon: what to do is said, whatever the reason.
func TestAbsentDaemon(t *testing.T) {
	dir := t.TempDir()
	flags := []string{"--config", write(t, dir, "config.toml", ""), "--socket", filepath.Join(dir, "shim.sock")}
	says := func(when, want string) {
		t.Helper()
		for _, args := range [][]string{{"ps"}, {"check"}, {"why"}, {"stats"}, {"events"}, {"plan", "x"}, {"inspect", "x"}, {"image", "list"}} {
			_, err := run(t, "", append(args, flags...)...)
			if err == nil || !strings.HasPrefix(err.Error(), "the daemon does not answer on "+dir) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "desc") {
				t.Errorf("%s: %q: %v", when, args, err)
			}
		}
	}
	says("no socket", "shim serve")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "shim.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	says("a dead daemon's socket", "--socket")
}

// TestUnavailableFromTheDaemon: what a daemon that is there can't reach is not the daemon's absence.
func TestUnavailableFromTheDaemon(t *testing.T) {
	flags := start(t, newDaemon())
	if _, err := run(t, "", append([]string{"image", "pull", "far"}, flags...)...); err == nil || err.Error() != "pull image far: registry is away" {
		t.Errorf("got %v", err)
	}
}
