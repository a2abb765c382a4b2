// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"slices"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// tunnelled is what crictl and client-go forward ports by: a WebSocket whose messages are the bytes of a SPDY connection.
const tunnelled = "SPDY/3.1+" + portforward.ProtocolV1Name

// serveTunnel upgrades to a WebSocket and gives serve what looks like a request to upgrade to SPDY, on a connection inside it.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			if !slices.Contains(c.Protocol, tunnelled) {
				return websocket.ErrBadWebSocketProtocol
			}
			c.Protocol = []string{tunnelled}
			return nil
		},
		Handler: func(conn *websocket.Conn) {
			conn.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			serve(&inside{conn: conn, header: http.Header{}}, inner)
		},
	}.ServeHTTP(w, r)
}

// inside is the answer to the request in a tunnel. Nothing of it is sent: the connection to take over begins with SPDY's bytes.
type inside struct {
	conn   net.Conn
	header http.Header
}

func (i *inside) Header() http.Header { return i.header }

func (i *inside) WriteHeader(int) {}

func (i *inside) Write([]byte) (int, error) {
	return 0, errors.New("write an answer: a tunnel has no room for one")
}

func (i *inside) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return i.conn, bufio.NewReadWriter(bufio.NewReader(i.conn), bufio.NewWriter(i.conn)), nil
}
