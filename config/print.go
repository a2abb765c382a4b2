// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"io"
	"reflect"
	"sort"
	"strconv"
	"strings"
)

// lineWidth is where Print breaks its comments.
const lineWidth = 110

// Print writes c as TOML, each key under the comment of its field's doc tag. Merging the output into any
// configuration gives c again.
func Print(w io.Writer, c Config) error {
	var b strings.Builder
	printTable(&b, "", reflect.ValueOf(c))
	_, err := io.WriteString(w, b.String())
	return err
}

// printTable writes the plain keys of the struct v, then its tables; TOML wants them in this order.
func printTable(b *strings.Builder, name string, v reflect.Value) {
	t := v.Type()
	var tables []int
	for i := range t.NumField() {
		switch t.Field(i).Type.Kind() {
		case reflect.Struct, reflect.Map:
			tables = append(tables, i)
		default:
			printComment(b, t.Field(i).Tag.Get("doc"))
			fmt.Fprintf(b, "%s = %s\n", t.Field(i).Tag.Get("toml"), value(v.Field(i)))
		}
	}
	for _, i := range tables {
		f := t.Field(i)
		full := strings.TrimPrefix(name+"."+f.Tag.Get("toml"), ".")
		b.WriteByte('\n')
		printComment(b, f.Tag.Get("doc"))
		if f.Type.Kind() == reflect.Struct {
			fmt.Fprintf(b, "[%s]\n", full)
			printTable(b, full, v.Field(i))
			continue
		}
		fmt.Fprintf(b, "[%s]\n", full)
		for _, k := range sortedKeys(v.Field(i)) {
			sub := full + "." + quote(k)
			fmt.Fprintf(b, "\n[%s]\n", sub)
			printTable(b, sub, v.Field(i).MapIndex(reflect.ValueOf(k)))
		}
	}
}

func sortedKeys(m reflect.Value) []string {
	var keys []string
	for _, k := range m.MapKeys() {
		keys = append(keys, k.String())
	}
	sort.Strings(keys)
	return keys
}

// printComment writes text as comment lines no longer than lineWidth.
func printComment(b *strings.Builder, text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > lineWidth {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	if line != "#" {
		b.WriteString(line + "\n")
	}
}

// value is v in TOML. A kind that no field has is our own bug.
func value(v reflect.Value) string {
	if d, ok := v.Interface().(Duration); ok {
		text, _ := d.MarshalText()
		return quote(string(text))
	}
	switch v.Kind() {
	case reflect.String:
		return quote(v.String())
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Uint64:
		return strconv.FormatUint(v.Uint(), 10)
	case reflect.Slice:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = value(v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	default:
		panic("config: no TOML form for " + v.Type().String())
	}
}

// quote is s as a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
