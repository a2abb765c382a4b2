// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"crishim.dev/internal/errs"
)

// maxAuthFile bounds a file of credentials.
const maxAuthFile = 1 << 20

// readAuthFile finds credentials in a file as docker login and podman login write it (containers-auth.json(5)); credential helpers
// are not run. name is a host and a repository: the entry for the most of it counts. key is that entry's name; empty: there is none.
func readAuthFile(path, name string) (a Auth, key string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return a, "", fmt.Errorf("read credentials: %w", err)
	}
	var f struct {
		Auths map[string]struct {
			Username      string `json:"username"`
			Password      string `json:"password"`
			Auth          string `json:"auth"`
			IdentityToken string `json:"identitytoken"`
			RegistryToken string `json:"registrytoken"`
		} `json:"auths"`
	}
	// The decoder's errors can quote the file, which is nothing but secrets.
	if len(b) > maxAuthFile || json.Unmarshal(b, &f) != nil {
		return a, "", errs.Newf(errs.Invalid, "read credentials: %s is not JSON as docker login writes it", path)
	}
	name = authName(name)
	most := -1
	for k, e := range f.Auths {
		found := Auth{Username: e.Username, Password: e.Password, Auth: e.Auth, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
		n := authName(k)
		if (n == name || strings.HasPrefix(name, n+"/")) && len(n) > most && !found.empty() {
			a, key, most = found, k, len(n)
		}
	}
	return a, key, nil
}

// authName is what a key such as "https://index.docker.io/v1/" means: "docker.io".
func authName(key string) string {
	_, rest, ok := strings.Cut(key, "://")
	if !ok {
		rest = key
	}
	rest = strings.TrimSuffix(rest, "/")
	host, path, _ := strings.Cut(rest, "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	return strings.TrimSuffix(hubName(host)+"/"+path, "/")
}
