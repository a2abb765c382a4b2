// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

func TestCodes(t *testing.T) {
	live := t.Context()
	canceled, cancel := context.WithCancel(live)
	cancel()
	expired, cancel := context.WithDeadline(live, time.Now().Add(-time.Second))
	defer cancel()
	wrap := func(err error) error { return fmt.Errorf("start container web: %w", err) }
	for _, tt := range []struct {
		name string
		ctx  context.Context
		err  error
		want codes.Code
	}{
		{"not found", live, errs.NotFound, codes.NotFound},
		{"already exists", live, errs.AlreadyExists, codes.AlreadyExists},
		{"invalid", live, errs.Invalid, codes.InvalidArgument},
		{"precondition", live, errs.Precondition, codes.FailedPrecondition},
		{"unavailable", live, errs.Unavailable, codes.Unavailable},
		{"exhausted", live, errs.Exhausted, codes.ResourceExhausted},
		{"denied", live, errs.Denied, codes.PermissionDenied},
		{"unsupported", live, errs.Unsupported, codes.FailedPrecondition},
		{"deadline", live, errs.Deadline, codes.DeadlineExceeded},
		{"canceled inside", live, context.Canceled, codes.Canceled},
		{"expired inside", live, context.DeadlineExceeded, codes.DeadlineExceeded},
		{"unavailable because of a timeout inside", live, errs.As(errs.Unavailable, context.DeadlineExceeded), codes.Unavailable},
		{"caller gone", canceled, errs.As(errs.Unavailable, context.Canceled), codes.Canceled},
		{"caller's deadline", expired, errs.As(errs.Unavailable, context.DeadlineExceeded), codes.DeadlineExceeded},
		{"caller gone, another cause", canceled, errs.NotFound, codes.NotFound},
		{"unclassified", live, errors.New("input/output error"), codes.Unknown},
		{"a status already", live, status.Error(codes.Aborted, "x"), codes.Aborted},
	} {
		if got := status.Code(toStatus(tt.ctx, wrap(tt.err))); got != tt.want {
			t.Errorf("%s: %s; want %s", tt.name, got, tt.want)
		}
	}
	if toStatus(live, nil) != nil {
		t.Error("no error became one")
	}
	long := status.Convert(toStatus(live, errors.New(strings.Repeat("é\xff", maxErrorText)))).Message()
	if len(long) > maxErrorText+8 || !strings.HasSuffix(long, "é…") && !strings.HasSuffix(long, " …") {
		t.Errorf("long text: %d bytes, ends in %q", len(long), long[len(long)-8:])
	}
}

func TestPanicEndsItsCallAlone(t *testing.T) {
	s := serveFakes(t)
	s.mu.Lock()
	s.panics = true
	s.mu.Unlock()
	_, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: podConfig()})
	wantCode(t, "unary", err, codes.Internal, "RunPodSandbox", "fake pod.Run")
	st, err := s.GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Recv()
	wantCode(t, "stream", err, codes.Internal, "fake events.Subscribe")
	if _, err := s.Version(t.Context(), &cri.VersionRequest{}); err != nil {
		t.Errorf("the call after a panic: %v", err)
	}
	s.server.Stop()
	if log := s.log.String(); !strings.Contains(log, "panic in a call") || !strings.Contains(log, "fakePods.Run") {
		t.Errorf("no stack in the log:\n%s", log)
	}
}

func TestCancelledCall(t *testing.T) {
	s := serveFakes(t)
	s.block["pod.Run"] = true
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-s.blocked
		cancel()
	}()
	_, err := s.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: podConfig()})
	wantCode(t, "cancelled", err, codes.Canceled)
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = s.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: podConfig()})
	wantCode(t, "deadline", err, codes.DeadlineExceeded)
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "shim.sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{path: 0o600 | fs.ModeSocket, filepath.Dir(path): 0o700 | fs.ModeDir, path + ".lock": 0o600} {
		fi, err := os.Stat(name)
		if err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, fi.Mode(), err, want)
		}
	}
	if _, err := Listen(t.Context(), path); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), path) {
		t.Errorf("second daemon: %v; want a refusal", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// The socket is left behind, as by a daemon that was killed.
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	l, err = Listen(t.Context(), path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-accepted, c.Close(), l.Close()); err != nil {
		t.Error(err)
	}
}

func TestListenRefusesWhatIsNotItsOwn(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), file); !errors.Is(err, errs.Precondition) {
		t.Errorf("over a file: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("the file: %q, %v", data, err)
	}
	// Another program's socket, without our lock.
	other := filepath.Join(dir, "other.sock")
	l, err := net.Listen("unix", other)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(t.Context(), other); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "answers") {
		t.Errorf("over a live socket: %v", err)
	}
	// A link where the lock should be is not followed.
	if err := os.Symlink(file, filepath.Join(dir, "x.sock.lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), filepath.Join(dir, "x.sock")); err == nil {
		t.Error("the lock was opened through a link")
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	for want, send := range map[string]func() error{"READY=1": NotifyReady, "STOPPING=1": NotifyStopping} {
		if err := send(); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		n, err := l.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("got %q, %v; want %s", b[:n], err, want)
		}
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := NotifyReady(); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

func TestSignalNames(t *testing.T) {
	for name, want := range map[string]cri.Signal{
		"SIGTERM": cri.Signal_SIGNAL_SIGTERM, "term": cri.Signal_SIGNAL_SIGTERM, "SIGRTMIN+15": cri.Signal_SIGNAL_SIGRTMINPLUS15,
		"RTMAX-1": cri.Signal_SIGNAL_SIGRTMAXMINUS1, "SIGRTMAX": cri.Signal_SIGNAL_SIGRTMAX, "": cri.Signal_SIGNAL_RUNTIME_DEFAULT, "SIGNONE": cri.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		if got := signal(name); got != want {
			t.Errorf("%q: %s; want %s", name, got, want)
		}
	}
}
