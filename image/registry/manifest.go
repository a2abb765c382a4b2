// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"crishim.dev/internal/errs"
)

// MaxManifest is the largest manifest that is read.
const MaxManifest = 8 << 20

// Descriptor is what a registry, or a manifest, says of some content.
type Descriptor struct {
	MediaType string
	Digest    string
	Size      int64
}

// manifestTypes are the documents this project understands, as an Accept header.
func manifestTypes() string {
	return strings.Join([]string{
		"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
	}, ", ")
}

// Digest asks for the digest that the reference's tag stands for, without its content. Registries that don't say give "".
func (r *Repository) Digest(ctx context.Context) (digest string, err error) {
	err = r.each(ctx, r.ref.Version(), func(e *endpoint) error {
		resp, err := r.get(ctx, e, http.MethodHead, r.url(e, "manifests", r.ref.Version()), http.Header{"Accept": {manifestTypes()}})
		if err != nil {
			return err
		}
		digest = resp.Header.Get("Docker-Content-Digest")
		return resp.Body.Close()
	})
	if err == nil && !ValidDigest(digest) {
		digest = ""
	}
	return digest, err
}

// Manifest fetches a manifest by tag or digest. Its digest is computed from the content; one asked for by digest has it.
func (r *Repository) Manifest(ctx context.Context, version string) (d Descriptor, b []byte, err error) {
	err = r.each(ctx, version, func(e *endpoint) error {
		d, b, err = r.manifestFrom(ctx, e, version)
		return err
	})
	return d, b, err
}

// Referrers fetches the index of the manifests that say they are about the one with the digest: from the registry's list, or from
// the tag that stands in for one where a registry keeps none (distribution specification 1.1). artifactType is a wish, not a filter.
func (r *Repository) Referrers(ctx context.Context, digest, artifactType string) (b []byte, err error) {
	err = r.each(ctx, digest, func(e *endpoint) error {
		address := r.url(e, "referrers", digest)
		sep := "?"
		if strings.Contains(address, sep) {
			sep = "&"
		}
		_, b, err = r.document(ctx, e, address+sep+url.Values{"artifactType": {artifactType}}.Encode())
		return err
	})
	if errors.Is(err, errs.NotFound) {
		_, b, err = r.Manifest(ctx, strings.Replace(digest, ":", "-", 1))
	}
	return b, err
}

// document reads a manifest or a list of them.
func (r *Repository) document(ctx context.Context, e *endpoint, address string) (http.Header, []byte, error) {
	resp, err := r.get(ctx, e, http.MethodGet, address, http.Header{"Accept": {manifestTypes()}})
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return nil, nil, transportError("read manifest", err)
	}
	if len(b) > MaxManifest {
		return nil, nil, errs.Newf(errs.Invalid, "read manifest: larger than %d bytes", MaxManifest)
	}
	return resp.Header, b, nil
}

func (r *Repository) manifestFrom(ctx context.Context, e *endpoint, version string) (d Descriptor, b []byte, err error) {
	header, b, err := r.document(ctx, e, r.url(e, "manifests", version))
	if err != nil {
		return d, nil, err
	}
	sum := sha256.Sum256(b)
	d = Descriptor{Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(b))}
	d.MediaType, _, _ = strings.Cut(header.Get("Content-Type"), ";")
	d.MediaType = strings.TrimSpace(d.MediaType)
	wants := version
	if !ValidDigest(version) {
		wants = header.Get("Docker-Content-Digest")
	}
	if ValidDigest(wants) && wants != d.Digest {
		return d, nil, errs.Newf(errs.Invalid, "read manifest from %s: its digest is %s, not %s", e.host.Base.Host, d.Digest, wants)
	}
	return d, b, nil
}

// skips says why a host is not asked for a version (a tag or digest); "": it is.
func (e *endpoint) skips(version string) string {
	switch {
	case e.skip != "":
		return e.skip
	case ValidDigest(version) && !e.host.Pull:
		return "it has not the capability pull"
	case !ValidDigest(version) && !e.host.Resolve:
		return "it has not the capability resolve"
	}
	return ""
}

// more says whether there is a host to ask at or after the one with this number.
func (r *Repository) more(from int, version string) bool {
	return slices.ContainsFunc(r.endpoints[from:], func(e *endpoint) bool { return e.skips(version) == "" })
}

// each asks the hosts in order until one answers. The last host's error decides the kind: it is the registry itself, or the last
// resort. The texts of all are kept.
func (r *Repository) each(ctx context.Context, version string, ask func(*endpoint) error) error {
	var all []string
	var last error
	for i, e := range r.endpoints {
		if e.skips(version) != "" {
			continue
		}
		var err error
		if r.more(i+1, version) {
			err = ask(e) // another may answer sooner than this one does again
		} else {
			err = r.retry(ctx, func() error { return ask(e) })
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w", context.Cause(ctx))
		}
		last = redact(err, r.secrets)
		all = append(all, last.Error())
	}
	switch {
	case last == nil:
		return errs.Newf(errs.Unavailable, "none of the configured hosts may be asked")
	case len(all) == 1:
		return last
	}
	return &redacted{strings.Join(all, "; then "), last}
}

// retry repeats what failed for a reason that may pass.
func (r *Repository) retry(ctx context.Context, ask func() error) error {
	for i := 0; ; i++ {
		err := ask()
		if err == nil || !passing(err) || i+1 >= r.o.Retries || ctx.Err() != nil {
			return err
		}
		if e := r.pause(ctx, i, err); e != nil {
			return err
		}
	}
}

// passing says that the same request may soon succeed.
func passing(err error) bool {
	var b *busy
	return errors.As(err, &b)
}

// pause waits before retry number i.
func (r *Repository) pause(ctx context.Context, i int, err error) error {
	wait := r.o.Backoff << min(i, 6)
	var b *busy
	if errors.As(err, &b) {
		wait = max(wait, b.after)
	}
	return sleep(ctx, wait)
}
