// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"crishim.dev/internal/errs"
)

// jobLimit bounds one job of systemd.
const jobLimit = 30 * time.Second

// Bus is a connection to systemd over D-Bus: the Units of the systemd driver on version 2. It is made again when it was lost (systemd
// or the bus was restarted). Safe for concurrent use.
type Bus struct {
	// mu guards conn, which is nil until it is needed again.
	mu   sync.Mutex
	conn *sd.Conn
}

var _ Units = (*Bus)(nil)

// Connect finds systemd.
func Connect() (*Bus, error) {
	b := &Bus{}
	if _, err := b.connection(); err != nil {
		return nil, err
	}
	return b, nil
}

// Close ends the connection.
func (b *Bus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		b.conn.Close()
		b.conn = nil
	}
	return nil
}

func (b *Bus) connection() (*sd.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil && b.conn.Connected() {
		return b.conn, nil
	}
	if b.conn != nil {
		b.conn.Close()
		b.conn = nil
	}
	// Not a caller's context: its end would be the connection's.
	conn, err := sd.NewWithContext(context.Background())
	if err != nil {
		return nil, errs.As(errs.Unavailable, fmt.Errorf("connect to systemd: %w", err))
	}
	b.conn = conn
	return conn, nil
}

// call calls systemd, a second time where the connection turns out to be lost. Every call here may be repeated.
func (b *Bus) call(ctx context.Context, f func(context.Context, *sd.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, jobLimit)
	defer cancel()
	for try := 1; ; try++ {
		conn, err := b.connection()
		if err != nil {
			return err
		}
		if err = f(ctx, conn); err == nil || conn.Connected() || try == 2 {
			return err
		}
	}
}

// job calls systemd and waits for the end of the job that this makes.
func (b *Bus) job(ctx context.Context, start func(context.Context, *sd.Conn, chan<- string) (int, error)) error {
	return b.call(ctx, func(ctx context.Context, conn *sd.Conn) error {
		end := make(chan string, 1)
		if _, err := start(ctx, conn, end); err != nil {
			return err
		}
		select {
		case result := <-end:
			if result != "done" {
				return fmt.Errorf("systemd: the job ended as %q", result)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("systemd: wait for the job: %w", ctx.Err())
		}
	})
}

// is tells whether err is the named error of systemd ("UnitExists").
func is(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == "org.freedesktop.systemd1."+name
}

// StartSlice implements Units.
func (b *Bus) StartSlice(ctx context.Context, slice string, r *Resources) error {
	err := b.transient(ctx, slice, append(properties(r), property("Description", "pod of shim")))
	if is(err, "UnitExists") {
		return nil
	}
	return err
}

// StartScope implements Units. A scope of the name that is there already is what an attempt before this one left.
func (b *Bus) StartScope(ctx context.Context, scope, slice string, pid int, r *Resources) error {
	ps := append(properties(r), property("Description", "container of shim"), property("Slice", slice), property("PIDs", []uint32{uint32(pid)}),
		property("Delegate", true), property("CollectMode", "inactive-or-failed"))
	err := b.transient(ctx, scope, ps)
	if is(err, "UnitExists") {
		if err := b.Stop(ctx, scope); err != nil {
			return err
		}
		err = b.transient(ctx, scope, ps)
	}
	return err
}

func (b *Bus) transient(ctx context.Context, unit string, ps []sd.Property) error {
	return b.job(ctx, func(ctx context.Context, conn *sd.Conn, end chan<- string) (int, error) {
		return conn.StartTransientUnitContext(ctx, unit, "replace", append(ps, property("DefaultDependencies", false)), end)
	})
}

// SetLimits implements Units.
func (b *Bus) SetLimits(ctx context.Context, unit string, r *Resources) error {
	ps := limitProperties(r)
	if len(ps) == 0 {
		return nil
	}
	return b.call(ctx, func(ctx context.Context, conn *sd.Conn) error {
		return conn.SetUnitPropertiesContext(ctx, unit, true, ps...)
	})
}

// Stop implements Units.
func (b *Bus) Stop(ctx context.Context, unit string) error {
	err := b.job(ctx, func(ctx context.Context, conn *sd.Conn, end chan<- string) (int, error) {
		return conn.StopUnitContext(ctx, unit, "replace", end)
	})
	if is(err, "NoSuchUnit") {
		return nil
	}
	return err
}

func property(name string, value any) sd.Property {
	return sd.Property{Name: name, Value: dbus.MakeVariant(value)}
}

// properties of a new unit. Accounting hands the controllers down.
func properties(r *Resources) []sd.Property {
	ps := []sd.Property{}
	for _, a := range []string{"CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"} {
		ps = append(ps, property(a, true))
	}
	return append(ps, limitProperties(r)...)
}

// limitProperties are the limits that systemd has a property for (systemd.resource-control(5)); it writes them again at its next
// reload. The others it leaves alone.
func limitProperties(r *Resources) []sd.Property {
	var ps []sd.Property
	add := func(set bool, name string, value uint64) {
		if set {
			ps = append(ps, property(name, value))
		}
	}
	add(r.CPUShares != 0, "CPUWeight", weight(r.CPUShares))
	if r.CPUQuota != 0 {
		period := r.CPUPeriod
		if period == 0 {
			period = 100000
		}
		share := uint64(math.MaxUint64)
		if r.CPUQuota > 0 {
			share = uint64(r.CPUQuota) * 1000000 / period
		}
		add(true, "CPUQuotaPerSecUSec", share)
		add(r.CPUPeriod != 0, "CPUQuotaPeriodUSec", r.CPUPeriod)
	}
	add(r.Memory != 0, "MemoryMax", orNone(r.Memory))
	switch { // as setMemoryV2 does
	case r.MemorySwap == -1, r.MemorySwap == 0 && r.Memory == -1:
		add(true, "MemorySwapMax", math.MaxUint64)
	case r.MemorySwap > 0 && r.Memory > 0:
		add(true, "MemorySwapMax", uint64(r.MemorySwap-r.Memory))
	}
	add(r.Pids != 0, "TasksMax", orNone(r.Pids))
	for name, list := range map[string]string{"AllowedCPUs": r.CPUs, "AllowedMemoryNodes": r.Mems} {
		if list != "" {
			ps = append(ps, property(name, bitmap(list)))
		}
	}
	for file, name := range map[string]string{"memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin"} {
		if v, err := parseNumber([]byte(r.Unified[file])); err == nil {
			add(true, name, v)
		}
	}
	return ps
}

// orNone is systemd's "infinity" for a limit of -1.
func orNone(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}

// bitmap turns a list that isList accepts into systemd's bytes, the lowest first.
func bitmap(list string) []byte {
	var bits []byte
	for part := range strings.SplitSeq(list, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		a, _ := strconv.Atoi(first)
		b, _ := strconv.Atoi(last)
		for ; a <= min(b, 8191); a++ { // more than CONFIG_NR_CPUS ever is
			for len(bits) <= a/8 {
				bits = append(bits, 0)
			}
			bits[a/8] |= 1 << (a % 8)
		}
	}
	return bits
}
