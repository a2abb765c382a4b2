// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

func messages() []Message {
	return []Message{
		&Hello{Version: Version, Build: "v1.2.3"},
		&Spawn{ID: "web", CloneFlags: 1 << 29, Cgroup: -1, Stdout: true, Log: true, Hold: true},
		&Spawned{PID: 17, StartTime: 1 << 40, FailedOp: FailedNone, Status: 256},
		&Exited{ID: "web", Status: 9, Time: -1},
		&List{},
		&Listed{Processes: []Process{{ID: "a", PID: 1}, {ID: "b", Exited: true, Status: StatusUnknown, Time: 3}}, More: true},
		&Reopen{ID: "web"}, &Attach{ID: "web", Stdin: true, Stderr: true}, &TTY{ID: "web"}, &Forget{}, &Upgrade{},
		&Ack{Errno: 2, Error: "no such process"}, &Release{ID: "x"},
		&Ready{}, &Equipped{Build: "x"}, &Drop{ID: "x"}, &Reaped{ID: "y"},
		&Keep{ID: "web", Slot: 3, Flags: KeepRun | KeepGated, Add: []Held{{HeldLog, 2}, {HeldPIDFD, 0}}, Drop: []Held{{HeldReport, 0}}},
		&Handover{Younger: 5, YoungerPIDFD: 7, Keep: []Keep{{ID: "a", Add: []Held{}, Drop: []Held{}}}, FDs: []int32{4, 5}},
	}
}

func TestRoundTrip(t *testing.T) {
	seen := map[uint16]bool{}
	for i, m := range messages() {
		if seen[m.kind()] {
			t.Errorf("kind %d is used twice", m.kind())
		}
		seen[m.kind()] = true
		b := Marshal(uint64(i), m)
		seq, got, err := Unmarshal(b)
		if err != nil || seq != uint64(i) || reflect.TypeOf(got) != reflect.TypeOf(m) {
			t.Fatalf("%T: %T seq %d: %v", m, got, seq, err)
		}
		if again := Marshal(seq, got); !bytes.Equal(again, b) {
			t.Errorf("%T: decoded as %+v", m, got)
		}
		for n := range b {
			if _, _, err := Unmarshal(b[:n]); !errors.Is(err, ErrMessage) {
				t.Errorf("%T cut to %d bytes: %v", m, n, err)
			}
		}
		if _, _, err := Unmarshal(append(b, 0)); !errors.Is(err, ErrMessage) {
			t.Errorf("%T with a byte too many: %v", m, err)
		}
	}
}

func TestOpLayout(t *testing.T) {
	var o Op
	if unsafe.Sizeof(o) != OpSize || unsafe.Offsetof(o.Kind) != 16 || unsafe.Offsetof(o.Arg) != 32 || unsafe.Offsetof(o.Ignore) != 8 {
		t.Fatalf("Op is laid out differently: %d bytes", unsafe.Sizeof(o))
	}
	p := program()
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.Ops {
		if got := *(*Op)(unsafe.Pointer(&b[HeaderSize+i*OpSize])); got != p.Ops[i] {
			t.Errorf("op %d: %+v, want %+v", i, got, p.Ops[i])
		}
	}
}

func program() *Program {
	return &Program{
		Ops: []Op{
			{NR: 59, Result: NoResult, Kind: [6]ArgKind{Data, Data, Reg, FD}, Arg: [6]uint64{0, 8, 31, 4}, Ignore: [4]uint16{2, 20}, Flags: FlagKeepEACCES},
			{NR: PseudoStore32, Result: NoResult, Kind: [6]ArgKind{Imm, FD}, Arg: [6]uint64{12, 0}},
			{NR: PseudoFail, Result: NoResult, Arg: [6]uint64{2}},
		},
		Relocs: []uint32{8},
		Data:   make([]byte, 16),
	}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(p *Program)
		want  string
	}{
		"good":          {func(*Program) {}, ""},
		"operation":     {func(p *Program) { p.Ops[0].NR = PseudoReceive + 1 }, "op 0: unknown operation"},
		"gap":           {func(p *Program) { p.Ops[0].NR = 5000 }, "unknown operation"},
		"result":        {func(p *Program) { p.Ops[1].Result = NumRegs }, "op 1: result register 32"},
		"register":      {func(p *Program) { p.Ops[0].Arg[2] = NumRegs }, "argument 2"},
		"descriptor":    {func(p *Program) { p.Ops[0].Arg[3] = 5 }, "argument 3"},
		"data":          {func(p *Program) { p.Ops[0].Arg[1] = 17 }, "argument 1"},
		"kind":          {func(p *Program) { p.Ops[0].Kind[5] = 9 }, "kind of argument 5"},
		"store":         {func(p *Program) { p.Ops[1].Arg[0] = 13 }, "store outside"},
		"store by reg":  {func(p *Program) { p.Ops[1].Kind[0] = Reg }, "store outside"},
		"store wrapped": {func(p *Program) { p.Ops[1].NR, p.Ops[1].Arg[0] = PseudoStore64, 1<<64-1 }, "store outside"},
		"aside":         {func(p *Program) { p.Ops[0].NR, p.Ops[0].Kind[0], p.Ops[0].Arg[0] = PseudoAside, Imm, MaxOps+1 }, "number of ops"},
		"odd reloc":     {func(p *Program) { p.Relocs[0] = 4 }, "reloc 0"},
		"far reloc":     {func(p *Program) { p.Relocs[0] = 16 }, "reloc 0"},
		"wild reloc":    {func(p *Program) { p.Data[9] = 1 }, "reloc 0"},
	} {
		p := program()
		c.spoil(p)
		b, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		_, err = Check(b, 5)
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.want != "" && (!errors.Is(err, ErrProgram) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	b, _ := program().Encode()
	for n := range b {
		if _, err := Check(b[:n], 5); !errors.Is(err, ErrProgram) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	for i, m := range messages() {
		f.Add(Marshal(uint64(i), m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		seq, m, err := Unmarshal(b)
		if err != nil {
			return
		}
		again := Marshal(seq, m)
		seq2, m2, err := Unmarshal(again)
		if err != nil || seq2 != seq || !bytes.Equal(Marshal(seq2, m2), again) {
			t.Fatalf("%+v does not survive its own encoding: %v", m, err)
		}
	})
}

func FuzzCheck(f *testing.F) {
	b, _ := program().Encode()
	f.Add(b, 5)
	f.Fuzz(func(t *testing.T, b []byte, numFDs int) {
		l, err := Check(b, numFDs)
		if err != nil {
			return
		}
		// What the executor relies on: each part inside the program, aligned, no overlap.
		if l.Ops%8 != 0 || l.Data%8 != 0 || l.Ops+l.NumOps*OpSize > l.Relocs || l.Relocs+4*l.NumRelocs > l.Data || l.Data+l.DataLen != len(b) {
			t.Fatalf("accepted %+v", l)
		}
	})
}
