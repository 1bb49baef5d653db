package snapshot

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func openDisk(t *testing.T, dir string) *Disk {
	t.Helper()
	d, err := OpenDisk(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRestore(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Disk: openDisk(t, dir)})
		if restored, err := s.Restore(); restored || err != nil {
			t.Errorf("Restore() of nothing = %v, %v", restored, err)
		}
		done := run(t, s)
		s.SetConnected(true)
		p := newPlane(t, s, "acme")
		p.fill(3000)
		p.set("policy/c", keyAuth(secretRef("acme/secret/s")))
		p.set("secret/s", value("hunter2"))
		p.set("binding/r/b/one", &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/one", EffectivePolicy: "acme/policy/c"})
		p.good()
		good := target(t, s, "acme", "one")
		// A revision that is refused in part comes last: after a restart, too, the unit has its older form.
		p.set("policy/c", rule("("))
		other := httpTarget("acme", "two", 1)
		other.GetMcp().Host = "elsewhere.test"
		p.set("target/b/two", other)
		refused := p.push()
		time.Sleep(2 * time.Second) // the debounce
		done()

		for _, name := range []string{diskFile, diskKey} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v, want mode 0600", name, info, err)
			}
		}
		if data, _ := os.ReadFile(filepath.Join(dir, diskFile)); bytes.Contains(data, []byte("hunter2")) || bytes.Contains(data, []byte("one.test")) {
			t.Error("the file is not sealed")
		}

		again := New(Config{Disk: openDisk(t, dir)})
		if restored, err := again.Restore(); !restored || err != nil {
			t.Fatalf("Restore() = %v, %v", restored, err)
		}
		one, two := target(t, again, "acme", "one"), target(t, again, "acme", "two")
		if one.Refused != nil || one.Digest != good.Digest || two.Config.GetMcp().GetHost() != "elsewhere.test" {
			t.Errorf("restored: %+v, %+v", one, two)
		}
		if diff := cmp.Diff(refusedNames(refused), refusedNames(again.Load().Tenant("acme").Refusals())); diff != "" {
			t.Errorf("refused after restart (-before +after):\n%s", diff)
		}
		if tenant := again.Load().Tenant("acme"); !tenant.Stale || tenant.Revision != 2 {
			t.Errorf("restored tenant %+v, want revision 2, stale", tenant)
		}
		if diff := cmp.Diff(s.Versions(), again.Versions()); diff != "" {
			t.Errorf("claims after restart (-before +after):\n%s", diff)
		}
		p.store = again
		p.push()
		if again.Load().Tenant("acme").Stale {
			t.Error("still stale after a Commit")
		}
	})
}

func TestDamagedFiles(t *testing.T) {
	for _, tt := range []struct {
		name     string
		damage   func(dir string)
		restored int64 // revision; 0: nothing. The older generation and its journal make up for the newest
		err      string
	}{
		{"whole", func(string) {}, 2, ""},
		{"tampered", func(dir string) { flip(filepath.Join(dir, diskFile)) }, 2, "changed or cut"},
		{"cut", func(dir string) { os.Truncate(filepath.Join(dir, diskFile), 100) }, 2, "changed or cut"},
		{"empty", func(dir string) { os.Truncate(filepath.Join(dir, diskFile), 0) }, 2, "not a sealed"},
		{"newest missing", func(dir string) { os.Remove(filepath.Join(dir, diskFile)) }, 2, ""},
		{"both", func(dir string) { flip(filepath.Join(dir, diskFile)); flip(filepath.Join(dir, diskOlder)) }, 0, "changed or cut"},
		{"another key", func(dir string) { os.WriteFile(filepath.Join(dir, diskKey), []byte(strings.Repeat("ab", 32)), 0o600) }, 0, "another key"},
		{"nothing", func(dir string) { os.Remove(filepath.Join(dir, diskFile)); os.Remove(filepath.Join(dir, diskOlder)) }, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := New(Config{Disk: openDisk(t, dir)})
			p := newPlane(t, s, "acme")
			p.fill(3000)
			for range 2 {
				p.good()
				s.write()
			}
			tt.damage(dir)
			again := New(Config{Disk: openDisk(t, dir), MaxStale: -1})
			restored, err := again.Restore()
			if restored != (tt.restored != 0) || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("Restore() = %v, %v, want revision %d and an error with %q", restored, err, tt.restored, tt.err)
			}
			if tt.restored == 0 {
				return
			}
			if got := again.Load().Tenant("acme").Revision; got != tt.restored {
				t.Errorf("revision %d, want %d", got, tt.restored)
			}
			// The next write must not push the good generation out with the bad one.
			again.write()
			flip(filepath.Join(dir, diskFile))
			last := New(Config{Disk: openDisk(t, dir), MaxStale: -1})
			if restored, _ := last.Restore(); !restored {
				t.Error("one bad file cost both generations")
			}
		})
	}
}

func flip(path string) {
	data, _ := os.ReadFile(path)
	data[len(data)/2] ^= 1
	os.WriteFile(path, data, 0o600)
}

func TestDiskKey(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	for _, tt := range []struct {
		name, content string
		mode          os.FileMode
		err           string
	}{
		{"hex", strings.Repeat("0f", 32) + "\n", 0o600, ""},
		{"base64", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 0o600, ""},
		{"short", "0f0f", 0o600, "32 bytes"},
		{"for all to read", strings.Repeat("0f", 32), 0o644, "chmod 600"},
	} {
		os.Remove(key)
		os.WriteFile(key, []byte(tt.content), tt.mode)
		_, err := OpenDisk(dir, key)
		if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: OpenDisk() error = %v, want one with %q", tt.name, err, tt.err)
		}
	}
	if _, err := OpenDisk(dir, filepath.Join(dir, "gone")); err == nil {
		t.Error("a key file that was named and is missing was made up")
	}
}

// TestMaxStale: time without a control plane counts, also while the proxy was down; time with one does not.
func TestMaxStale(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Disk: openDisk(t, dir), MaxStale: time.Hour})
		done := run(t, s)
		s.SetConnected(true)
		p := newPlane(t, s, "acme")
		p.fill(3000)
		p.good()
		time.Sleep(10 * time.Hour) // connected, nothing changes
		done()

		time.Sleep(30 * time.Minute) // down
		s = New(Config{Disk: openDisk(t, dir), MaxStale: time.Hour})
		if restored, err := s.Restore(); !restored || err != nil {
			t.Fatalf("Restore() = %v, %v", restored, err)
		}
		done = run(t, s)
		if r, err := find(s, 3000, "x.test", "/"); err != nil || r.Refused != nil {
			t.Errorf("after 30 min: %v, %v", r, err)
		}
		time.Sleep(31 * time.Minute)
		if r, err := find(s, 3000, "x.test", "/"); err != nil || r.Refused == nil {
			t.Errorf("after more than an hour: %v, %v, want it refused", r, err)
		}
		p.store = s
		p.good()
		if r, _ := find(s, 3000, "x.test", "/"); r.Refused != nil {
			t.Errorf("after a Commit: %v", r.Refused)
		}
		done()

		time.Sleep(2 * time.Hour)
		s = New(Config{Disk: openDisk(t, dir), MaxStale: time.Hour})
		s.Restore()
		if r, err := find(s, 3000, "x.test", "/"); err != nil || r.Refused == nil {
			t.Errorf("restarted after two hours: %v, %v, want it refused", r, err)
		}
	})
}
