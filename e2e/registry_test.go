// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
)

// requireLogin answers 401 until the request has the credentials.
func requireLogin(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return true
	}
}

// copyTag puts a second tag on an image of the node's registry.
func copyTag(t *testing.T, n *testnode.Node, repository, from, to string) {
	t.Helper()
	base := "http://" + n.Registry.Host + "/v2/" + repository + "/manifests/"
	resp, err := http.Get(base + from)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(kit.Context(t), http.MethodPut, base+to, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", resp.Header.Get("Content-Type"))
	put, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	put.Body.Close()
	if put.StatusCode >= 300 {
		t.Fatalf("tag %s: %s", to, put.Status)
	}
}

// serve puts a registry of its own beside the node's, which answers everything with f.
func serve(t *testing.T, n *testnode.Node, f func(http.ResponseWriter, *http.Request) bool) *testnode.Registry {
	t.Helper()
	r, err := testnode.StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if err := n.Mirror(r); err != nil {
		t.Fatal(err)
	}
	r.Intercept(f)
	return r
}
