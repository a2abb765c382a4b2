// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/client"
	"crishim.dev/proto"
)

// tiny is a static ELF program that does one system call with two arguments, 100 bytes.
func tiny(t testing.TB, nr int) *os.File {
	t.Helper()
	var code []byte
	machine := uint16(62)
	if runtime.GOARCH == "arm64" {
		machine = 183
		for _, w := range []uint32{0xd2800000, 0xd2800001, 0xd2800008 | uint32(nr)<<5, 0xd4000001} { // mov x0,#0; mov x1,#0; mov x8,#nr; svc
			code = binary.LittleEndian.AppendUint32(code, w)
		}
	} else {
		code = append(code, 0x31, 0xff, 0x31, 0xf6, 0xb8)                             // xor edi,edi; xor esi,esi; mov eax,nr
		code = append(binary.LittleEndian.AppendUint32(code, uint32(nr)), 0x0f, 0x05) // syscall
	}
	const base, head = 0x400000, 64 + 56
	size := uint64(head + len(code))
	var b bytes.Buffer
	for _, v := range []any{
		[16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, uint16(2), machine, uint32(1), uint64(base + head), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(4096),
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(t.TempDir(), "tiny")
	if err := os.WriteFile(name, append(b.Bytes(), code...), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func (p *pair) quick(id string, file *os.File, log *os.File) client.Spawn {
	var b builder
	b.op("setsid", unix.SYS_SETSID)
	if log != nil {
		b.stdio(proto.FDStdin, proto.FDStdout, proto.FDStderr)
	}
	b.exec(proto.FDPassed, "tiny")
	s := client.Spawn{Program: &b.Program, Files: []*os.File{file}, Name: "start", Log: log}
	s.ID, s.Cgroup, s.Stdin, s.Stdout, s.Stderr = id, -1, log != nil, log != nil, log != nil
	return s
}

// BenchmarkSpawn is from the request to the answer: execve has succeeded.
func BenchmarkSpawn(b *testing.B) {
	for _, name := range []string{"exec", "container"} {
		b.Run(name, func(b *testing.B) {
			p := newPair(b)
			f := tiny(b, unix.SYS_EXIT_GROUP)
			var log *os.File
			if name == "container" {
				var err error
				if log, err = os.Create(filepath.Join(b.TempDir(), "log")); err != nil {
					b.Fatal(err)
				}
				defer log.Close()
			}
			i := 0
			for b.Loop() {
				id := fmt.Sprint("x", i)
				i++
				pr, err := p.c.Spawn(b.Context(), p.quick(id, f, log))
				if err != nil {
					b.Fatal(err)
				}
				pr.Close()
				b.StopTimer()
				p.exit(id)
				p.forget(id)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkSpawnToExit is a whole life: the request, the process, its exit, Forget.
func BenchmarkSpawnToExit(b *testing.B) {
	p := newPair(b)
	f := tiny(b, unix.SYS_EXIT_GROUP)
	i := 0
	for b.Loop() {
		id := fmt.Sprint("x", i)
		i++
		pr, err := p.c.Spawn(b.Context(), p.quick(id, f, nil))
		if err != nil {
			b.Fatal(err)
		}
		pr.Close()
		p.exit(id)
		p.forget(id)
	}
}

func BenchmarkRun(b *testing.B) {
	p := newPair(b)
	var prog builder
	prog.op("exit", proto.PseudoExit, imm(0))
	for b.Loop() {
		pr, err := p.run(&prog)
		if err != nil {
			b.Fatal(err)
		}
		pr.Close()
	}
}

// BenchmarkLog is one container that writes lines of 82 bytes as fast as the log is taken.
func BenchmarkLog(b *testing.B) {
	p := newPair(b)
	const blocks = 4000
	b.SetBytes(blocks * (64<<10 - 100))
	i := 0
	for b.Loop() {
		b.StopTimer()
		id := fmt.Sprint("x", i)
		i++
		log := filepath.Join(filepath.Dir(p.dir), "log") // on tmpfs: the pump is measured, not a disk
		b.StartTimer()
		p.spawn(p.container(id, log, "flood", strconv.Itoa(blocks)))
		p.exit(id)
		b.StopTimer()
		p.forget(id)
		os.Remove(log)
		b.StartTimer()
	}
}

// BenchmarkMemory reports what the pair costs: PSS when it keeps nothing, and for each process kept.
func BenchmarkMemory(b *testing.B) {
	p := newPair(b)
	f := tiny(b, unix.SYS_PPOLL)
	for b.Loop() {
	}
	e, y := p.settled(0, 0)
	const quiet = 2 * time.Second // after which the keepers have tidied up
	time.Sleep(quiet)
	e0, y0 := pss(b, e), pss(b, y)
	const n = 200
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	for i := range n {
		p.spawn(p.quick(fmt.Sprint("x", i), f, log))
	}
	time.Sleep(quiet)
	e1, y1 := pss(b, e), pss(b, y)
	b.ReportMetric(float64(e0), "KB-elder")
	b.ReportMetric(float64(y0), "KB-younger")
	b.ReportMetric(float64(e1-e0+y1-y0)/n, "KB/process")
	b.ReportMetric(float64(e1), "KB-elder-200")
	b.ReportMetric(float64(y1), "KB-younger-200")
}

func pss(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); f[0] == "Pss:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Fatal("no Pss")
	return 0
}

// BenchmarkRoundTrip is a request that does nothing.
func BenchmarkRoundTrip(b *testing.B) {
	p := newPair(b)
	for b.Loop() {
		if _, err := p.c.TTY(b.Context(), "nobody"); err == nil {
			b.Fatal("found nobody")
		}
	}
}
