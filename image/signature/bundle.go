// SPDX-License-Identifier: Apache-2.0

package signature

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

const (
	bundleType    = "application/vnd.dev.sigstore.bundle.v0.3+json"
	inTotoType    = "application/vnd.in-toto+json"
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
)

// bundle is what is needed of a sigstore bundle (sigstore/protobuf-specs, bundle.proto): the signed statement. What it has of
// certificates and transparency logs is not looked at: the keys alone decide.
type bundle struct {
	Envelope dsse.Envelope `json:"dsseEnvelope"`
}

// statement is an in-toto statement (in-toto/attestation, spec/v1).
type statement struct {
	Subject []struct {
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
	PredicateType string `json:"predicateType"`
}

// referring finds the bundles that refer to the image.
func (c check) referring(ctx context.Context) ([]candidate, error) {
	found, err := c.source.Referrers(ctx, c.digest, bundleType)
	if err != nil {
		return nil, err
	}
	var out []candidate
	for _, d := range found {
		out = append(out, func(ctx context.Context) error { return c.bundle(ctx, d) })
	}
	return out, nil
}

// bundle verifies a signature in a bundle. Unlike one of cosign's own form it names no repository: the image is right if the key
// signed it, wherever it was.
func (c check) bundle(ctx context.Context, d v1.Descriptor) error {
	raw, err := c.source.Manifest(ctx, string(d.Digest))
	if err != nil {
		return err
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil || len(m.Layers) != 1 || m.Layers[0].MediaType != bundleType {
		return errors.New("a signature's manifest is malformed")
	}
	if raw, err = c.source.Blob(ctx, m.Layers[0], maxBundle); err != nil {
		return err
	}
	var b bundle
	if err := json.Unmarshal(raw, &b); err != nil {
		return errors.New("a signature's bundle is malformed")
	}
	text, err := b.Envelope.DecodeB64Payload()
	if err != nil || b.Envelope.PayloadType != inTotoType {
		return errors.New("a signature's bundle has no statement")
	}
	signed := slices.ContainsFunc(b.Envelope.Signatures, func(s dsse.Signature) bool {
		sig, err := base64.StdEncoding.DecodeString(s.Sig)
		return err == nil && c.signed(dsse.PAE(b.Envelope.PayloadType, text), sig)
	})
	if !signed {
		return errors.New("a signature is by none of the keys")
	}
	var st statement
	if err := json.Unmarshal(text, &st); err != nil || st.PredicateType != signPredicate {
		return errors.New("a signature signs something else than an image")
	}
	for _, s := range st.Subject {
		if "sha256:"+s.Digest["sha256"] == c.digest {
			return nil
		}
	}
	return fmt.Errorf("a signature is for another image than %s", strings.TrimPrefix(c.digest, "sha256:"))
}
