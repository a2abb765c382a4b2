// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

func newKey(t *testing.T, path string) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err == nil {
		err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign pushes a signature as cosign does: of digest in the named repository, found under the tag of the digest at.
func sign(t *testing.T, reg *registrytest.Server, key *ecdsa.PrivateKey, repository, at, digest, name string) {
	t.Helper()
	text := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, name, digest)
	sum := sha256.Sum256(text)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{{
		MediaType: "application/vnd.dev.cosign.simplesigning.v1+json", Digest: registrytest.DigestOf(text), Size: int64(len(text)),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)},
	}}}
	m.SchemaVersion = 2
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	reg.PutBlob(text)
	reg.PutManifest(repository, strings.Replace(at, ":", "-", 1)+".sig", v1.MediaTypeImageManifest, b)
}

// signBundle pushes a signature as cosign 3 does: a bundle with a statement, which refers to the image. With tag, the list of those
// that refer is under the tag for registries that keep none.
func signBundle(t *testing.T, reg *registrytest.Server, key *ecdsa.PrivateKey, repository, at, digest, predicate string, tag bool) {
	t.Helper()
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const payloadType, bundleType = "application/vnd.in-toto+json", "application/vnd.dev.sigstore.bundle.v0.3+json"
	text := marshal(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": map[string]any{},
		"subject": []any{map[string]any{"digest": map[string]string{"sha256": strings.TrimPrefix(digest, "sha256:")}}},
	})
	sum := sha256.Sum256(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(text), text))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	bundle := marshal(map[string]any{"mediaType": bundleType, "dsseEnvelope": map[string]any{
		"payload": text, "payloadType": payloadType, "signatures": []any{map[string]any{"sig": sig}},
	}})
	reg.PutBlob(bundle)
	m := v1.Manifest{
		MediaType: v1.MediaTypeImageManifest, ArtifactType: bundleType, Config: v1.DescriptorEmptyJSON,
		Layers:  []v1.Descriptor{{MediaType: bundleType, Digest: registrytest.DigestOf(bundle), Size: int64(len(bundle))}},
		Subject: &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: godigest.Digest(at), Size: 1},
	}
	m.SchemaVersion = 2
	d := reg.PutManifest(repository, "", v1.MediaTypeImageManifest, marshal(m))
	if tag {
		d.ArtifactType = bundleType
		index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{d}}
		index.SchemaVersion = 2
		reg.PutManifest(repository, strings.Replace(at, ":", "-", 1), v1.MediaTypeImageIndex, marshal(index))
	}
}

// A signature in a bundle counts as one of cosign's own form does.
func TestSignatureBundles(t *testing.T) {
	dir := t.TempDir()
	good, bad := newKey(t, filepath.Join(dir, "good.pub")), newKey(t, filepath.Join(dir, "bad.pub"))
	policy := filepath.Join(dir, "policy.toml")
	const signed = "https://sigstore.dev/cosign/sign/v1"
	other := registrytest.Digest([]byte("other"))
	for _, tag := range []bool{false, true} {
		reg := registrytest.New(t)
		if tag {
			reg.NoReferrers()
		}
		text := "default = \"reject\"\n[[rule]]\nmatch = \"" + reg.Host + "\"\npolicy = \"require\"\nkeys = [\"good.pub\"]\n"
		if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n := open(t, t.TempDir(), func(o *image.Options) { o.PolicyFile = policy })
		for name, tt := range map[string]struct {
			sign func(repository, digest string)
			want string // "": pulled
		}{
			"unsigned":       {func(string, string) {}, "not signed"},
			"signed":         {func(r, d string) { signBundle(t, reg, good, r, d, d, signed, tag) }, ""},
			"another-key":    {func(r, d string) { signBundle(t, reg, bad, r, d, d, signed, tag) }, "none of the keys"},
			"another-image":  {func(r, d string) { signBundle(t, reg, good, r, d, other, signed, tag) }, "for another image"},
			"an-attestation": {func(r, d string) { signBundle(t, reg, good, r, d, d, "https://slsa.dev/provenance/v1", tag) }, "something else"},
			"both-forms": {func(r, d string) {
				sign(t, reg, bad, r, d, d, reg.Host+"/"+r)
				signBundle(t, reg, good, r, d, d, signed, tag)
			}, ""},
		} {
			t.Run(fmt.Sprintf("%s tag %t", name, tag), func(t *testing.T) {
				desc := reg.Push(t, name, "v", simple(t, name))
				tt.sign(name, string(desc.Digest))
				_, err := n.Pull(t.Context(), reg.Host+"/"+name+":v", nil)
				if tt.want == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				wantKind(t, err, crierrors.ErrSignatureValidationFailed, tt.want)
			})
		}
	}
}

