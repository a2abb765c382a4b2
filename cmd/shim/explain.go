// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"crishim.dev/image/registry"
	"crishim.dev/image/signature"
)

// explanation is what a pull would do.
type explanation struct {
	// Reference is the image's full name.
	Reference string `json:"reference"`
	// Signatures is what the signature policy wants of it.
	Signatures string `json:"signatures"`
	// Hosts are the places it is looked for, in order.
	Hosts []registry.Step `json:"hosts"`
}

func explainPullCommand(f *flags) *cobra.Command {
	var o output
	var login bool
	c := &cobra.Command{
		Use:   "explain-pull IMAGE",
		Short: "Show which hosts a pull asks, in which order, with whose credentials, and which it passes by; nothing is sent",
		Long: "Show which hosts a pull asks, in which order, with whose credentials, and which it passes by. Nothing is sent, and no daemon\n" +
			"is needed: the answer comes from the same files. Credentials are named by where they come from, never shown.",
		Example: "  shim explain-pull registry.k8s.io/pause:3.10",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			e, err := f.explain(args[0], login)
			if err != nil {
				return err
			}
			if o.format == "table" {
				fmt.Fprintf(c.OutOrStdout(), "%s\nsignatures: %s\n", e.Reference, e.Signatures)
			}
			return o.print(c.OutOrStdout(), e, "\tHOST\tTAGS\tCONTENT\tCREDENTIALS\tFROM", func(w io.Writer) {
				for i, s := range e.Hosts {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", i+1, hostNotes(s), cmp.Or(no(s.NoResolve), "yes"), cmp.Or(no(s.NoPull), "yes"),
						s.Credentials, cmp.Or(s.From, "default"))
				}
			})
		},
	}
	o.flag(c)
	c.Flags().BoolVar(&login, "request-credentials", false, "as if the request brought credentials, as kubelet's do for a pod with imagePullSecrets")
	return c
}

func (f *flags) explain(name string, login bool) (e explanation, err error) {
	cfg, err := f.load()
	if err != nil {
		return e, err
	}
	ref, err := registry.Parse(name)
	if err != nil {
		return e, err
	}
	var auth *registry.Auth
	if login {
		auth = &registry.Auth{Username: "somebody"}
	}
	e.Reference = ref.String()
	if e.Hosts, err = registry.New(registryOptions(cfg.Image)).Explain(ref, auth); err != nil {
		return e, err
	}
	if cfg.Image.PolicyFile == "" {
		e.Signatures = "not asked for: there is no policy file"
		return e, nil
	}
	policy, err := signature.Load(cfg.Image.PolicyFile)
	if err != nil {
		return e, err
	}
	what, match := policy.Of(ref.Name())
	e.Signatures = fmt.Sprintf("%s, by the default of %s", what, cfg.Image.PolicyFile)
	if match != "" {
		e.Signatures = fmt.Sprintf("%s, by the rule for %s in %s", what, match, cfg.Image.PolicyFile)
	}
	return e, nil
}

// hostNotes is a host with what is unusual about it.
func hostNotes(s registry.Step) string {
	text := s.URL
	if s.EitherScheme {
		text += " (https first)"
	}
	if s.SkipVerify {
		text += " (any certificate)"
	}
	return text
}

// no is a reason in a table.
func no(why string) string {
	if why == "" {
		return ""
	}
	return "no: " + why
}
