// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// tuningConf is the configuration of the tuning plugin. Its key sysctl is understood only where somebody can write in the pod's
// /proc/sys (Call.Sysctl), which the daemon can't.
type tuningConf struct {
	header
	DataDir  string            `json:"dataDir"`
	Sysctl   map[string]string `json:"sysctl"`
	MAC      string            `json:"mac"`
	Promisc  bool              `json:"promisc"`
	MTU      int               `json:"mtu"`
	TxQLen   *int              `json:"txQLen"`
	Allmulti *bool             `json:"allmulti"`
}

func checkTuning(config []byte) error {
	conf, err := parseTuning(&Call{Config: config})
	if err == nil && len(conf.Sysctl) > 0 {
		return notUnderstood("sysctl of tuning")
	}
	return err
}

func checkTuningInside(config []byte) error {
	_, err := parseTuning(&Call{Config: config})
	return err
}

func parseTuning(c *Call) (*tuningConf, error) {
	var conf tuningConf
	if err := c.decode(&conf); err != nil {
		return nil, err
	}
	env, err := envArgs(c.Args, "MAC")
	if err != nil {
		return nil, err
	}
	if env["MAC"] != "" {
		conf.MAC = env["MAC"]
	}
	var rc struct {
		MAC string `json:"mac"`
	}
	var a struct {
		CNI struct {
			Sysctl   map[string]string `json:"sysctl"`
			MAC      string            `json:"mac"`
			Promisc  *bool             `json:"promisc"`
			MTU      int               `json:"mtu"`
			TxQLen   *int              `json:"txQLen"`
			Allmulti *bool             `json:"allmulti"`
		} `json:"cni"`
	}
	if err := errors.Join(open(conf.RuntimeConfig, &rc), open(conf.Args, &a)); err != nil {
		return nil, err
	}
	for _, mac := range []string{rc.MAC, a.CNI.MAC} {
		if mac != "" {
			conf.MAC = mac
		}
	}
	for k, v := range a.CNI.Sysctl {
		if conf.Sysctl == nil {
			conf.Sysctl = map[string]string{}
		}
		conf.Sysctl[k] = v
	}
	if a.CNI.Promisc != nil {
		conf.Promisc = *a.CNI.Promisc
	}
	if a.CNI.MTU != 0 {
		conf.MTU = a.CNI.MTU
	}
	if a.CNI.TxQLen != nil {
		conf.TxQLen = a.CNI.TxQLen
	}
	if a.CNI.Allmulti != nil {
		conf.Allmulti = a.CNI.Allmulti
	}
	return &conf, nil
}

func runTuning(_ context.Context, h *Host, c *Call) (types.Result, error) {
	conf, err := parseTuning(c)
	if err != nil {
		return nil, err
	}
	if len(conf.Sysctl) > 0 && c.Sysctl == nil {
		return nil, notUnderstood("sysctl of tuning")
	}
	prev, err := conf.previous()
	if err != nil {
		return nil, err
	}
	switch c.Command {
	case "ADD":
		if prev == nil {
			return nil, errs.Newf(errs.Invalid, "Required prevResult missing")
		}
		return tuningAdd(h, c, conf, prev)
	case "DEL":
		return nil, tuningDel(h, c)
	case "CHECK":
		if prev == nil {
			return nil, errs.Newf(errs.Invalid, "Required prevResult missing")
		}
		return nil, conf.check(c)
	case "GC", "STATUS":
		return nil, nil
	}
	return nil, unknownCommand(c)
}

// device gives what the configuration changes on the interface, from is what it was.
func (conf *tuningConf) device(from rtnl.Link) (change, before rtnl.Device, err error) {
	if conf.MAC != "" {
		if change.MAC, err = net.ParseMAC(conf.MAC); err != nil {
			return change, before, errs.Newf(errs.Invalid, "invalid args %v for MAC addr: %v", conf.MAC, err)
		}
		before.MAC = from.MAC
	}
	if conf.MTU != 0 {
		change.MTU, before.MTU = conf.MTU, from.MTU
	}
	if conf.Promisc {
		was := from.Promis
		change.Promisc, before.Promisc = &conf.Promisc, &was
	}
	if conf.Allmulti != nil {
		was := from.Allmulti
		change.Allmulti, before.Allmulti = conf.Allmulti, &was
	}
	if conf.TxQLen != nil {
		was := from.TxQLen
		change.TxQLen, before.TxQLen = conf.TxQLen, &was
	}
	return change, before, nil
}

