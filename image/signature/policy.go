// SPDX-License-Identifier: Apache-2.0

// Package signature decides whether an image may be pulled: by a policy file, and by signatures that cosign made with a key. All is
// checked on this machine against public keys; no transparency log and no certificate authority is asked.
package signature

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	toml "github.com/pelletier/go-toml/v2"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	sigstore "github.com/sigstore/sigstore/pkg/signature"

	"crishim.dev/internal/errs"
)

// What a policy may say.
const (
	Accept  = "accept"  // any image
	Reject  = "reject"  // none
	Require = "require" // one with a signature by one of the keys
)

// file is a policy file. The rule with the longest match decides; without one, the default.
//
//	default = "accept"
//	[[rule]]
//	match  = "registry.example/team"   # a registry, the beginning of a repository at a "/", or a whole repository
//	policy = "require"
//	keys   = ["team.pub"]              # PEM; relative to the file
type file struct {
	Default string `toml:"default"`
	Rule    []rule `toml:"rule"`
}

type rule struct {
	Match  string   `toml:"match"`
	Policy string   `toml:"policy"`
	Keys   []string `toml:"keys"`

	verifiers []sigstore.Verifier
}

// Policy is what a policy file says. Safe for concurrent use.
type Policy struct {
	byDefault string
	rules     []rule
}

// maxFile bounds a policy file and a key.
const maxFile = 1 << 20

// Load reads a policy file with its keys. Whatever is wrong with it is an error: a policy that is half understood protects nothing.
func Load(path string) (*Policy, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read signature policy: %w", err)
	}
	p, err := parse(b, filepath.Dir(path))
	if err != nil {
		return nil, errs.Newf(errs.Invalid, "read signature policy %s: %w", path, err)
	}
	return p, nil
}

func parse(b []byte, dir string) (*Policy, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	var f file
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&f); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return nil, fmt.Errorf("unknown key:\n%s", strict.String())
		}
		return nil, err
	}
	if f.Default != Accept && f.Default != Reject {
		return nil, fmt.Errorf(`default is %q, not "accept" or "reject"`, f.Default)
	}
	seen := map[string]bool{}
	for i := range f.Rule {
		r := &f.Rule[i]
		r.Match = strings.TrimSuffix(r.Match, "/")
		if r.Match == "" || seen[r.Match] {
			return nil, fmt.Errorf("rule %d: match %q is empty or there twice", i+1, r.Match)
		}
		seen[r.Match] = true
		if err := r.load(dir); err != nil {
			return nil, fmt.Errorf("rule for %s: %w", r.Match, err)
		}
	}
	return &Policy{f.Default, f.Rule}, nil
}

func (r *rule) load(dir string) error {
	switch {
	case r.Policy != Accept && r.Policy != Reject && r.Policy != Require:
		return fmt.Errorf("unknown policy %q", r.Policy)
	case (r.Policy == Require) != (len(r.Keys) > 0):
		return fmt.Errorf("policy %q with %d keys", r.Policy, len(r.Keys))
	}
	for _, k := range r.Keys {
		if !filepath.IsAbs(k) {
			k = filepath.Join(dir, k)
		}
		b, err := os.ReadFile(k)
		if err != nil {
			return fmt.Errorf("read key: %w", err)
		}
		key, err := cryptoutils.UnmarshalPEMToPublicKey(b)
		if err != nil {
			return fmt.Errorf("read key %s: %w", k, err)
		}
		// cosign's own signatures are over SHA-256, those in bundles over what suits the key.
		for _, load := range []func() (sigstore.Verifier, error){
			func() (sigstore.Verifier, error) { return sigstore.LoadVerifier(key, crypto.SHA256) },
			func() (sigstore.Verifier, error) { return sigstore.LoadDefaultVerifier(key) },
		} {
			v, err := load()
			if err != nil {
				return fmt.Errorf("read key %s: %w", k, err)
			}
			r.verifiers = append(r.verifiers, v)
		}
	}
	return nil
}

// Of says what the policy wants of a repository ("docker.io/library/app"), and by which rule's match; "" is the default's.
func (p *Policy) Of(name string) (policy, match string) {
	r := p.rule(name)
	return r.Policy, r.Match
}

// rule gives what is said of a repository.
func (p *Policy) rule(name string) rule {
	best := rule{Policy: p.byDefault}
	for _, r := range p.rules {
		if (name == r.Match || strings.HasPrefix(name, r.Match+"/")) && len(r.Match) > len(best.Match) {
			best = r
		}
	}
	return best
}
