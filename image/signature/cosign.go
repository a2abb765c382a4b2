// SPDX-License-Identifier: Apache-2.0

package signature

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/internal/errs"
)

// refuse makes a refusal: errs.Denied, and the error that the kubelet knows by name.
func refuse(format string, args ...any) error {
	return errs.As(crierrors.ErrSignatureValidationFailed, errs.Newf(errs.Denied, format, args...))
}

// Source gets documents of an image's repository.
type Source interface {
	// Manifest fetches a manifest by tag; errs.NotFound says that there is none.
	Manifest(ctx context.Context, tag string) ([]byte, error)
	// Blob fetches a blob of at most limit bytes, checked against its digest.
	Blob(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error)
	// Repository gives the normalised repository of a reference, as Check's name; "" for a malformed one.
	Repository(reference string) string
}

const (
	// maxSignatures bounds the signatures that are looked at; maxPayload the text that each signs.
	maxSignatures = 64
	maxPayload    = 64 << 10
	annotation    = "dev.cosignproject.cosign/signature"
	simpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	payloadType   = "cosign container image signature"
)

// Check says whether the image with this digest, from the repository name ("docker.io/library/app"), may be used. A refusal is
// errs.Denied and crierrors.ErrSignatureValidationFailed; a registry that can't be asked for signatures keeps its own error.
func (p *Policy) Check(ctx context.Context, name, digest string, s Source) error {
	r := p.rule(name)
	switch r.Policy {
	case Accept:
		return nil
	case Reject:
		return refuse("the policy rejects %s", name)
	}
	// Where cosign puts signatures by key: a tag made of the digest, in the same repository.
	b, err := s.Manifest(ctx, strings.Replace(digest, ":", "-", 1)+".sig")
	if errors.Is(err, errs.NotFound) {
		return refuse("%s@%s is not signed", name, digest)
	}
	if err != nil {
		return fmt.Errorf("fetch signatures: %w", err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return refuse("malformed signature manifest")
	}
	var why []string
	for i, l := range m.Layers {
		if l.MediaType != simpleSigning || i >= maxSignatures {
			continue
		}
		err := r.verify(ctx, name, digest, l, s)
		if err == nil {
			return nil
		}
		if errors.Is(err, errs.Unavailable) || ctx.Err() != nil {
			return fmt.Errorf("fetch signatures: %w", err)
		}
		why = append(why, err.Error())
	}
	if len(why) == 0 {
		why = []string{"there is no signature in its signature manifest"}
	}
	return refuse("%s@%s: %s", name, digest, strings.Join(why, "; "))
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

// verify checks one signature: first that one of the keys made it, and only then what it says.
func (r rule) verify(ctx context.Context, name, digest string, l v1.Descriptor, s Source) error {
	sig, err := base64.StdEncoding.DecodeString(l.Annotations[annotation])
	if err != nil || len(sig) == 0 {
		return errors.New("a signature is malformed")
	}
	text, err := s.Blob(ctx, l, maxPayload)
	if err != nil {
		return err
	}
	signed := false
	for _, v := range r.verifiers {
		signed = signed || v.VerifySignature(bytes.NewReader(sig), bytes.NewReader(text)) == nil
	}
	if !signed {
		return errors.New("a signature is by none of the keys")
	}
	var p payload
	if err := json.Unmarshal(text, &p); err != nil || p.Critical.Type != payloadType {
		return errors.New("a signature signs something else than an image")
	}
	if p.Critical.Image.Digest != digest {
		return fmt.Errorf("a signature is for %q", p.Critical.Image.Digest)
	}
	// Else the signature of one repository would vouch for another that the same key signs for.
	if s.Repository(p.Critical.Identity.Reference) != name {
		return fmt.Errorf("a signature is for the repository %q", p.Critical.Identity.Reference)
	}
	return nil
}
