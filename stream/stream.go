// SPDX-License-Identifier: Apache-2.0

// Package stream serves the connections behind the URLs that Exec, Attach and PortForward return: SPDY and WebSocket, by
// k8s.io/cri-streaming's protocol handlers, and by one of its own for the one version that those lack.
//
// A URL carries a token that works once and for a minute. The request that a token stands for is kept here, so nothing
// in the URL can be changed by who uses it. The context of a request ends when its connection does, also after the
// upgrade, so that a process whose client is gone does not stay; net/http alone does not give that.
//
// It knows no containers: Runtime, which server implements, does the work.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"

	"crishim.dev/internal/errs"
)

// lingerTime is how long a connection may stay after its request has ended.
const lingerTime = 5 * time.Second

// Size is a terminal's, in characters.
type Size struct{ Width, Height uint16 }

// IO is what a client sees of a process. Readers and writers that were not asked for are nil.
type IO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	// Resize gives the sizes of the client's terminal, and is closed with the connection. Nil without a terminal.
	Resize <-chan Size
}

// Runtime does what streams ask for. Every method returns soon after ctx is done.
type Runtime interface {
	// Exec runs cmd until it ends and returns its exit code.
	Exec(ctx context.Context, container string, cmd []string, s IO) (exitCode int32, err error)
	// Attach joins the container's own streams until its process ends or stdin's peer detaches.
	Attach(ctx context.Context, container string, s IO) error
	// Dial connects to a port of the pod's loopback, inside its network namespace.
	Dial(ctx context.Context, sandbox string, port uint16) (net.Conn, error)
}

// Options are a Server's.
type Options struct {
	// Address is HOST:PORT; port 0 picks one.
	Address string
	// TLSCert and TLSKey are PEM files; both or none. They are read again when they change.
	TLSCert, TLSKey string
	// IdleTimeout closes a connection without traffic; CreationTimeout bounds the wait for the client's streams.
	IdleTimeout, CreationTimeout time.Duration
	Runtime                      Runtime
	Log                          *slog.Logger
}

// Server listens from New to Close. Safe for concurrent use.
type Server struct {
	o      Options
	base   url.URL
	tokens *tokens
	http   *http.Server
	done   chan struct{}
	stop   context.CancelFunc
	ctx    context.Context //nolint:containedctx // the life of the server, which its connections' contexts end with

	mu sync.Mutex
	// closed says that no more work may begin. Guarded by mu.
	closed bool
	// work counts the calls of Runtime under way. Added to with mu held.
	work sync.WaitGroup
}

// New listens and serves.
func New(o Options) (*Server, error) {
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	s := &Server{o: o, tokens: newTokens(time.Now), done: make(chan struct{}), base: url.URL{Scheme: "http", Host: l.Addr().String()}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	var served net.Listener = &listener{Listener: l, ctx: s.ctx}
	if o.TLSCert != "" {
		certs, err := newCertificates(o.TLSCert, o.TLSKey)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		s.base.Scheme = "https"
		served = tls.NewListener(served, &tls.Config{GetCertificate: certs.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{token}", s.handle(s.serveExec))
	mux.HandleFunc("/attach/{token}", s.handle(s.serveAttach))
	mux.HandleFunc("/portforward/{token}", s.handle(s.servePortForward))
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: o.CreationTimeout,
		IdleTimeout:       o.CreationTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		ConnContext:       connContext,
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateHijacked {
				s.hijacked(below(c))
			}
		},
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(served); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Error("streaming server ended", "err", err)
		}
	}()
	return s, nil
}

// Close ends every connection and waits for the calls of Runtime under way. It does not wait for requests whose clients
// have not opened their streams yet: the protocol handlers notice nothing until their timeout.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.http.Close()
	s.stop()
	<-s.done
	s.work.Wait()
	return err
}

// hijacked is called when net/http has given a connection away, and so watches it no more.
func (s *Server) hijacked(c *conn) {
	c.hijacked.Store(true)
	if err := c.watch(); err != nil {
		s.o.Log.Warn("streaming connection not watched", "err", err)
	}
}

