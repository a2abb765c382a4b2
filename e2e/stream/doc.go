// SPDX-License-Identifier: Apache-2.0

// Package stream has the black-box tests of exec, attach and port-forward: a client's connection over SPDY or WebSocket to a
// process in a container or a port in a pod, and what is left when such connections break.
package stream
