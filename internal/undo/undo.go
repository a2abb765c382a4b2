// SPDX-License-Identifier: Apache-2.0

// Package undo keeps the inverses of the steps that succeeded, to be run backwards when a later step fails.
//
//	var u undo.Stack
//	defer u.Run(&err)           // runs only if err is set on return
//	if err := mkdir(); err != nil { return err }
//	u.Add(func() error { return rmdir() })
package undo

import (
	"errors"
	"slices"
)

// Stack is a list of inverses. The zero value is ready. Not safe for concurrent use.
type Stack struct{ steps []func() error }

// Add registers the inverse of a step that has just succeeded.
func (s *Stack) Add(f func() error) { s.steps = append(s.steps, f) }

// Run undoes the steps, last first, if *err is set, and joins what fails to it; otherwise it forgets them.
func (s *Stack) Run(err *error) {
	steps := s.steps
	s.steps = nil
	if *err == nil {
		return
	}
	for _, step := range slices.Backward(steps) {
		if e := step(); e != nil {
			*err = errors.Join(*err, e)
		}
	}
}
