// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

const (
	// maxName bounds names and ids: a DNS subdomain's length, which is all that Kubernetes needs.
	maxName = 253
	// maxPath bounds paths: PATH_MAX less its NUL.
	maxPath = 4095
	// maxElement bounds one element of a path: NAME_MAX.
	maxElement = 255
	// maxArgument bounds one argument or variable: the kernel's MAX_ARG_STRLEN less its NUL.
	maxArgument = 128<<10 - 1
)

// fields checks the fields of a request and keeps the first that can't be used. Every check takes the field's name as
// the proto file has it, the path of messages in front.
type fields struct {
	// under is the path that all names are below; empty for the request itself.
	under string
	err   error
}

// bad records what is wrong with a field; the empty name is that of the message itself.
func (f *fields) bad(field, format string, args ...any) {
	if f.err == nil {
		f.err = errs.Newf(errs.Invalid, "%s: %s", f.full(field), fmt.Sprintf(format, args...))
	}
}

// full is a field's name from the request on.
func (f *fields) full(field string) string {
	return strings.Trim(f.under+"."+field, ".")
}

// absent is for a field that this runtime can't honour.
func (f *fields) absent(field string, set bool, why string) {
	if set {
		f.bad(field, "must not be set: %s", why)
	}
}

// name checks what becomes part of names and paths.
func (f *fields) name(field, v string) {
	switch {
	case v == "":
		f.bad(field, "is empty")
	case len(v) > maxName:
		f.bad(field, "is longer than %d bytes", maxName)
	case v == "." || v == ".." || strings.Contains(v, "/"):
		f.bad(field, "%q is no name", v)
	default:
		f.text(field, v)
	}
}

// text refuses control characters, which could end a line in a file or a log.
func (f *fields) text(field, v string) {
	if strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		f.bad(field, "%q has a control character", v)
	}
}

// word refuses white space as well, for what becomes one field of a line.
func (f *fields) word(field, v string) {
	f.text(field, v)
	if v == "" {
		f.bad(field, "is empty")
	}
	if strings.ContainsAny(v, " \t") {
		f.bad(field, "%q has white space", v)
	}
}

// path checks an absolute path. Elements such as .. are resolved when it is opened, not refused, except where noDots.
func (f *fields) path(field, v string) {
	switch {
	case v == "":
		f.bad(field, "is empty")
	case len(v) > maxPath:
		f.bad(field, "is longer than %d bytes", maxPath)
	case !path.IsAbs(v):
		f.bad(field, "%q is not an absolute path", v)
	case strings.ContainsRune(v, 0):
		f.bad(field, "%q has a NUL", v)
	}
}

// noDots refuses a path that leads upwards.
func (f *fields) noDots(field, v string) {
	for element := range strings.SplitSeq(v, "/") {
		if element == ".." {
			f.bad(field, "%q leads upwards", v)
		}
	}
}

// arguments checks what is passed to execve.
func (f *fields) arguments(field string, args []string) {
	for i, a := range args {
		f.argument(fmt.Sprintf("%s[%d]", field, i), a)
	}
}

func (f *fields) argument(field, a string) {
	if len(a) > maxArgument {
		f.bad(field, "is longer than %d bytes", maxArgument)
	}
	if strings.ContainsRune(a, 0) {
		f.bad(field, "has a NUL")
	}
}

// pairs checks the keys of labels or annotations. They are kept verbatim, so the values may be anything.
func (f *fields) pairs(field string, m map[string]string) {
	if _, ok := m[""]; ok {
		f.bad(field, "has an empty key")
	}
}

func (f *fields) image(field string, spec *cri.ImageSpec) {
	switch {
	case spec == nil:
		f.bad(field, "is missing")
	case spec.GetImage() == "":
		f.bad(field+".image", "is empty")
	case len(spec.GetImage()) > maxPath:
		f.bad(field+".image", "is longer than %d bytes", maxPath)
	default:
		f.word(field+".image", spec.GetImage())
	}
}

// validateID checks the id of a request's object. Ids that can't exist are left to be not found.
func validateID(field, id string) error {
	if id == "" {
		return errs.Newf(errs.Invalid, "%s: is empty", field)
	}
	return nil
}

// validateHandler checks the name of a runtime handler; the empty one is the default.
func (o *Options) validateHandler(field, name string) error {
	if name == o.Default.Name {
		return nil
	}
	for _, h := range o.Handlers {
		if h.Name == name {
			return nil
		}
	}
	return errs.Newf(errs.Invalid, "%s: no runtime handler %q is configured", field, name)
}

