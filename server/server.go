// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxMessage is the largest message in either direction: what kubelet's client sets for itself.
	maxMessage = 16 << 20
	// stopGrace is how long Stop waits for calls under way. Callers repeat those that it cuts off, and join them.
	stopGrace = 3 * time.Second
)

// Handler is one runtime handler and what it can do on this host.
type Handler struct {
	Name                    string
	RecursiveReadOnlyMounts bool
	UserNamespaces          bool
}

// Options are what a Server serves. All managers are needed.
type Options struct {
	// Version is the daemon's own, as semantic versioning has it; a v in front does no harm.
	Version string
	// SystemdCgroups says that the cgroup driver is systemd's, else it is cgroupfs.
	SystemdCgroups bool
	// Handlers are the runtime handlers besides the default one, which Default describes.
	Default  Handler
	Handlers []Handler
	// Features are those that do not depend on the handler.
	Features *cri.RuntimeFeatures
	// Info adds to a verbose Status: JSON by name. May be nil.
	Info func() map[string]string

	Sandboxes  Sandboxes
	Containers Containers
	Execs      Execs
	Images     Images
	Network    Network
	Stats      Stats
	Events     Events
	URLs       URLs
	Log        *slog.Logger
}

// Server answers CRI calls. Safe for concurrent use.
type Server struct{ listener }

// runtimeService is the RuntimeService, put together from its groups. The fallback answers what no group has.
type runtimeService struct {
	about
	pods
	containers
	execs
	measures
	events
	fallback
}

// fallback lies one level deeper than the groups, whose methods so take precedence.
type fallback struct {
	cri.UnimplementedRuntimeServiceServer
}

// New makes a Server.
func New(o Options) *Server {
	s := &Server{newListener(o.Log)}
	cri.RegisterRuntimeServiceServer(s.grpc, &runtimeService{
		about:      about{&o},
		pods:       pods{&o},
		containers: containers{&o},
		execs:      execs{&o},
		measures:   measures{&o},
		events:     events{&o},
	})
	cri.RegisterImageServiceServer(s.grpc, &images{o: &o})
	return s
}

// listener is a gRPC server with the boundary around its calls.
type listener struct {
	grpc *grpc.Server
	// end tells the streams, which may last for ever, that the server ends.
	end context.CancelFunc
}

func newListener(log *slog.Logger) listener {
	ending, end := context.WithCancel(context.Background())
	b := boundary{log: log, ending: ending}
	return listener{end: end, grpc: grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(b.unary),
		grpc.StreamInterceptor(b.stream),
		grpc.WaitForHandlers(true),
	)}
}

// Serve answers calls on l until Stop.
func (l *listener) Serve(on net.Listener) error {
	if err := l.grpc.Serve(on); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", on.Addr(), err)
	}
	return nil
}

// Stop refuses new calls, ends streams, gives the other calls under way stopGrace to end by themselves, then cancels
// them and gives them as long again.
func (l *listener) Stop() {
	l.end()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.grpc.GracefulStop()
	}()
	if within(done, stopGrace) {
		return
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		l.grpc.Stop()
	}()
	within(stopped, stopGrace)
}

func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
