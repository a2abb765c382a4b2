// SPDX-License-Identifier: Apache-2.0

package server

import (
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// events answers GetContainerEvents.
type events struct{ o *Options }

// GetContainerEvents sends each event from now on, in order, until the caller goes. A caller too slow to keep up gets
// ResourceExhausted and is to list and subscribe again.
func (s events) GetContainerEvents(_ *cri.GetEventsRequest, to grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	return s.o.Events.Subscribe(to.Context(), to.Send)
}
