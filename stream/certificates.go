// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// certificates serves a key pair from files and reads it again once they changed. Safe for concurrent use.
type certificates struct {
	cert, key string

	mu sync.Mutex
	// pair, and what the files looked like when it was read, are guarded by mu.
	pair    *tls.Certificate
	certMod fileStamp
	keyMod  fileStamp
}

type fileStamp struct {
	mod  time.Time
	size int64
}

// newCertificates reads the pair; an unreadable one is an error now, and later leaves the last good one in use.
func newCertificates(cert, key string) (*certificates, error) {
	c := &certificates{cert: cert, key: key}
	if _, err := c.get(nil); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	certMod, keyMod := stampOf(c.cert), stampOf(c.key)
	if c.pair != nil && certMod == c.certMod && keyMod == c.keyMod {
		return c.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		if c.pair != nil {
			return c.pair, nil
		}
		return nil, fmt.Errorf("read streaming certificate: %w", err)
	}
	c.pair, c.certMod, c.keyMod = &pair, certMod, keyMod
	return c.pair, nil
}

func stampOf(path string) fileStamp {
	fi, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{fi.ModTime(), fi.Size()}
}
