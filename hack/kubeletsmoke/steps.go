// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// manifest is the static pod: an init container writes what the web server's container then has in its volume.
const manifest = `apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 5
  volumes:
  - {name: shared, emptyDir: {}}
  initContainers:
  - name: init
    image: registry.k8s.io/e2e-test-images/busybox:1.29-2
    command: [sh, -c, "echo from init > /shared/file"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: web
    image: registry.k8s.io/e2e-test-images/nginx:1.14-2
    ports: [{containerPort: 80}]
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
    volumeMounts: [{name: shared, mountPath: /shared, readOnly: true}]
    env:
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    readinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1}
    livenessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1, failureThreshold: 2}
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo started > /tmp/hook"]}}}
`

// pods is the part of the kubelet's pod list that the steps read.
type pods struct {
	Items []struct {
		Metadata struct{ Name string }
		Status   struct {
			Phase             string
			PodIP             string
			ContainerStatuses []struct {
				Ready        bool
				RestartCount int
				ContainerID  string
				LastState    struct {
					Terminated *struct {
						ExitCode int
						Reason   string
					}
				}
			}
		}
	}
}

// step is one thing that must hold.
type step struct {
	name string
	f    func(context.Context) error
}

func (k *kubelet) steps() []step {
	return []step{
		{"kubelet is healthy and likes the runtime", k.healthy},
		{"a static pod with an init container and a volume becomes ready", k.ready},
		{"its log comes through the kubelet's API", k.logs},
		{"an exec comes through the kubelet's API", k.execs},
		{"its liveness probe fails: the container is restarted", k.restarts},
		{"the kubelet restarts and adopts what runs", k.adopts},
		{"stats of the pod come through the kubelet's API", k.stats},
		{"its file goes: the pod goes", k.goes},
	}
}

func (k *kubelet) healthy(ctx context.Context) error {
	return k.until(ctx, 60*time.Second, func() error {
		_, err := k.call(ctx, http.MethodGet, "/healthz")
		return err
	})
}

// web is the status of the static pod's one container.
func (k *kubelet) web(ctx context.Context) (ready bool, restarts int, id string, err error) {
	text, err := k.call(ctx, http.MethodGet, "/pods")
	if err != nil {
		return false, 0, "", err
	}
	var list pods
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return false, 0, "", fmt.Errorf("parse pods: %w", err)
	}
	for _, p := range list.Items {
		if p.Metadata.Name == "web-"+nodeName && len(p.Status.ContainerStatuses) == 1 {
			s := p.Status.ContainerStatuses[0]
			return s.Ready, s.RestartCount, strings.TrimPrefix(s.ContainerID, "shim://"), nil
		}
	}
	return false, 0, "", fmt.Errorf("pod web-%s has no status yet", nodeName)
}

func (k *kubelet) ready(ctx context.Context) error {
	if err := os.WriteFile(k.path("manifests/web.yaml"), []byte(manifest), 0o600); err != nil {
		return err
	}
	return k.until(ctx, 60*time.Second, func() error {
		ready, _, _, err := k.web(ctx)
		if err == nil && !ready {
			err = errors.New("not ready")
		}
		return err
	})
}

func (k *kubelet) logs(ctx context.Context) error {
	return k.until(ctx, 20*time.Second, func() error {
		text, err := k.call(ctx, http.MethodGet, "/containerLogs/default/web-"+nodeName+"/web")
		if err == nil && !strings.Contains(text, "start worker processes") {
			err = fmt.Errorf("log %q", text)
		}
		return err
	})
}

// execs uses /run, which the kubelet serves by ExecSync.
func (k *kubelet) execs(ctx context.Context) error {
	text, err := k.call(ctx, http.MethodPost, "/run/default/web-"+nodeName+"/web?cmd="+url.QueryEscape("cat /shared/file /tmp/hook"))
	if err == nil && text != "from init\nstarted\n" {
		err = fmt.Errorf("volume and hook hold %q", text)
	}
	return err
}

func (k *kubelet) restarts(ctx context.Context) error {
	_, before, old, err := k.web(ctx)
	if err != nil {
		return err
	}
	if _, err := k.node.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: old, Cmd: []string{"touch", "/tmp/unhealthy"}, Timeout: 10}); err != nil {
		return err
	}
	return k.until(ctx, 60*time.Second, func() error {
		ready, restarts, id, err := k.web(ctx)
		if err == nil && (!ready || restarts != before+1 || id == old) {
			err = fmt.Errorf("ready %v, %d restarts, container %s", ready, restarts, id)
		}
		return err
	})
}

func (k *kubelet) adopts(ctx context.Context) error {
	_, before, old, err := k.web(ctx)
	if err != nil {
		return err
	}
	if err := k.stop(); err != nil {
		return err
	}
	if err := k.start(ctx); err != nil {
		return err
	}
	return k.until(ctx, 60*time.Second, func() error {
		ready, restarts, id, err := k.web(ctx)
		if err == nil && (!ready || restarts != before || id != old) {
			err = fmt.Errorf("ready %v, %d restarts, container %s; before %d, %s", ready, restarts, id, before, old)
		}
		return err
	})
}

func (k *kubelet) stats(ctx context.Context) error {
	return k.until(ctx, 60*time.Second, func() error {
		text, err := k.call(ctx, http.MethodGet, "/stats/summary")
		if err != nil {
			return err
		}
		var summary struct {
			Pods []struct {
				PodRef     struct{ Name string }
				Containers []struct {
					Name   string
					Memory struct{ WorkingSetBytes uint64 }
				}
			}
		}
		if err := json.Unmarshal([]byte(text), &summary); err != nil {
			return fmt.Errorf("parse stats: %w", err)
		}
		for _, p := range summary.Pods {
			if p.PodRef.Name == "web-"+nodeName && len(p.Containers) == 1 && p.Containers[0].Memory.WorkingSetBytes > 0 {
				return nil
			}
		}
		return fmt.Errorf("no memory of the pod in %d pods", len(summary.Pods))
	})
}

func (k *kubelet) goes(ctx context.Context) error {
	if err := os.Remove(k.path("manifests/web.yaml")); err != nil {
		return err
	}
	return k.until(ctx, 90*time.Second, func() error {
		list, err := k.node.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
		}})
		if err == nil && len(list.GetContainers()) > 0 {
			err = fmt.Errorf("%d containers still run", len(list.GetContainers()))
		}
		return err
	})
}
