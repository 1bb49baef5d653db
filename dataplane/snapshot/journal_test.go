package snapshot

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// journals are the files, in no order.
func journals(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, journalPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func only(t *testing.T, dir string) string {
	t.Helper()
	files := journals(t, dir)
	if len(files) != 1 {
		t.Fatalf("journals %v, want one", files)
	}
	return files[0]
}

// What Apply has returned for, a process that dies at once has on disk: no Run, no write.
func TestJournal(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   int64 // revision of acme
		err    bool
	}{
		{"killed", func(*testing.T, string) {}, 4, false},
		{"killed in the middle of a record", func(t *testing.T, dir string) { cut(t, only(t, dir), 10) }, 3, false},
		{"tampered", func(t *testing.T, dir string) { flip(only(t, dir)) }, 0, true},
		{"cut to nothing", func(t *testing.T, dir string) { os.Truncate(only(t, dir), 0) }, 1, false},
		{"gone", func(t *testing.T, dir string) { os.Remove(only(t, dir)) }, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := New(Config{Disk: openDisk(t, dir)})
			p := newPlane(t, s, "acme")
			p.fill(3000)
			p.good()
			other := newPlane(t, s, "other")
			other.fill(3001)
			other.good()
			p.set("secret/s", value("hunter2"))
			p.good()
			p.good()
			s.Drop("other")
			p.good()
			if data, _ := os.ReadFile(only(t, dir)); bytes.Contains(data, []byte("hunter2")) || bytes.Contains(data, []byte("one.test")) {
				t.Error("the journal is not sealed")
			}
			tt.damage(t, dir)

			again := New(Config{Disk: openDisk(t, dir), MaxStale: -1})
			restored, err := again.Restore()
			if !restored || (err != nil) != tt.err {
				t.Fatalf("Restore() = %v, %v", restored, err)
			}
			tenant := again.Load().Tenant("acme")
			if tenant == nil || !tenant.Stale || tt.want != 0 && tenant.Revision != tt.want {
				t.Errorf("restored %+v, want revision %d", tenant, tt.want)
			}
			if tt.want != 4 {
				return
			}
			if again.Load().Tenant("other") != nil {
				t.Error("a tenant that was dropped is back")
			}
			// And so on over many lives, with bounded files.
			for range 5 {
				p.store = again
				p.good()
				again.write()
				p.good()
				revision := again.Load().Tenant("acme").Revision
				again = New(Config{Disk: openDisk(t, dir), MaxStale: -1})
				if _, err := again.Restore(); err != nil || again.Load().Tenant("acme").Revision != revision {
					t.Fatalf("after another life: %v, %+v, want revision %d", err, again.Load().Tenant("acme"), revision)
				}
			}
			if files := journals(t, dir); len(files) > 3 {
				t.Errorf("journals pile up: %v", files)
			}
		})
	}
}

// A unit that kept its older form keeps it through a death.
func TestJournalKeepsOlderForms(t *testing.T) {
	dir := t.TempDir()
	s := New(Config{Disk: openDisk(t, dir)})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.set("policy/c", rule("false"))
	p.set("binding/r/b/one", &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/one", EffectivePolicy: "acme/policy/c"})
	p.good()
	p.set("policy/c", rule("("))
	if len(p.push()) == 0 {
		t.Fatal("nothing was refused")
	}
	good := target(t, s, "acme", "one")
	again := New(Config{Disk: openDisk(t, dir), MaxStale: -1})
	if _, err := again.Restore(); err != nil {
		t.Fatal(err)
	}
	if one := target(t, again, "acme", "one"); one.Refused != nil || one.Digest != good.Digest || len(again.Load().Tenant("acme").Refusals()) == 0 {
		t.Errorf("restored %+v with %v", one, again.Load().Tenant("acme").Refusals())
	}
}

// Where nothing can be written the proxy serves all the same.
func TestJournalOnABadDisk(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir)
	d.dir = filepath.Join(dir, diskKey) // a file
	s := New(Config{Disk: d})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.good()
	p.good()
	if target(t, s, "acme", "one").Refused != nil || !s.unwritable {
		t.Error("not served, or not known that the disk is bad")
	}
}

func cut(t *testing.T, path string, bytes int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-bytes); err != nil {
		t.Fatal(err)
	}
}
