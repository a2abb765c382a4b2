// SPDX-License-Identifier: Apache-2.0

package sys

import "golang.org/x/sys/unix"

// ReadFile reads at most limit bytes of a small file.
func ReadFile(dir int, name string, limit int) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, limit)
	n := 0
	for n < limit {
		m, err := unix.Read(fd, b[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return b[:n], nil
}

// Entries gives the names in a directory.
func Entries(dir int, name string) []string {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var names []string
	b := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(fd, b)
		if err != nil || n <= 0 {
			return names
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names)
	}
}

// Unlink removes a file that may not exist.
func Unlink(dir int, name string) {
	unix.Unlinkat(dir, name, 0) //nolint:errcheck // what can't be removed is found by whoever creates it again
}

// WriteAt writes all of b at an offset.
func WriteAt(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err != nil && err != unix.EINTR {
			return err
		}
		b, off = b[max(n, 0):], off+int64(max(n, 0))
	}
	return nil
}
