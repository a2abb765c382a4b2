// SPDX-License-Identifier: Apache-2.0

// Command cridoc writes docs/cri.md. It is run by go generate, in the directory of package crifield.
package main

import (
	"fmt"
	"os"

	"crishim.dev/internal/crifield"
)

func main() {
	text, err := crifield.Markdown()
	if err == nil {
		err = os.WriteFile("../../docs/cri.md", []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
