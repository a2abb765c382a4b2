// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Load reads the main file at path and then the *.toml files of config.d beside it, over the defaults, and
// validates the result. A missing main file is an error only when required is set; config.d may always be missing.
func Load(path string, required bool) (Config, error) {
	c := Default()
	files, err := overrides(filepath.Join(filepath.Dir(path), "config.d"))
	if err != nil {
		return Config{}, err
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !required:
	case err != nil:
		return Config{}, fmt.Errorf("read configuration: %w", err)
	default:
		if err := c.Merge(path, data); err != nil {
			return Config{}, err
		}
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return Config{}, fmt.Errorf("read configuration: %w", err)
		}
		if err := c.Merge(f, data); err != nil {
			return Config{}, err
		}
	}
	return c, c.Validate()
}

// overrides lists the *.toml files of dir in lexical order; none when there is no dir.
func overrides(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var files []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") && !e.IsDir() {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	sort.Strings(files)
	return files, nil
}

// Merge lays the keys of one TOML document over c. Arrays are replaced, tables are merged key by key. name is the
// file's, for errors. On error c may hold a part of the document.
func (c *Config) Merge(name string, data []byte) error {
	handlers := c.Runtime.Handlers
	c.Runtime.Handlers = nil
	d := toml.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(c)
	for k, v := range c.Runtime.Handlers {
		if handlers == nil {
			handlers = map[string]Handler{}
		}
		handlers[k] = v
	}
	c.Runtime.Handlers = handlers
	return describe(name, err)
}

// describe turns the decoder's error into one line: the file, the line where known, and the key.
func describe(name string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var keys []string
		for _, e := range strict.Errors {
			line, _ := e.Position()
			keys = append(keys, fmt.Sprintf("%q (line %d)", strings.Join(e.Key(), "."), line))
		}
		return fmt.Errorf("read configuration %s: unknown key %s", name, strings.Join(keys, ", "))
	}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		line, column := at.Position()
		return fmt.Errorf("read configuration %s: line %d, column %d: %w", name, line, column, err)
	}
	if err != nil {
		return fmt.Errorf("read configuration %s: %w", name, err)
	}
	return nil
}
