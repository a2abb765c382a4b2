// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"
)

// Some of the fields; make mutate has all.
func TestSomeFieldsAreMissed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a test node is made of namespaces")
	}
	t.Chdir("../..")
	if err := run(t.Context(), "", 13, ""); err != nil {
		t.Error(err)
	}
}
