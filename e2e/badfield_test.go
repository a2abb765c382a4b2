// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
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

// oddity is a field with a value that no caller should send.
type oddity struct {
	crifield.Field
	value any
}

func (o oddity) String() string {
	switch v := o.value.(type) {
	case string:
		return fmt.Sprintf("%s = %q (%d bytes)", o.Name(), v[:min(len(v), 40)], len(v))
	case []byte:
		return fmt.Sprintf("%s = %d bytes", o.Name(), len(v))
	}
	return fmt.Sprintf("%s = %v", o.Name(), o.value)
}

// isNamed says whether a text has the name of the field, or of a message that it is in.
func (o oddity) isNamed(text string) bool {
	return slices.ContainsFunc(strings.Split(o.Path, "."), func(name string) bool {
		return name != "config" && name != "linux" && strings.Contains(text, name)
	})
}

// oddities are all odd values of all fields of an RPC's request. dir is a directory of the test.
func oddities(n *testnode.Node, base proto.Message, fields []crifield.Field, dir string) []oddity {
	var out []oddity
	for _, f := range fields {
		if f.Path == "" {
			continue
		}
		path := strings.Split(f.Path, ".")
		for _, value := range odd(descriptor(base.ProtoReflect().Descriptor(), path)) {
			switch s, _ := value.(string); {
			case s == "no-such" && slices.Contains(path, "host_path"): // it would be made, on the machine of the test
				value = filepath.Join(dir, s)
			case s == "no-such" && slices.Contains(path, "cgroup_parent"):
				value = n.CgroupParent + "/" + s
			}
			out = append(out, oddity{f, value})
		}
	}
	return out
}

// checkAnswer fails unless a request with odd fields is answered with success or with a code that blames one of them, by name.
func checkAnswer(t *testing.T, rpc string, err error, of ...oddity) {
	t.Helper()
	code := status.Code(err)
	// No checkpoints are made here: that alone may be said not to exist, and nothing else.
	if checkpoints := strings.HasPrefix(rpc, "Checkpoint") || strings.HasPrefix(rpc, "Restore"); checkpoints || code == codes.Unimplemented {
		if !checkpoints || code != codes.Unimplemented || !strings.Contains(err.Error(), rpc) {
			t.Errorf("%s with %v: %v; want Unimplemented of checkpoints alone, and the RPC named", rpc, of, err)
		}
		return
	}
	switch code {
	case codes.OK, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.DeadlineExceeded:
	case codes.InvalidArgument:
		if len(of) > 0 && !slices.ContainsFunc(of, func(o oddity) bool { return o.isNamed(err.Error()) }) {
			t.Errorf("%v: %v; want the field named", of, err)
		}
	default:
		t.Errorf("%s with %v: %v; want a code that tells whose fault it is", rpc, of, err)
	}
}

// Every field of every request of every RPC with odd values, then two at once: whatever comes of it, nobody is left guessing, and
// nothing is left behind.
func TestOddFields(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	ctr := pod.Run(testimage.Busybox, kit.Sleep())
	dir := t.TempDir()
	of := map[string][]crifield.Field{}
	for _, f := range crifield.All() {
		of[f.RPC] = append(of[f.RPC], f)
	}
	for rpc, fields := range of {
		call := func(oddities ...oddity) {
			m := oddBase(t, n, pod, ctr, rpc)
			for _, o := range oddities {
				set(m.ProtoReflect(), strings.Split(o.Path, "."), o.value)
			}
			checkAnswer(t, rpc, oddCall(t, pod, rpc, m), oddities...)
		}
		call()
		all := oddities(n, oddBase(t, n, pod, ctr, rpc), fields, dir)
		for _, o := range all {
			call(o)
		}
		random := rand.New(rand.NewPCG(1, 2))
		for range len(all) / 3 {
			one, other := all[random.IntN(len(all))], all[random.IntN(len(all))]
			if !isBelow(one.Path, other.Path) {
				call(one, other)
			}
		}
	}
}

// isBelow says whether two paths lead to one field, or to two of which only one can be set.
func isBelow(one, other string) bool {
	return one == other || strings.HasPrefix(one, other+".") || strings.HasPrefix(other, one+".")
}

// oddBase is a request that would succeed, or find nothing.
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
	}
	made, err := protoregistry.GlobalTypes.FindMessageByName(oddMethod(rpc).Input().FullName())
	if err != nil {
		t.Fatal(err)
	}
	return made.New().Interface()
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
func oddCall(t *testing.T, pod *kit.Pod, rpc string, m proto.Message) error {
	n := pod.Node
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
	case *cri.GetEventsRequest:
		return firstEvent(ctx, t, pod, r)
	}
	method := oddMethod(rpc)
	out, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		return err
	}
	name, limit := "/"+string(method.Parent().FullName())+"/"+rpc, grpc.MaxCallSendMsgSize(16<<20)
	if !method.IsStreamingServer() {
		return n.Conn.Invoke(ctx, name, m, out.New().Interface(), limit)
	}
	stream, err := n.Conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name, limit)
	if err == nil {
		err = errors.Join(stream.SendMsg(m), stream.CloseSend())
	}
	for err == nil {
		err = stream.RecvMsg(out.New().Interface())
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// firstEvent subscribes and makes containers until an event comes.
func firstEvent(ctx context.Context, t *testing.T, pod *kit.Pod, r *cri.GetEventsRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := pod.Node.Runtime.GetContainerEvents(ctx, r)
	if err != nil {
		return err
	}
	heard := make(chan error, 1)
	go func() {
		_, err := events.Recv()
		heard <- err
	}()
	for {
		select {
		case err := <-heard:
			return err
		default:
			c := pod.Create(testimage.Busybox, kit.Sleep())
			c.Remove()
		}
	}
}
