// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxMessage is the largest message in either direction: what kubelet's client sets for itself.
	maxMessage = 16 << 20
	// stopGrace is how long Stop waits for calls under way.
	stopGrace = 10 * time.Second
)

// Handler is one runtime handler and what it can do on this host.
type Handler struct {
	Name                    string
	RecursiveReadOnlyMounts bool
	UserNamespaces          bool
}

// Options are what a Server serves. All managers are needed.
type Options struct {
	// Version is the daemon's own, as semantic versioning has it.
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
type Server struct {
	grpc *grpc.Server
}

// runtimeService is the RuntimeService, put together from its groups. The fallback answers what no group has.
type runtimeService struct {
	about
	pods
	containers
	execs
	stats
	events
	fallback
}

// fallback lies one level deeper than the groups, whose methods so take precedence.
type fallback struct {
	cri.UnimplementedRuntimeServiceServer
}

// New makes a Server.
func New(o Options) *Server {
	s := &Server{grpc: newGRPC(o.Log)}
	cri.RegisterRuntimeServiceServer(s.grpc, &runtimeService{
		about:      about{&o},
		pods:       pods{&o},
		containers: containers{&o},
		execs:      execs{&o},
		stats:      stats{&o},
		events:     events{&o},
	})
	cri.RegisterImageServiceServer(s.grpc, &images{o: &o})
	return s
}

func newGRPC(log *slog.Logger) *grpc.Server {
	b := boundary{log: log}
	return grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(b.unary),
		grpc.StreamInterceptor(b.stream),
	)
}

// Serve answers calls on l until Stop.
func (s *Server) Serve(l net.Listener) error { return serve(s.grpc, l) }

// Stop refuses new calls, waits a bounded time for those under way, then cancels them.
func (s *Server) Stop() { stop(s.grpc) }

func serve(g *grpc.Server, l net.Listener) error {
	if err := g.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

func stop(g *grpc.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	defer context.AfterFunc(ctx, g.Stop)()
	g.GracefulStop()
}
