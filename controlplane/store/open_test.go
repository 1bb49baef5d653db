package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file that lost its end is told as such at the start, wherever it was cut; it is neither served nor made anew.
func TestCutFile(t *testing.T) {
	dir := t.TempDir()
	b := open(t, filepath.Join(dir, "store.db"))
	for i := range 50 {
		if err := b.Commit(t.Context(), Txn{{Space: "t", If: Unchecked, Put: map[string][]byte{fmt.Sprint(i): bytes.Repeat([]byte("v"), 2000)}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	for _, size := range []int{1, 100, page, 2 * page, 3 * page, 4 * page, 10 * page} {
		path := filepath.Join(dir, fmt.Sprint("cut-", size))
		if err := os.WriteFile(path, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := OpenBolt(path)
		if err == nil {
			b.Close()
		}
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("cut to %d of %d bytes: %v", size, len(whole), err)
		}
		if kept, err := os.ReadFile(path); err != nil || !bytes.Equal(kept, whole[:size]) {
			t.Errorf("cut to %d bytes: it was changed: %v", size, err)
		}
	}
}
