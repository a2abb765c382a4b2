// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// contender is a runtime under test.
type contender struct {
	name   string
	pid    int
	root   string // its persistent directory
	images cri.ImageServiceClient
	idle   int64 // resident memory before the first pull
}

// attach connects to a runtime and waits for its first answer.
func attach(ctx context.Context, name, socket string, pid int, root string) (*contender, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	v, err := cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("ask version: %w", err)
	}
	c := &contender{name: name + " " + v.GetRuntimeVersion(), pid: pid, root: root, images: cri.NewImageServiceClient(conn)}
	c.idle, err = c.memory("VmRSS")
	return c, err
}

// startContainerd starts it with its default configuration, in dir, and nothing that images do not need.
func startContainerd(ctx context.Context, programs, dir string) (*contender, func(), error) {
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), filepath.Join(dir, "sock"), filepath.Join(dir, "ttrpc"))
	file := filepath.Join(dir, "config.toml")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(file, []byte(config), 0o600)); err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(filepath.Join(programs, "containerd"), "--config", file)
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	c, err := attach(ctx, "containerd", filepath.Join(dir, "sock"), cmd.Process.Pid, filepath.Join(dir, "root"))
	if err != nil {
		stop()
		return nil, nil, fmt.Errorf("%w; its log:\n%s", err, log.String())
	}
	return c, stop, nil
}

// round pulls once, measures, and removes the image again.
func (c *contender) round(ctx context.Context, ref string, f *figures, disk bool) error {
	before, err := c.settle()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.proc("clear_refs"), []byte("5"), 0); err != nil { // the peak counts from here
		return err
	}
	cpu, err := c.cpu()
	if err != nil {
		return err
	}
	peak := func() int64 { return 0 }
	if disk {
		peak = c.watch()
	}
	image := &cri.ImageSpec{Image: ref}
	start := time.Now()
	_, err = c.images.PullImage(ctx, &cri.PullImageRequest{Image: image})
	took := time.Since(start)
	most := peak()
	if err != nil {
		return err
	}
	if err := c.sync(); err != nil {
		return err
	}
	synced := time.Since(start)
	used, err := c.cpu()
	if err != nil {
		return err
	}
	high, err := c.memory("VmHWM")
	if err != nil {
		return err
	}
	if disk {
		f.Disk = c.disk() - before
		f.PeakDisk = max(most-before, f.Disk)
	} else {
		f.Seconds, f.Synced, f.CPU = append(f.Seconds, took.Seconds()), append(f.Synced, synced.Seconds()), append(f.CPU, used-cpu)
		f.PeakMemory = max(f.PeakMemory, high-c.idle)
	}
	_, err = c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image})
	return err
}

// sync waits until what the runtime wrote is on the disk.
func (c *contender) sync() error {
	d, err := os.Open(c.root)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// settle waits until what was removed is gone from the disk, and gives what is left.
func (c *contender) settle() (int64, error) {
	last := c.disk()
	for range 100 {
		if err := c.sync(); err != nil {
			return 0, err
		}
		<-time.After(300 * time.Millisecond)
		now := c.disk()
		if now == last {
			return now, nil
		}
		last = now
	}
	return 0, fmt.Errorf("%s never comes to rest", c.root)
}

// watch measures the disk until the function it returns is called, which gives the highest reading.
func (c *contender) watch() func() int64 {
	quit, most := make(chan struct{}), int64(0)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			most = max(most, c.disk())
			select {
			case <-quit:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() int64 {
		close(quit)
		wg.Wait()
		return most
	}
}

// disk is the space that the runtime's directory takes. What is renamed while it looks counts once.
func (c *contender) disk() (n int64) {
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(c.root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			n += st.Blocks * 512
		}
		return nil // it went away meanwhile
	})
	return n
}

func (c *contender) proc(file string) string {
	return filepath.Join("/proc", strconv.Itoa(c.pid), file)
}

// memory reads a field of the daemon's status, in bytes.
func (c *contender) memory(field string) (int64, error) {
	b, err := os.ReadFile(c.proc("status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if words := strings.Fields(line); len(words) == 3 && words[0] == field+":" {
			n, err := strconv.ParseInt(words[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in the daemon's status", field)
}

// cpu is the processor time that the daemon has used, in seconds.
func (c *contender) cpu() (float64, error) {
	b, err := os.ReadFile(c.proc("stat"))
	if err != nil {
		return 0, err
	}
	const user, hertz = 11, 100 // the fields after the name; USER_HZ
	words := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(words) < user+2 {
		return 0, errors.New("read the daemon's processor time: too few fields")
	}
	u, err := strconv.ParseFloat(words[user], 64)
	if err != nil {
		return 0, err
	}
	s, err := strconv.ParseFloat(words[user+1], 64)
	return (u + s) / hertz, err
}
