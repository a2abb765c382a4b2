// SPDX-License-Identifier: Apache-2.0

package registrytest

import "github.com/opencontainers/go-digest"

// DigestOf is Digest with the type that descriptors want.
func DigestOf(b []byte) digest.Digest { return digest.Digest(Digest(b)) }
