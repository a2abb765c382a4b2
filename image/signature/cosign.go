// SPDX-License-Identifier: Apache-2.0

package signature

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	sigstore "github.com/sigstore/sigstore/pkg/signature"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/internal/errs"
)

// refuse makes a refusal: errs.Denied, and the error that the kubelet knows by name.
func refuse(format string, args ...any) error {
	return errs.As(crierrors.ErrSignatureValidationFailed, errs.Newf(errs.Denied, format, args...))
}

// Source gets documents of an image's repository.
type Source interface {
	// Manifest fetches a manifest by tag or digest; errs.NotFound says that there is none.
	Manifest(ctx context.Context, version string) ([]byte, error)
	// Referrers lists the manifests of an artifact type that say they are about the manifest with the digest; none is no error.
	Referrers(ctx context.Context, digest, artifactType string) ([]v1.Descriptor, error)
	// Blob fetches a blob of at most limit bytes, checked against its digest.
	Blob(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error)
	// Repository gives the normalised repository of a reference, as Check's name; "" for a malformed one.
	Repository(reference string) string
}

const (
	// maxSignatures bounds the signatures that are looked at; maxPayload the text that each signs; maxBundle a bundle around one.
	maxSignatures = 64
	maxPayload    = 64 << 10
	maxBundle     = 1 << 20

	annotation    = "dev.cosignproject.cosign/signature"
	simpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	payloadType   = "cosign container image signature"
)

// Check says whether the image with this digest, from the repository name ("docker.io/library/app"), may be used. A refusal is
// errs.Denied and crierrors.ErrSignatureValidationFailed; a registry that can't be asked for signatures keeps its own error.
//
// One signature by one of the keys is enough, in either form: cosign's own, under a tag made of the digest, or a sigstore bundle
// that refers to the image, as cosign makes them since its version 3.
func (p *Policy) Check(ctx context.Context, name, digest string, s Source) error {
	r := p.rule(name)
	switch r.Policy {
	case Accept:
		return nil
	case Reject:
		return refuse("the policy rejects %s", name)
	}
	c := check{r, name, digest, s}
	var why []string
	for _, find := range []func(context.Context) ([]candidate, error){c.tagged, c.referring} {
		found, err := find(ctx)
		if err != nil {
			return fmt.Errorf("fetch signatures: %w", err)
		}
		for _, verify := range found[:min(len(found), maxSignatures)] {
			err := verify(ctx)
			if err == nil {
				return nil
			}
			if errors.Is(err, errs.Unavailable) || ctx.Err() != nil {
				return fmt.Errorf("fetch signatures: %w", err)
			}
			why = append(why, err.Error())
		}
	}
	if len(why) == 0 {
		return refuse("%s@%s is not signed", name, digest)
	}
	slices.Sort(why)
	return refuse("%s@%s: %s", name, digest, strings.Join(slices.Compact(why), "; "))
}

// check is the question whether an image is signed as a rule wants it.
type check struct {
	rule
	name, digest string
	source       Source
}

// candidate verifies one signature: first that one of the keys made it, and only then what it says.
type candidate func(context.Context) error

// tagged finds the signatures under the tag.
func (c check) tagged(ctx context.Context) ([]candidate, error) {
	b, err := c.source.Manifest(ctx, strings.Replace(c.digest, ":", "-", 1)+".sig")
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, refuse("malformed signature manifest")
	}
	var out []candidate
	for _, l := range m.Layers {
		if l.MediaType == simpleSigning {
			out = append(out, func(ctx context.Context) error { return c.simple(ctx, l) })
		}
	}
	return out, nil
}

// payload is what a signature signs (containers/image, "Simple signing").
type payload struct {
	Critical struct {
		Type  string `json:"type"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
	} `json:"critical"`
}

// simple verifies a signature of cosign's own form.
func (c check) simple(ctx context.Context, l v1.Descriptor) error {
	sig, err := base64.StdEncoding.DecodeString(l.Annotations[annotation])
	if err != nil || len(sig) == 0 {
		return errors.New("a signature is malformed")
	}
	text, err := c.source.Blob(ctx, l, maxPayload)
	if err != nil {
		return err
	}
	if !c.signed(text, sig) {
		return errors.New("a signature is by none of the keys")
	}
	var p payload
	if err := json.Unmarshal(text, &p); err != nil || p.Critical.Type != payloadType {
		return errors.New("a signature signs something else than an image")
	}
	if p.Critical.Image.Digest != c.digest {
		return fmt.Errorf("a signature is for %q", p.Critical.Image.Digest)
	}
	// Else the signature of one repository would vouch for another that the same key signs for.
	if c.source.Repository(p.Critical.Identity.Reference) != c.name {
		return fmt.Errorf("a signature is for the repository %q", p.Critical.Identity.Reference)
	}
	return nil
}

// signed says whether one of the rule's keys made sig for text.
func (r rule) signed(text, sig []byte) bool {
	return slices.ContainsFunc(r.verifiers, func(v sigstore.Verifier) bool {
		return v.VerifySignature(bytes.NewReader(sig), bytes.NewReader(text)) == nil
	})
}