func TestSignaturePolicy(t *testing.T) {
	reg, dir := registrytest.New(t), t.TempDir()
	good, bad := newKey(t, filepath.Join(dir, "good.pub")), newKey(t, filepath.Join(dir, "bad.pub"))
	policy := filepath.Join(dir, "policy.toml")
	write := func(text string) {
		if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf("default = \"accept\"\n[[rule]]\nmatch = %q\npolicy = \"require\"\nkeys = [\"good.pub\"]\n[[rule]]\nmatch = %q\npolicy = \"reject\"\n",
		reg.Host+"/team", reg.Host+"/team/never"))
	n := open(t, dir, func(o *image.Options) { o.PolicyFile = policy })
	other := registrytest.Digest([]byte("other"))
	for name, tt := range map[string]struct {
		repository string
		sign       func(repository, digest string)
		want       string // "": pulled
	}{
		"free":           {"free", nil, ""},
		"like the rule":  {"teams", nil, ""},
		"rejected":       {"team/never", nil, "rejects"},
		"below rejected": {"team/never/x", nil, "rejects"},
		"unsigned":       {"team/unsigned", nil, "not signed"},
		"signed":         {"team/signed", func(r, d string) { sign(t, reg, good, r, d, d, reg.Host+"/"+r) }, ""},
		"another key":    {"team/other-key", func(r, d string) { sign(t, reg, bad, r, d, d, reg.Host+"/"+r) }, "none of the keys"},
		"another image":  {"team/other-image", func(r, d string) { sign(t, reg, good, r, d, other, reg.Host+"/"+r) }, "a signature is for"},
		"another name":   {"team/other-name", func(r, d string) { sign(t, reg, good, r, d, d, reg.Host+"/team/signed") }, "for the repository"},
	} {
		t.Run(name, func(t *testing.T) {
			desc := reg.Push(t, tt.repository, "v", simple(t, name))
			if tt.sign != nil {
				tt.sign(tt.repository, string(desc.Digest))
			}
			before := len(reg.Requests("/blobs/"))
			_, err := n.Pull(t.Context(), reg.Host+"/"+tt.repository+":v", nil)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantKind(t, err, errs.Denied, tt.want)
			wantKind(t, err, crierrors.ErrSignatureValidationFailed)
			if after := len(reg.Requests("/blobs/")); after > before+1 { // the signature's payload at most
				t.Errorf("%d blobs were fetched of a refused image", after-before)
			}
		})
	}
	// The policy counts for what is present, too, and one that can't be read refuses everything.
	write("default = \"reject\"\n")
	_, err := n.Pull(t.Context(), reg.Host+"/free:v", nil)
	wantKind(t, err, crierrors.ErrSignatureValidationFailed)
	for _, text := range []string{"default = \"maybe\"", "", "default = \"accept\"\nx = 1", "default = \"accept\"\n[[rule]]\nmatch = \"a\"\npolicy = \"require\"\n",
		"default = \"accept\"\n[[rule]]\nmatch = \"a\"\npolicy = \"require\"\nkeys = [\"none.pub\"]\n", "default = \"accept\"\n[[rule]]\nmatch = \"a\"\npolicy = \"fine\"\n"} {
		write(text)
		if _, err := n.Pull(t.Context(), reg.Host+"/free:v", nil); err == nil {
			t.Errorf("pulled under the policy %q", text)
		}
	}
}
