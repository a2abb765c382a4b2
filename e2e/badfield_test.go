// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/crifield"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// odd are values that no caller should send: empty, unknown, oversized, malformed. Those of maps and lists have one element.
func odd(f protoreflect.FieldDescriptor) []any {
	switch f.Kind() {
	case protoreflect.StringKind:
		return []any{"", "no-such", "../../no-such", "a b\nc", "a\x00b", strings.Repeat("x", 300), strings.Repeat("x", 70<<10)}
	case protoreflect.BytesKind:
		return []any{[]byte{}, []byte("a\x00b"), make([]byte, 200<<10)}
	case protoreflect.Int32Kind:
		return []any{int32(0), int32(-1), int32(math.MinInt32), int32(math.MaxInt32)}
	case protoreflect.Int64Kind:
		return []any{int64(0), int64(-1), int64(1), int64(math.MinInt64), int64(math.MaxInt64)}
	case protoreflect.Uint32Kind:
		return []any{uint32(0), uint32(math.MaxUint32)}
	case protoreflect.Uint64Kind:
		return []any{uint64(0), uint64(math.MaxUint64)}
	case protoreflect.EnumKind:
		return []any{protoreflect.EnumNumber(0), protoreflect.EnumNumber(-1), protoreflect.EnumNumber(999)}
	default:
		return []any{true, false}
	}
}

// set puts a value at a path, making what is missing on the way.
func set(m protoreflect.Message, path []string, value any) {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	v := protoreflect.ValueOf(value)
	switch {
	case f.IsMap():
		m.Mutable(f).Map().Set(v.MapKey(), v) // the value as its own key
	case f.IsList() && len(path) == 1:
		m.Mutable(f).List().Append(v)
	case f.IsList():
		l := m.Mutable(f).List()
		if l.Len() == 0 {
			l.AppendMutable()
		}
		set(l.Get(0).Message(), path[1:], value)
	case len(path) == 1:
		m.Set(f, v)
	default:
		set(m.Mutable(f).Message(), path[1:], value)
	}
}

// descriptor finds the field at a path.
func descriptor(m protoreflect.MessageDescriptor, path []string) protoreflect.FieldDescriptor {
	f := m.Fields().ByName(protoreflect.Name(path[0]))
	if len(path) == 1 {
		if f.IsMap() {
			return f.MapValue()
		}
		return f
	}
	return descriptor(f.Message(), path[1:])
}

// checkAnswer fails unless an odd request is answered with success or with a code that blames it, a field of it by name.
func checkAnswer(t *testing.T, f crifield.Field, value any, err error) {
	t.Helper()
	shown := value
	if s, ok := value.(string); ok && len(s) > 40 {
		shown = s[:40] + "…"
	}
	if b, ok := value.([]byte); ok {
		shown = len(b)
	}
	switch code := status.Code(err); code {
	case codes.OK, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Unimplemented, codes.DeadlineExceeded:
	case codes.InvalidArgument:
		// Itself, or a message that it is in.
		if !slices.ContainsFunc(strings.Split(f.Path, "."), func(name string) bool {
			return name != "config" && name != "linux" && strings.Contains(err.Error(), name)
		}) {
			t.Errorf("%s = %q: %v; want the field named", f.Name(), shown, err)
		}
	default:
		t.Errorf("%s = %q: %v; want a code that tells whose fault it is", f.Name(), shown, err)
	}
}

// Every field of every request with odd values: whatever comes of it, nobody is left guessing, and nothing is left behind.
func TestOddFields(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	ctr := pod.Run(testimage.Busybox, kit.Sleep())
	dir := t.TempDir()
	for _, f := range crifield.All() {
		path := strings.Split(f.Path, ".")
		base := oddBase(t, n, pod, ctr, f.RPC)
		if f.Path == "" || base == nil {
			continue
		}
		for _, value := range odd(descriptor(base.ProtoReflect().Descriptor(), path)) {
			m := oddBase(t, n, pod, ctr, f.RPC)
			switch s, _ := value.(string); {
			case s == "no-such" && slices.Contains(path, "host_path"): // it would be made, on the machine of the test
				value = filepath.Join(dir, s)
			case s == "no-such" && slices.Contains(path, "cgroup_parent"):
				value = n.CgroupParent + "/" + s
			}
			set(m.ProtoReflect(), path, value)
			checkAnswer(t, f, value, oddCall(t, n, f.RPC, m))
		}
	}
}