// begin counts a call of Runtime, unless the server is closed. The caller ends it with work.Done.
func (s *Server) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errs.Newf(errs.Unavailable, "begin stream: the daemon is stopping")
	}
	s.work.Add(1)
	return nil
}

// Exec keeps the request and returns the URL that runs it. Exhausted when too many are waiting.
func (s *Server) Exec(r *cri.ExecRequest) (string, error) { return s.keep("exec", r) }

// Attach keeps the request and returns the URL that runs it. Exhausted when too many are waiting.
func (s *Server) Attach(r *cri.AttachRequest) (string, error) { return s.keep("attach", r) }

// PortForward keeps the request and returns the URL that runs it. Exhausted when too many are waiting.
func (s *Server) PortForward(r *cri.PortForwardRequest) (string, error) {
	return s.keep("portforward", r)
}

func (s *Server) keep(verb string, request any) (string, error) {
	token, err := s.tokens.put(request)
	if err != nil {
		return "", err
	}
	u := s.base
	u.Path = "/" + verb + "/" + token
	return u.String(), nil
}

// handle redeems the token and runs f, a panic in which ends that request alone. The protocol handlers close what they
// hijacked, save where the client never opened its streams: those connections are closed here, a little later, so that
// the last frames are not lost to a reset.
func (s *Server) handle(f func(w http.ResponseWriter, r *http.Request, request any) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodPost {
			http.Error(w, "use GET or POST", http.StatusMethodNotAllowed)
			return
		}
		request := s.tokens.take(r.PathValue("token"))
		c := connOf(r.Context())
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(c.ctx, cancel)()
		defer func() {
			if v := recover(); v != nil {
				s.o.Log.Error("panic while streaming", "path", verbOf(r), "panic", v, "stack", stack())
				_ = c.Close()
			}
		}()
		if request == nil || !f(w, r.WithContext(ctx), request) {
			http.NotFound(w, r)
		}
		if c.hijacked.Load() {
			t := time.AfterFunc(lingerTime, func() { _ = c.Close() })
			context.AfterFunc(c.ctx, func() { t.Stop() })
		}
	}
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, request any) bool {
	q, ok := request.(*cri.ExecRequest)
	if ok {
		s.serveCommand(w, r, q, func(ctx context.Context, streams IO) error {
			code, err := s.o.Runtime.Exec(ctx, q.ContainerId, q.Cmd, streams)
			if err == nil && code != 0 {
				err = exec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
			}
			return err
		})
	}
	return ok
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, request any) bool {
	q, ok := request.(*cri.AttachRequest)
	if ok {
		s.serveCommand(w, r, q, func(ctx context.Context, streams IO) error {
			err := s.o.Runtime.Attach(ctx, q.ContainerId, streams)
			if ctx.Err() != nil && s.ctx.Err() == nil {
				return nil // the client has left, which is how an attach ends; the library would log it as an error
			}
			return err
		})
	}
	return ok
}

// asking is what exec and attach requests have in common.
type asking interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

// serveCommand gives run the streams that the client opens, over whichever protocol it speaks, and tells it how run ended. The handler
// of attaches in k8s.io/cri-streaming differs from that of execs in that it knows no exit codes, which an attach does not have.
func (s *Server) serveCommand(w http.ResponseWriter, r *http.Request, q asking, run func(ctx context.Context, streams IO) error) {
	a := adapter{s, &remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}, verbOf(r), run}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveSocket(w, r, a)
		return
	}
	remotecommand.ServeExec(w, r, a, "", "", "", nil, a.asked, s.o.IdleTimeout, s.o.CreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, request any) bool {
	q, ok := request.(*cri.PortForwardRequest)
	if !ok {
		return false
	}
	f := &forwarder{s: s, ctx: r.Context(), ports: q.Port}
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, f, q.PodSandboxId, "", &portforward.V4Options{Ports: q.Port}, s.o.IdleTimeout, s.o.CreationTimeout, portforward.SupportedProtocols)
	}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		serveTunnel(w, r, serve)
	} else {
		serve(w, r)
	}
	return true
}
