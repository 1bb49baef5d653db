//go:build !unix

package dataplane

import (
	"context"
	"os"
	"path/filepath"
)

// lock does not keep a second process out here.
func lock(_ context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, "proxy.lock"), os.O_RDWR|os.O_CREATE, 0o600)
}
