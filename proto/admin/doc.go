// SPDX-License-Identifier: Apache-2.0

// Package admin is the admin service's protocol, generated from admin.proto: what the shim command asks of a running
// daemon beyond CRI. server answers it on a socket of its own; cmd/shim is its client.
package admin

//go:generate ./generate
