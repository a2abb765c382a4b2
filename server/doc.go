// SPDX-License-Identifier: Apache-2.0

// Package server is CRI v1 and the admin service on unix sockets: each RPC validates its request, calls one manager and
// translates the answer. One file per group of RPCs.
//
// It is the only place that knows gRPC codes (errors.go). It decides nothing about pods, containers or images and keeps
// no state of its own. Listings are answered from the managers' immutable copies and wait for nothing.
//
// A request field is honoured, passed to a manager that does, or refused by name with InvalidArgument (validate_*.go).
package server
