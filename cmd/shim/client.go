// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/proto/admin"
)

// maxMessage is the daemon's own limit.
const maxMessage = 16 << 20

// client is a connection to a running daemon.
type client struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	admin  admin.AdminClient
	conns  []*grpc.ClientConn
	// sockets are the paths that conns go to.
	sockets []string
}

// dial connects to the daemon that the configuration and the flags name. Nothing is sent yet.
func (f *flags) dial() (*client, error) {
	cfg, err := f.load()
	if err != nil {
		return nil, err
	}
	c := &client{}
	for _, path := range []string{cfg.Socket, cfg.AdminSocketPath()} {
		conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connect to %s: %w", path, err), c.Close())
		}
		c.conns, c.sockets = append(c.conns, conn), append(c.sockets, path)
	}
	c.RuntimeServiceClient, c.images, c.admin = cri.NewRuntimeServiceClient(c.conns[0]), cri.NewImageServiceClient(c.conns[0]), admin.NewAdminClient(c.conns[1])
	return c, nil
}

// Close closes the connections.
func (c *client) Close() error {
	var all []error
	for _, conn := range c.conns {
		all = append(all, conn.Close())
	}
	return errors.Join(all...)
}

// with runs f with a connected client.
func (f *flags) with(run func(c *cobra.Command, args []string, to *client) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) (err error) {
		to, err := f.dial()
		if err != nil {
			return err
		}
		defer closing(&err, to)
		err = run(c, args, to)
		if status.Code(err) == codes.Unavailable {
			if absent := to.absent(); absent != nil {
				return absent
			}
		}
		return plain(err)
	}
}

// absent says what to do when no daemon can be reached; nil when one answers on every socket.
func (c *client) absent() error {
	for _, path := range c.sockets {
		conn, err := net.Dial("unix", path)
		switch {
		case err == nil:
			_ = conn.Close()
		case errors.Is(err, fs.ErrPermission):
			return fmt.Errorf("the daemon does not answer on %s: only root may ask it: use sudo", path)
		default:
			return fmt.Errorf("the daemon does not answer on %s: start it (systemctl start shim, or shim serve), or name its socket with --socket", path)
		}
	}
	return nil
}

// plain is an error as a person wants it: the daemon's text, without the protocol's.
func plain(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	return errors.New(s.Message())
}

// output is how a command prints.
type output struct{ format string }

func (o *output) flag(c *cobra.Command) {
	c.Flags().StringVarP(&o.format, "output", "o", "table", "table or json")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]cobra.Completion{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

func (o *output) unknown() error { return fmt.Errorf("output %q is neither table nor json", o.format) }

// print writes v as JSON, or the rows as a table.
func (o *output) print(w io.Writer, v any, header string, rows func(w io.Writer)) error {
	switch o.format {
	case "json":
		return printJSON(w, v)
	case "table":
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, header)
		rows(t)
		return t.Flush()
	default:
		return o.unknown()
	}
}

// message is one of a protocol's as JSON has it: proto3's mapping, in which values of enumerations go by their names and 64-bit numbers
// are strings; what is zero is there, too.
type message struct{ proto.Message }

// MarshalJSON implements json.Marshaler.
func (m message) MarshalJSON() ([]byte, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m.Message)
}

func messages[M proto.Message](list []M) []message {
	out := make([]message, 0, len(list))
	for _, m := range list {
		out = append(out, message{m})
	}
	return out
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// short is an id as people read it.
func short(id string) string {
	if i := len("sha256:"); len(id) > i && id[:i] == "sha256:" {
		id = id[i:]
	}
	return id[:min(len(id), 12)]
}

// age is the time since a moment in nanoseconds of Unix time.
func age(at int64, now time.Time) string {
	if at == 0 {
		return "-"
	}
	d := now.Sub(time.Unix(0, at))
	switch {
	case d < time.Minute:
		return d.Truncate(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Truncate(time.Second).String()
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

// size is bytes as people read it.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for ; v >= unit && i < 4; i++ {
		v /= unit
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[i])
}
