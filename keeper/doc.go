// SPDX-License-Identifier: Apache-2.0

// Package keeper is the program shim-keeper.
package keeper
