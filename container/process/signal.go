// SPDX-License-Identifier: Apache-2.0

package process

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

// Real-time signals as signal(7) numbers them for glibc and musl programs.
const sigRTMin, sigRTMax = 34, 64

// ParseSignal understands what images write into STOPSIGNAL: a number, TERM, SIGTERM, SIGRTMIN+3, SIGRTMAX-1.
func ParseSignal(s string) (syscall.Signal, error) {
	bad := errs.Newf(errs.Invalid, "stop signal %q is not a signal", s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, bad
		}
		return syscall.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for prefix, base := range map[string]int{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n, err := strconv.Atoi("0" + strings.TrimLeft(rest, "+-"))
		if strings.HasPrefix(rest, "-") {
			n = -n
		}
		if n += base; err != nil || n < sigRTMin || n > sigRTMax {
			return 0, bad
		}
		return syscall.Signal(n), nil
	}
	switch name { // other names for the same number, which unix.SignalNum does not know
	case "SIGCLD":
		return unix.SIGCHLD, nil
	case "SIGPOLL":
		return unix.SIGIO, nil
	case "SIGIOT":
		return unix.SIGABRT, nil
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, bad
}

// StopSignal chooses the signal of StopContainer: the request's, else the image's, else SIGTERM.
func StopSignal(requested cri.Signal, image string) (string, error) {
	name := image
	if requested != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		name = strings.NewReplacer("SIGNAL_", "", "MINPLUS", "MIN+", "MAXMINUS", "MAX-").Replace(requested.String())
	}
	if name == "" {
		return "SIGTERM", nil
	}
	_, err := ParseSignal(name)
	return name, err
}
