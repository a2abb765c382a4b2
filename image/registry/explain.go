// SPDX-License-Identifier: Apache-2.0

package registry

// Step is one host that a pull would ask, or pass by.
type Step struct {
	// URL is the root of the API there.
	URL string `json:"url"`
	// From is the file or directory that configures the host; empty: it is the default for the registry's name.
	From string `json:"from,omitempty"`
	// Mirror says that it stands in for the registry.
	Mirror bool `json:"mirror"`
	// EitherScheme says that a host of http is asked by https first.
	EitherScheme bool `json:"either_scheme,omitempty"`
	// SkipVerify says that its certificate is not checked.
	SkipVerify bool `json:"skip_verify,omitempty"`
	// Credentials says whose are sent if it asks for some, never what they are.
	Credentials string `json:"credentials"`
	// NoResolve and NoPull say why it is not asked what a tag stands for, and for content by digest; empty: it is, if those before
	// it fail.
	NoResolve string `json:"no_resolve,omitempty"`
	NoPull    string `json:"no_pull,omitempty"`
}

// Explain lists the hosts of a pull in the order in which they would be asked. Nothing is sent. It fails where a pull would, for
// a configuration that can't be used.
func (c *Client) Explain(ref Reference, request *Auth) ([]Step, error) {
	r, err := c.Repository(ref, request)
	if err != nil {
		return nil, err
	}
	var out []Step
	for _, e := range r.endpoints {
		h := e.host
		out = append(out, Step{
			URL: h.Base.String(), From: h.From, Mirror: h.Mirror, EitherScheme: h.eitherScheme, SkipVerify: h.skipVerify,
			Credentials: e.whose, NoResolve: e.skips("a-tag"), NoPull: e.skips(anyDigest),
		})
	}
	return out, nil
}

// anyDigest stands for content that is asked for by digest.
const anyDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
