// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// kit is the floor of packages that only tests, e2e and hack use; they stand above everything they look at.
const kit = -1

// floors is the table of DESIGN §4. A package belongs to the longest prefix that matches it. It may import packages of
// lower floors and packages below its own folder; never a sibling, never up.
func floors() map[string]int {
	return map[string]int{
		"internal/errs":     0,
		"internal/undo":     0,
		"internal":          1,
		"config":            2,
		"proto":             2,
		"keeper/sys":        10,
		"keeper/executor":   11,
		"keeper/pump":       11,
		"keeper":            12,
		"keeper/client":     12,
		"cni":               10,
		"cgroup":            10,
		"snapshot":          10,
		"store":             10,
		"stream":            10,
		"launch":            20,
		"image":             20,
		"stats":             20,
		"event":             20,
		"sandbox":           30,
		"container":         40,
		"server":            50,
		"cmd":               60,
		"e2e":               60,
		"e2e/kit":           55,
		"hack":              60,
		"internal/testnode": kit,
		"internal/census":   kit,
		"internal/archtest": kit,
		"internal/crifield": kit,
		"internal/powercut": kit,
	}
}

// outside says which of our packages may import a package that is not ours; what is not listed is open to all.
// A prefix covers what is below it.
func outside() map[string][]string {
	return map[string][]string{
		"google.golang.org/grpc/codes":           {"server", "proto/admin", "e2e", "hack", "cmd/shim", "internal/testnode"},
		"google.golang.org/grpc/status":          {"server", "proto/admin", "e2e", "hack", "cmd/shim", "internal/testnode"},
		"google.golang.org/grpc":                 {"server", "proto/admin", "e2e", "hack", "cmd/shim", "internal/testnode", "internal/crifield"},
		"github.com/spf13/cobra":                 {"cmd/shim"},
		"github.com/containernetworking":         {"cni"},
		"github.com/google/nftables":             {"cni"},
		"github.com/vishvananda/netlink":         {"cni", "stats", "internal/testnode"},
		"github.com/containerd/cgroups":          {"cgroup"},
		"github.com/google/go-containerregistry": {"image", "internal/testnode", "e2e", "hack"},
		"go.etcd.io/bbolt":                       {"image", "store"},
		"os/exec":                                {"cni", "keeper/client", "cmd/shim", "e2e", "hack", "internal/apparmor", "internal/testnode"},
		"github.com/stretchr/testify":            {},
		"github.com/onsi/gomega":                 {},
		"io/ioutil":                              {},
		"log":                                    {"internal/testnode"},
	}
}

// keeperMay lists what the keeper's program may be linked from besides the standard library.
// It must stay tiny: it is the parent of every container.
func keeperMay() []string {
	return []string{
		"golang.org/x/sys/unix", "crishim.dev/proto",
		"crishim.dev/keeper", "crishim.dev/keeper/executor", "crishim.dev/keeper/pump", "crishim.dev/keeper/sys",
	}
}

// keeperMustNot lists standard packages too large, or too forking, for the keeper.
func keeperMustNot() []string {
	return []string{"net", "net/http", "encoding/json", "os/exec", "log/slog", "crypto/tls", "text/template", "regexp", "os/user"}
}

// Floors reports every import that climbs, goes sideways, or leaves its place.
func Floors(t *Tree) []string {
	var out []string
	for _, f := range t.Files {
		for _, imp := range f.Imports {
			if dir, ok := t.local(imp); ok {
				if why := mayImport(f, dir); why != "" {
					out = append(out, fmt.Sprintf("%s imports %s: %s", f.Path, dir, why))
				}
				continue
			}
			if why := mayUse(f, imp); why != "" {
				out = append(out, fmt.Sprintf("%s imports %s: %s", f.Path, imp, why))
			}
		}
	}
	return out
}

// mayImport says why file f may not import our package dir; "" when it may.
func mayImport(f File, dir string) string {
	from, ok := floorOf(f.Package)
	if !ok {
		return f.Package + " stands on no floor; add it to the table in internal/archtest/floors.go"
	}
	to, ok := floorOf(dir)
	switch {
	case !ok:
		return dir + " stands on no floor; add it to the table in internal/archtest/floors.go"
	case f.Package == dir && f.Test, below(dir, f.Package), f.Test && below(f.Package, dir), f.Package == conformance(dir):
		return ""
	case to == kit:
		if f.Test || from == kit || below(f.Package, "e2e") || below(f.Package, "hack") {
			return ""
		}
		return "the test kit is for tests only"
	case from == kit:
		if to <= 2 {
			return ""
		}
		return "the test kit shares no code with the runtime it judges"
	case to < from:
		return ""
	case to == from:
		return fmt.Sprintf("both stand on floor %d; declare the interface you need, or move it down", from/10)
	default:
		return fmt.Sprintf("floor %d may not reach up to floor %d", from/10, to/10)
	}
}

// conformance is the package beside an interface that holds its conformance suite: snapshot/snapshottest.
func conformance(dir string) string { return dir + "/" + path.Base(dir) + "test" }

// mayUse says why file f may not import a package of others.
func mayUse(f File, imp string) string {
	table := outside()
	rule, ok := longestPrefix(maps.Keys(table), imp)
	if !ok || f.Test && imp != "io/ioutil" && len(table[rule]) > 0 {
		return ""
	}
	if _, ours := floors()[imp]; rule == "log" && imp != "log" || ours {
		return ""
	}
	for _, allowed := range table[rule] {
		if below(f.Package, allowed) {
			return ""
		}
	}
	if len(table[rule]) == 0 {
		return "used nowhere in this project"
	}
	return "only " + strings.Join(table[rule], ", ") + " may"
}

// Keeper reports what the keeper's program is linked from that it must not be.
func Keeper(t *Tree) []string {
	var out []string
	imports := make(map[string][]File)
	for _, f := range t.Files {
		if !f.Test {
			imports[f.Package] = append(imports[f.Package], f)
		}
	}
	seen := map[string]bool{"cmd/shim-keeper": true}
	for queue := []string{"cmd/shim-keeper"}; len(queue) > 0; queue = queue[1:] {
		for _, f := range imports[queue[0]] {
			for _, imp := range f.Imports {
				if dir, ok := t.local(imp); ok && !seen[dir] {
					seen[dir] = true
					queue = append(queue, dir)
				}
				if strings.Contains(imp, ".") && !slices.Contains(keeperMay(), imp) || slices.Contains(keeperMustNot(), imp) {
					out = append(out, fmt.Sprintf("%s imports %s: it is linked into shim-keeper, which must stay tiny", f.Path, imp))
				}
			}
		}
	}
	return out
}

// floorOf finds the floor of one of our packages.
func floorOf(dir string) (int, bool) {
	table := floors()
	key, ok := longestPrefix(maps.Keys(table), dir)
	return table[key], ok
}

func longestPrefix(keys func(func(string) bool), name string) (string, bool) {
	best, found := "", false
	for k := range keys {
		if below(name, k) && len(k) >= len(best) {
			best, found = k, true
		}
	}
	return best, found
}

// below says that name is dir or stands below it.
func below(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, dir+"/")
}
