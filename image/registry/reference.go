// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"regexp"
	"strings"

	"crishim.dev/internal/errs"
)

// Reference names an image in a registry. Its parts are normalised as Docker and containerd do: "busybox" is
// docker.io/library/busybox:latest.
type Reference struct {
	// Host is the registry, with a port where the name has one; "docker.io" for Docker Hub.
	Host string
	// Path is the repository in it.
	Path string
	// Tag and Digest: one of them is set. A name that has both is taken by its digest, and the tag is dropped.
	Tag, Digest string
}

// The grammar of github.com/distribution/reference, anchored.
var (
	hostGrammar   = regexp.MustCompile(`^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$`)
	pathGrammar   = regexp.MustCompile(`^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar    = regexp.MustCompile(`^\w[\w.-]{0,127}$`)
	digestGrammar = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	idGrammar     = regexp.MustCompile(`^[a-f0-9]{64}$`)
)

// Parse reads a reference as users and Kubernetes write it.
func Parse(s string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, errs.Newf(errs.Invalid, "parse image reference %q: %s", s, why)
	}
	if idGrammar.MatchString(s) {
		return bad("64 hexadecimal digits are an image id, not a name")
	}
	name, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest && !digestGrammar.MatchString(digest) {
		return bad("the digest is not sha256: and 64 lower-case hexadecimal digits")
	}
	var tag string
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
		if !tagGrammar.MatchString(tag) {
			return bad("malformed tag")
		}
	}
	r := Reference{Host: "docker.io", Path: name, Tag: tag, Digest: digest}
	if host, rest, ok := strings.Cut(name, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost" || host != strings.ToLower(host)) {
		r.Host, r.Path = host, rest
	}
	if r.Host == "index.docker.io" {
		r.Host = "docker.io"
	}
	if r.Host == "docker.io" && !strings.Contains(r.Path, "/") {
		r.Path = "library/" + r.Path
	}
	switch {
	case !hostGrammar.MatchString(r.Host):
		return bad("malformed registry host")
	case strings.ToLower(r.Path) != r.Path:
		return bad("the repository must be lower case")
	case len(r.Host)+1+len(r.Path) > 255:
		return bad("longer than 255 characters")
	case !pathGrammar.MatchString(r.Path):
		return bad("malformed repository")
	}
	if r.Digest != "" {
		r.Tag = ""
	} else if r.Tag == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// Name is the reference without tag and digest.
func (r Reference) Name() string { return r.Host + "/" + r.Path }

// String is the full, normalised reference.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest
	}
	return r.Name() + ":" + r.Tag
}

// Version is the tag or digest, as a registry's API wants it.
func (r Reference) Version() string {
	if r.Digest != "" {
		return r.Digest
	}
	return r.Tag
}

// ValidDigest says that s is a digest this project takes: SHA-256 in lower case.
func ValidDigest(s string) bool { return digestGrammar.MatchString(s) }