// oddBase is a request that would succeed; nil for RPCs whose requests say nothing.
func oddBase(t *testing.T, n *testnode.Node, pod *kit.Pod, ctr *kit.Container, rpc string) proto.Message {
	image := &cri.ImageSpec{Image: testimage.Busybox}
	switch rpc {
	case "RunPodSandbox":
		return &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n)}
	case "CreateContainer":
		return &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: kit.ContainerConfig(t, testimage.Busybox, kit.Sleep()), SandboxConfig: proto.CloneOf(pod.Config)}
	case "UpdateContainerResources":
		return &cri.UpdateContainerResourcesRequest{ContainerId: ctr.ID, Linux: &cri.LinuxContainerResources{}}
	case "UpdatePodSandboxResources":
		return &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod.ID}
	case "ExecSync":
		return &cri.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{"true"}, Timeout: 5}
	case "Exec":
		return &cri.ExecRequest{ContainerId: ctr.ID, Cmd: []string{"true"}, Stdout: true}
	case "Attach":
		return &cri.AttachRequest{ContainerId: ctr.ID, Stdout: true}
	case "PortForward":
		return &cri.PortForwardRequest{PodSandboxId: pod.ID}
	case "PullImage":
		return &cri.PullImageRequest{Image: image}
	case "ImageStatus":
		return &cri.ImageStatusRequest{Image: image}
	case "ListImages":
		return &cri.ListImagesRequest{}
	case "RemoveImage": // not the image that others use
		return &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "localhost/test/no-such:1"}}
	case "StopContainer": // nor their containers
		return &cri.StopContainerRequest{ContainerId: "no-such-container"}
	case "ContainerStatus":
		return &cri.ContainerStatusRequest{ContainerId: ctr.ID}
	case "PodSandboxStatus":
		return &cri.PodSandboxStatusRequest{PodSandboxId: pod.ID}
	case "UpdateRuntimeConfig": // it changes the node for all
		return nil
	}
	return oddEmpty(rpc)
}

// oddEmpty is an RPC's empty request; nil for one that answers by a stream.
func oddEmpty(rpc string) proto.Message {
	m := oddMethod(rpc)
	if m == nil || m.IsStreamingServer() {
		return nil
	}
	t, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		return nil
	}
	return t.New().Interface()
}

func oddMethod(rpc string) protoreflect.MethodDescriptor {
	services := cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		if m := services.Get(i).Methods().ByName(protoreflect.Name(rpc)); m != nil {
			return m
		}
	}
	return nil
}

// oddCall makes a call and undoes what it did.
func oddCall(t *testing.T, n *testnode.Node, rpc string, m proto.Message) error {
	ctx, cancel := context.WithTimeout(t.Context(), kit.Timeout)
	defer cancel()
	switch r := m.(type) {
	case *cri.RunPodSandboxRequest:
		made, err := n.Runtime.RunPodSandbox(ctx, r)
		if err == nil {
			_, err = n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: made.GetPodSandboxId()})
		}
		return err
	case *cri.CreateContainerRequest:
		made, err := n.Runtime.CreateContainer(ctx, r)
		if err != nil {
			return err
		}
		_, errStart := n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()})
		if _, err := n.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
			t.Errorf("remove: %v", err)
		}
		return errStart
	}
	method := oddMethod(rpc)
	out, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		return err
	}
	return n.Conn.Invoke(ctx, "/"+string(method.Parent().FullName())+"/"+rpc, m, out.New().Interface(), grpc.MaxCallSendMsgSize(16<<20))
}
