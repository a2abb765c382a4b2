// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"testing"

	"crishim.dev/internal/errs"
)

func TestLogPath(t *testing.T) {
	if got, err := logPath("/var/log/pods/x", "c/0.log"); got != "/var/log/pods/x/c/0.log" || err != nil {
		t.Errorf("%s %v", got, err)
	}
	for _, name := range []string{"../x", "/abs", "a/../../b"} {
		if _, err := logPath("/var/log/pods/x", name); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// KUBELET.md 7.
func TestKubelet07Outcome(t *testing.T) {
	for status, want := range map[uint32]struct {
		code   int32
		reason string
	}{0: {0, "Completed"}, 3 << 8: {3, "Error"}, 9: {137, "Error"}, 15: {143, "Error"}, 0xffffffff: {255, "Unknown"}} {
		if code, reason := outcome(status); code != want.code || reason != want.reason {
			t.Errorf("%x: %d %s", status, code, reason)
		}
	}
}
