// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"
)

// The channels of a WebSocket: the first byte of each message.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	statusChannel
	resizeChannel
)

// serveSocket runs a command over the WebSocket protocol v5.channel.k8s.io, in which a client can end its input and still read;
// crictl and client-go ask for nothing older. The handlers of k8s.io/cri-streaming v0.37.2 know the versions before it, and refuse
// this one (403); the messages and the status are as theirs in version 4.
func (s *Server) serveSocket(w http.ResponseWriter, r *http.Request, a adapter) {
	channels := make([]wsstream.ChannelType, resizeChannel+1) // those not asked for are ignored
	channels[statusChannel], channels[resizeChannel] = wsstream.WriteChannel, wsstream.ReadChannel
	if a.asked.Stdin {
		channels[stdinChannel] = wsstream.ReadChannel
	}
	if a.asked.Stdout {
		channels[stdoutChannel] = wsstream.WriteChannel
	}
	if a.asked.Stderr {
		channels[stderrChannel] = wsstream.WriteChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels}})
	conn.SetIdleTimeout(s.o.IdleTimeout)
	_, ch, err := conn.Open(w, r)
	if err != nil {
		s.o.Log.Debug("no WebSocket was opened", "path", verbOf(r), "err", err)
		return
	}
	defer conn.Close()
	resize := make(chan remotecommand.TerminalSize)
	go decodeSizes(r.Context(), ch[resizeChannel], resize)
	err = a.ExecInContainer(r.Context(), "", "", "", nil, ch[stdinChannel], ch[stdoutChannel], ch[stderrChannel], a.asked.TTY, resize, 0)
	if err := json.NewEncoder(ch[statusChannel]).Encode(statusOf(err)); err != nil && r.Context().Err() == nil {
		s.o.Log.Debug("a client was not told how its command ended", "path", verbOf(r), "err", err)
	}
}

// decodeSizes passes on the sizes of the client's terminal, until the connection ends or something else comes.
func decodeSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for d := json.NewDecoder(from); ; {
		var size remotecommand.TerminalSize
		if err := d.Decode(&size); err != nil {
			// A channel that nobody reads would hold up the others.
			_, _ = io.Copy(io.Discard, from)
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// status is the part of Kubernetes' metav1.Status that tells how a command ended.
type status struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(err error) status {
	var code exec.ExitError
	switch {
	case err == nil:
		return status{Status: "Success"}
	case errors.As(err, &code) && code.Exited():
		return status{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: fmt.Sprintf("command ended with %v", err),
			Details: &details{Causes: []cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(code.ExitStatus())}}},
		}
	default:
		return status{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
	}
}
