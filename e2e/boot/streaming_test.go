// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// TestStreamingIdleTimeout: over SPDY and over WebSocket, a connection without traffic is closed and its process ends, and one with
// traffic outlives the timeout.
func TestStreamingIdleTimeout(t *testing.T) {
	n := start(t, testnode.Options{Name: "idle", Config: "[streaming]\nidle_timeout = \"2s\"\n"})
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	for _, transport := range []string{"spdy", "websocket"} {
		began := time.Now()
		out, err := n.Crictl(kit.Context(t), "exec", "--transport", transport, c.ID, "sh", "-c", "echo begun; sleep 600")
		// Some versions of crictl end without an error then.
		if took := time.Since(began); out != "begun\n" || took < 2*time.Second || took > 30*time.Second {
			t.Errorf("%s: an idle exec ended after %v with %q, %v; want the end after 2 s", transport, took, out, err)
		}
		kit.Until(t, func() error {
			if out := c.Exec("ps"); strings.Contains(out, "sleep 600") {
				return fmt.Errorf("%s: its process runs on:\n%s", transport, out)
			}
			return nil
		})
		out, err = n.Crictl(kit.Context(t), "exec", "--transport", transport, c.ID, "sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.7; done")
		if err != nil || strings.Count(out, "\n") != 6 {
			t.Errorf("%s: an exec that says something now and then: %q, %v", transport, out, err)
		}
	}
}

// TestStreamingTLS: clients are served by the certificate of the configuration, and by a new one as soon as its files are there.
func TestStreamingTLS(t *testing.T) {
	testnode.Need(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certificate(t, cert, key)
	n := start(t, testnode.Options{Name: "tls", Config: fmt.Sprintf("[streaming]\ntls_cert = %q\ntls_key = %q\n", cert, key)})
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	hello := func(ca string) error {
		out, err := n.Crictl(kit.Context(t), "exec", "--tls-ca", ca, "--tls-cert", cert, "--tls-key", key, c.ID, "echo", "hello")
		if err == nil && out != "hello\n" {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	}
	if err := hello(cert); err != nil {
		t.Errorf("exec over TLS: %v", err)
	}
	old := filepath.Join(dir, "old.pem")
	if err := os.Rename(cert, old); err != nil {
		t.Fatal(err)
	}
	certificate(t, cert, key)
	if err := hello(cert); err != nil {
		t.Errorf("after the certificate was replaced: %v", err)
	}
	if err := hello(old); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a client that trusts the old certificate alone: %v", err)
	}
}

// certificate writes a new self-signed pair for the loopback address.
func certificate(t *testing.T, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