// validateSelector checks the parts that all filters have.
func validateSelector(labels map[string]string, ids ...string) error {
	var f fields
	f.pairs("filter.label_selector", labels)
	for _, id := range ids {
		if len(id) > maxName {
			f.bad("filter.id", "is longer than %d bytes", maxName)
		}
	}
	return f.err
}

func validatePodFilter(p *cri.PodSandboxFilter) error {
	if s := p.GetState(); s != nil && !known(cri.PodSandboxState_name, s.GetState()) {
		return errs.Newf(errs.Invalid, "filter.state: %d is no state", s.GetState())
	}
	return validateSelector(p.GetLabelSelector(), p.GetId())
}

func validateContainerFilter(c *cri.ContainerFilter) error {
	if s := c.GetState(); s != nil && !known(cri.ContainerState_name, s.GetState()) {
		return errs.Newf(errs.Invalid, "filter.state: %d is no state", s.GetState())
	}
	return validateSelector(c.GetLabelSelector(), c.GetId(), c.GetPodSandboxId())
}

// known says whether v is one of an enum's values; proto3 lets any number through.
func known[E ~int32](names map[int32]string, v E) bool {
	_, ok := names[int32(v)]
	return ok
}

// streams is what Exec and Attach requests have in common.
type streams interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

func validateStreams(r streams) error {
	if r.GetTty() && r.GetStderr() {
		return errs.Newf(errs.Invalid, "stderr: can't be set with tty, which has a single stream")
	}
	if !r.GetStdin() && !r.GetStdout() && !r.GetStderr() {
		return errs.Newf(errs.Invalid, "stdin: one of stdin, stdout and stderr must be set")
	}
	return nil
}

// profile checks a seccomp or AppArmor profile.
func (f *fields) profile(field string, p *cri.SecurityProfile, isPath bool) {
	if p == nil {
		return
	}
	ref := field + ".localhost_ref"
	switch {
	case !known(cri.SecurityProfile_ProfileType_name, p.GetProfileType()):
		f.bad(field+".profile_type", "%d is no type", p.GetProfileType())
	case p.GetProfileType() != cri.SecurityProfile_Localhost:
		f.absent(ref, p.GetLocalhostRef() != "", "profile_type is "+p.GetProfileType().String())
	case isPath:
		f.path(ref, p.GetLocalhostRef())
	default:
		f.word(ref, p.GetLocalhostRef())
	}
}

// deprecated puts a profile in the form that CRI had before SecurityProfile into its place, unless there is one: callers set both for
// runtimes of before, and the conformance suite makes them differ.
func (f *fields) deprecated(field, old string, profile **cri.SecurityProfile) {
	if old == "" {
		return
	}
	p := &cri.SecurityProfile{}
	switch ref, local := strings.CutPrefix(old, "localhost/"); {
	case local:
		p.ProfileType, p.LocalhostRef = cri.SecurityProfile_Localhost, ref
	case old == "runtime/default", old == "docker/default":
	case old == "unconfined":
		p.ProfileType = cri.SecurityProfile_Unconfined
	default:
		f.bad(field, "%q is none of runtime/default, unconfined and localhost/…", old)
	}
	if *profile == nil {
		*profile = p
	}
}

// maxID is the largest uid or gid; the one above it means "none".
const maxID = 1<<32 - 2

func (f *fields) id(field string, v int64) {
	if v < 0 || v > maxID {
		f.bad(field, "%d is not within 0 to %d", v, maxID)
	}
}

// user checks run_as_user, run_as_group and the groups.
func (f *fields) user(field string, user, group *cri.Int64Value, byName bool, groups []int64, policy cri.SupplementalGroupsPolicy) {
	if user != nil {
		f.id(field+".run_as_user", user.GetValue())
	}
	if group != nil {
		f.id(field+".run_as_group", group.GetValue())
		if user == nil && !byName {
			f.bad(field+".run_as_group", "is set, but no user is")
		}
	}
	for i, g := range groups {
		f.id(fmt.Sprintf("%s.supplemental_groups[%d]", field, i), g)
	}
	if !known(cri.SupplementalGroupsPolicy_name, policy) {
		f.bad(field+".supplemental_groups_policy", "%d is no policy", policy)
	}
}

// mappings checks one side of a user namespace's mappings.
func (f *fields) mappings(field string, m []*cri.IDMapping) {
	for i, r := range m {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case r.GetLength() == 0:
			f.bad(at+".length", "is 0")
		case uint64(r.GetHostId())+uint64(r.GetLength()) > maxID+1 || uint64(r.GetContainerId())+uint64(r.GetLength()) > maxID+1:
			f.bad(at+".length", "%d ids from host_id %d, container_id %d go beyond the last id", r.GetLength(), r.GetHostId(), r.GetContainerId())
		}
	}
}

var cpuList = regexp.MustCompile(`^[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*$`)
