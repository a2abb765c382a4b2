// SPDX-License-Identifier: Apache-2.0

package registry

import "strings"

// Step is one host that a pull would ask, or pass by.
type Step struct {
	// URL is the root of the API there.
	URL string
	// From is the file that names the host; empty: it is the default for the registry's name.
	From string
	// Mirror says that it stands in for the registry.
	Mirror bool
	// Resolve and Pull are what it may be asked: tags, and content by digest.
	Resolve, Pull bool
	// Credentials says whose are sent, never what they are.
	Credentials string
	// Skipped says why it is not asked for this reference; empty: it is, if those before it fail.
	Skipped string
}

// Explain lists the hosts of a pull in the order in which they would be asked. Nothing is sent.
func (c *Client) Explain(ref Reference, request *Auth) ([]Step, error) {
	hosts, err := Hosts(c.o.CertsDir, ref.Host)
	if err != nil {
		return nil, err
	}
	out := make([]Step, 0, len(hosts))
	for i, h := range hosts {
		_, why, err := c.credentials(ref, h, request)
		if err != nil {
			return nil, err
		}
		s := Step{
			URL: strings.TrimSuffix(h.Base.String(), "/"), From: h.From, Mirror: h.Mirror,
			Resolve: h.Resolve, Pull: h.Pull, Credentials: why,
		}
		if ok, no := (&endpoint{host: h}).may(ref.Version()); !ok {
			s.Skipped = no
		}
		if c.o.NoFallback && hosts[0].Mirror && i == len(hosts)-1 {
			s.Skipped = "the configuration forbids falling back from mirrors"
		}
		if _, err := h.transport(); err != nil {
			s.Skipped = "its certificates can't be used: " + err.Error()
		}
		out = append(out, s)
	}
	return out, nil
}
