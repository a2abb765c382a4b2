// SPDX-License-Identifier: Apache-2.0

package signature

import "testing"

func TestTheLongestMatchDecides(t *testing.T) {
	p, err := parse([]byte(`
default = "accept"
[[rule]]
match = "reg.example"
policy = "reject"
[[rule]]
match = "reg.example/team/"
policy = "accept"
[[rule]]
match = "reg.example/team/app"
policy = "reject"
`), "/etc/shim")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]string{
		"other.example/app": {Accept, ""}, "reg.example.org/app": {Accept, ""}, "reg.example/app": {Reject, "reg.example"},
		"reg.example/team/web": {Accept, "reg.example/team"}, "reg.example/teams/web": {Reject, "reg.example"},
		"reg.example/team/app": {Reject, "reg.example/team/app"}, "reg.example/team/app/x": {Reject, "reg.example/team/app"},
		"reg.example/team/application": {Accept, "reg.example/team"},
	} {
		if policy, match := p.Of(name); policy != want[0] || match != want[1] {
			t.Errorf("%s: %s by %q, want %q", name, policy, match, want)
		}
	}
}

// FuzzPolicy: a policy that is read says something clear of every repository, and never less than its default.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte("default = \"reject\"\n[[rule]]\nmatch = \"a/b\"\npolicy = \"accept\"\n"), "a/b/c")
	f.Add([]byte("default = \"accept\"\n[[rule]]\nmatch = \"a\"\npolicy = \"require\"\nkeys = [\"x.pub\"]\n"), "a")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		p, err := parse(b, "/nonexistent")
		if err != nil {
			return
		}
		policy, match := p.Of(name)
		if policy != Accept && policy != Reject || match == "" && policy != p.byDefault {
			t.Errorf("%q: %q by %q", name, policy, match) // require can't be: there are no keys to be read
		}
	})
}