func tuningAdd(h *Host, c *Call, conf *tuningConf, prev *current.Result) (types.Result, error) {
	for name, value := range conf.Sysctl {
		path, err := podSysctl(name, c.IfName)
		if err != nil {
			return nil, err
		}
		if err := c.Sysctl(path, value); err != nil {
			return nil, err
		}
	}
	pod, err := c.pod()
	if err != nil {
		return nil, err
	}
	eth, err := pod.Link(c.IfName)
	if err != nil {
		return nil, err
	}
	change, before, err := conf.device(eth)
	if err != nil || change.IsZero() {
		return prev, err
	}
	if err := backUp(h, c, before); err != nil {
		return nil, err
	}
	if err := pod.Do(rtnl.SetDevice(c.IfName, change)); err != nil {
		return nil, err
	}
	for _, i := range prev.Interfaces {
		if conf.MAC != "" && i.Name == c.IfName {
			i.Mac = conf.MAC
		}
	}
	return prev, nil
}

// podSysctl gives the path below /proc/sys. Only net/ is the pod's own, and a name must not lead out of it.
func podSysctl(name, ifname string) (string, error) {
	path := strings.ReplaceAll(name, ".", "/")
	path = filepath.Clean("/" + strings.ReplaceAll(path, "IFNAME", ifname))[1:]
	if strings.Contains(name, "/") && !strings.HasPrefix(name, "net/") {
		return "", errs.Newf(errs.Invalid, "invalid sysctl key: %q", name)
	}
	if strings.Contains(name, "/") { // as a path: dots belong to names of interfaces
		path = filepath.Clean("/" + strings.ReplaceAll(name, "IFNAME", ifname))[1:]
	}
	if !strings.HasPrefix(path, "net/") {
		return "", errs.Newf(errs.Invalid, "invalid net sysctl key: %q", name)
	}
	return path, nil
}

func tuningFile(h *Host, c *Call) string {
	return filepath.Join(h.opts.StateDir, "tuning", c.Container+"_"+c.IfName+".json")
}

// backUp keeps what an interface that outlives the pod (one that was moved into it) gets back at DEL.
func backUp(h *Host, c *Call, before rtnl.Device) error {
	b, err := json.Marshal(before)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(tuningFile(h, c)), 0o700)
	}
	if err == nil {
		err = os.WriteFile(tuningFile(h, c), b, 0o600)
	}
	return prefixed("record the interface's former settings", err)
}

func tuningDel(h *Host, c *Call) error {
	b, err := os.ReadFile(tuningFile(h, c))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var before rtnl.Device
	if err == nil && json.Unmarshal(b, &before) == nil && c.Pod != nil {
		if pod, err := c.pod(); err == nil {
			// An interface that is gone needs nothing back, and the pod's own goes anyway.
			_ = pod.Do(rtnl.SetDevice(c.IfName, before))
		}
	}
	if err := os.Remove(tuningFile(h, c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the interface's former settings: %w", err)
	}
	return nil
}

func (conf *tuningConf) check(c *Call) error {
	if c.Pod == nil {
		return nil
	}
	pod, err := c.pod()
	if err != nil {
		return err
	}
	eth, err := pod.Link(c.IfName)
	if err != nil {
		return err
	}
	wrong := func(what string, have, want any) error {
		return errs.Newf(errs.Precondition, "interface %s of the pod: %s is %v, not %v", c.IfName, what, have, want)
	}
	switch {
	case !sameMAC(eth.MAC, conf.MAC):
		return wrong("the address", eth.MAC, conf.MAC)
	case conf.Promisc && !eth.Promis:
		return wrong("promiscuous mode", eth.Promis, conf.Promisc)
	case conf.MTU != 0 && eth.MTU != conf.MTU:
		return wrong("the MTU", eth.MTU, conf.MTU)
	case conf.Allmulti != nil && *conf.Allmulti != eth.Allmulti:
		return wrong("all-multicast mode", eth.Allmulti, *conf.Allmulti)
	case conf.TxQLen != nil && *conf.TxQLen != eth.TxQLen:
		return wrong("the transmit queue's length", eth.TxQLen, *conf.TxQLen)
	}
	return nil
}
