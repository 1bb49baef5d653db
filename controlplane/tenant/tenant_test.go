package tenant

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/internal/mtls"
)

func openStore(t *testing.T, dir string) *store.Bolt {
	t.Helper()
	s, err := store.OpenBolt(filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// clock is a time that tests set.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func openRegistry(t *testing.T, s store.Store) (*Registry, *clock) {
	t.Helper()
	c := &clock{at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	r, err := OpenRegistry(t.Context(), s, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return r, c
}

func TestServed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		groups map[string][]string
		want   map[string][]string
	}{
		{"no groups", nil, map[string][]string{"default": {"a", "b", "c"}}},
		{"named elsewhere", map[string][]string{"edge": {"b"}}, map[string][]string{"default": {"a", "c"}, "edge": {"b"}}},
		{"default names one too", map[string][]string{"edge": {"b"}, "default": {"b"}}, map[string][]string{"default": {"a", "b", "c"}, "edge": {"b"}}},
		{"twice, and one that is not there", map[string][]string{"edge": {"b", "b", "x"}}, map[string][]string{"default": {"a", "c"}, "edge": {"b"}}},
		{"empty group", map[string][]string{"edge": nil}, map[string][]string{"default": {"a", "b", "c"}, "edge": nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Served(tt.groups, []string{"c", "a", "b"})); diff != "" {
				t.Errorf("Served (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "default": true, "a-1": true, strings.Repeat("a", 63): true,
		"": false, "A": false, "1a": false, "a-": false, "_platform": false, "a/b": false, strings.Repeat("a", 64): false, "a\n": false,
	} {
		if err := CheckName("tenant", name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
}

func TestVault(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	path := filepath.Join(dir, "cluster.key")
	v, err := OpenVault(t.Context(), s, path, true)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v, want 0600", info.Mode(), err)
	}
	a, b := v.Of("a"), v.Of("b")
	secret := []byte("hunter2")
	if again := a.Fingerprint([]byte("hunter2")); a.Fingerprint(secret) != again || a.Fingerprint(secret) == b.Fingerprint(secret) {
		t.Error("a fingerprint must depend on value and tenant alone")
	}
	sealed := a.Seal("n", secret)
	if bytes.Contains(sealed, secret) {
		t.Error("the sealed value holds the plain one")
	}
	if plain, err := a.Open("n", sealed); err != nil || !bytes.Equal(plain, secret) {
		t.Errorf("Open = %q, %v", plain, err)
	}
	if _, err := a.Open("other", sealed); err == nil {
		t.Error("a sealed value opened under another name")
	}
	if _, err := b.Open("n", sealed); err == nil {
		t.Error("a sealed value opened for another tenant")
	}

	again, err := OpenVault(t.Context(), s, path, true)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := again.Of("a").Open("n", sealed); err != nil || !bytes.Equal(plain, secret) {
		t.Errorf("after a restart Open = %q, %v", plain, err)
	}
}

func TestVaultRefusesAnotherKey(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	path := filepath.Join(dir, "cluster.key")
	if _, err := OpenVault(t.Context(), s, path, true); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, content, want string
		mode                os.FileMode
	}{
		{"another key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", "not the one that sealed", 0o600},
		{"no base64", "hello", "base64", 0o600},
		{"too short", "AAAA", "32 bytes", 0o600},
		{"readable by others", string(old), "chmod 600", 0o644},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "k")
			if err := os.WriteFile(file, []byte(tt.content), tt.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenVault(t.Context(), s, file, false); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("OpenVault: %v, want %q", err, tt.want)
			}
		})
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenVault(t.Context(), s, path, true); err == nil {
		t.Error("a lost key of a store that is not new was made again")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a lost key was written anew")
	}
}

func TestAdminTokens(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	r, _ := openRegistry(t, s)
	if err := r.Bootstrap(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "admin.token")
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("admin.token has mode %v", info.Mode())
	}
	admin := Actor{Name: "admin", Role: PlatformAdmin}
	if got, err := r.Authenticate(strings.TrimSpace(string(first))); err != nil || got != admin {
		t.Errorf("Authenticate(first) = %+v, %v", got, err)
	}
	token, text, err := r.CreateAdminToken(t.Context(), TenantViewer, "acme", "", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	viewer := Actor{Name: "tenant-viewer/acme", Role: TenantViewer, Tenant: "acme"}
	if got, err := r.Authenticate(text); err != nil || got != viewer {
		t.Errorf("Authenticate(viewer) = %+v, %v", got, err)
	}
	for _, bad := range []string{"", "x", text + "x", text[:len(text)-1], strings.TrimPrefix(text, adminPrefix), token.Hash, adminPrefix} {
		if _, err := r.Authenticate(bad); !errors.Is(err, ErrToken) {
			t.Errorf("Authenticate(%q): %v", bad, err)
		}
	}

	// After a restart all is as before, and no second first token is made.
	r, c := openRegistry(t, s)
	if err := r.Bootstrap(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(file); !bytes.Equal(first, again) {
		t.Error("a second first token was made")
	}
	if _, err := r.Authenticate(text); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	c.at = c.at.Add(time.Hour)
	if _, err := r.Authenticate(text); !errors.Is(err, ErrToken) {
		t.Errorf("an expired token: %v", err)
	}
	_, text, err = r.CreateAdminToken(t.Context(), TenantAdmin, "acme", "ci", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.RevokeTenants(t.Context(), func(name string) bool { return name == "acme" }); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Authenticate(text); !errors.Is(err, ErrToken) {
		t.Errorf("a token of a tenant that is gone: %v", err)
	}
	if err := r.RevokeToken(t.Context(), "nope"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("RevokeToken(nope): %v", err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	if secret := strings.TrimPrefix(strings.TrimSpace(string(first)), adminPrefix); bytes.Contains(raw, []byte(secret)) {
		t.Error("the store holds a token's text")
	}
}

func TestRolesNeedTheirTenant(t *testing.T) {
	r, _ := openRegistry(t, openStore(t, t.TempDir()))
	if _, _, err := r.CreateAdminToken(t.Context(), PlatformAdmin, "acme", "", 0, nil); err == nil {
		t.Error("a platform-admin of one tenant")
	}
	if _, _, err := r.CreateAdminToken(t.Context(), TenantAdmin, "", "", 0, nil); err == nil {
		t.Error("a tenant-admin of none")
	}
	for _, role := range []Role{TenantViewer, TenantAdmin, PlatformAdmin} {
		if got, err := ParseRole(role.String()); err != nil || got != role {
			t.Errorf("ParseRole(%s) = %v, %v", role, got, err)
		}
	}
	if _, err := ParseRole("root"); err == nil {
		t.Error("ParseRole(root) returned nil")
	}
}

// A token for five uses lets five in, however many come at once.
func TestJoinUsesAreCounted(t *testing.T) {
	s := openStore(t, t.TempDir())
	r, _ := openRegistry(t, s)
	_, text, err := r.CreateJoinToken(t.Context(), [32]byte{1}, "", "", 5, 0)
	if err != nil {
		t.Fatal(err)
	}
	token, err := mtls.ParseJoinToken(text)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	ids := map[string]bool{}
	refused := 0
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			p, err := r.Join(context.Background(), token, "Edge 1", time.Hour)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrJoin):
				refused++
			case err != nil || ids[p.ID] || p.Group != Default:
				t.Errorf("Join = %+v, %v", p, err)
			default:
				ids[p.ID] = true
			}
		})
	}
	wg.Wait()
	if len(ids) != 5 || refused != 15 || !ids["edge-1"] || !ids["edge-1-5"] {
		t.Errorf("joined %v, refused %d, want 5 and 15", ids, refused)
	}
	if tokens := r.Tokens(); len(tokens) != 0 {
		t.Errorf("a used up token is still listed: %+v", tokens)
	}
	again, _ := openRegistry(t, s)
	if n := len(again.Proxies()); n != 5 {
		t.Errorf("after a restart %d proxies are known, want 5", n)
	}
}

func TestJoinTokensEnd(t *testing.T) {
	r, c := openRegistry(t, openStore(t, t.TempDir()))
	make := func() (Token, mtls.JoinToken) {
		record, text, err := r.CreateJoinToken(t.Context(), [32]byte{}, "edge", "", 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		token, err := mtls.ParseJoinToken(text)
		if err != nil {
			t.Fatal(err)
		}
		return record, token
	}
	_, expired := make()
	c.at = c.at.Add(time.Hour)
	if _, err := r.Join(t.Context(), expired, "p", time.Hour); !errors.Is(err, ErrJoin) {
		t.Errorf("an expired token: %v", err)
	}
	record, revoked := make()
	if err := r.RevokeToken(t.Context(), record.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Join(t.Context(), revoked, "p", time.Hour); !errors.Is(err, ErrJoin) {
		t.Errorf("a revoked token: %v", err)
	}
	if _, err := r.Join(t.Context(), mtls.NewJoinToken([32]byte{}), "p", time.Hour); !errors.Is(err, ErrJoin) {
		t.Errorf("a token that never was: %v", err)
	}
	_, once := make()
	if _, err := r.Join(t.Context(), once, "p", time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := r.Join(t.Context(), once, "p", time.Hour); !errors.Is(err, ErrJoin) {
		t.Errorf("a second use: %v", err)
	}
}

func TestAdmit(t *testing.T) {
	r, c := openRegistry(t, openStore(t, t.TempDir()))
	all, err := r.Enrol(t.Context(), "edge", "client", 2, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Admit("edge", all[0].ID); err != nil {
		t.Error(err)
	}
	if err := r.Admit("other", all[0].ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("a proxy of another group: %v", err)
	}
	if err := r.Admit("edge", "nobody"); !errors.Is(err, ErrUnknown) {
		t.Errorf("a proxy that never joined: %v", err)
	}
	if err := r.Revoke(t.Context(), all[1].ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Admit("edge", all[1].ID); !errors.Is(err, ErrRevoked) {
		t.Errorf("a revoked proxy: %v", err)
	}
	if err := r.Renewed(t.Context(), all[0].ID, c.at.Add(100*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	// Once its certificate cannot be renewed any more a proxy is forgotten, at the next join.
	c.at = c.at.Add(40 * 24 * time.Hour)
	_, text, err := r.CreateJoinToken(t.Context(), [32]byte{}, "edge", "", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	token, err := mtls.ParseJoinToken(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Join(t.Context(), token, "new", time.Hour); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, p := range r.Proxies() {
		ids = append(ids, p.ID)
	}
	if diff := cmp.Diff([]string{"client", "new"}, ids); diff != "" {
		t.Errorf("known proxies (-want +got):\n%s", diff)
	}
}

// A name is not given again while a certificate that carries it is good, though a shorter one came later.
func TestNamesOutliveTheLongestCertificate(t *testing.T) {
	r, c := openRegistry(t, openStore(t, t.TempDir()))
	all, err := r.Enrol(t.Context(), "edge", "client", 1, 365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Renewed(t.Context(), all[0].ID, c.at.Add(mtls.DefaultTTL)); err != nil {
		t.Fatal(err)
	}
	if err := r.Revoke(t.Context(), all[0].ID); err != nil {
		t.Fatal(err)
	}
	c.at = c.at.Add(60 * 24 * time.Hour)
	for range 2 { // the first drops what is out of date
		_, text, err := r.CreateJoinToken(t.Context(), [32]byte{}, "edge", "", 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		token, err := mtls.ParseJoinToken(text)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := r.Join(t.Context(), token, "client", time.Hour); err != nil || p.ID == all[0].ID {
			t.Errorf("joined as %q while a certificate of that name is good: %v", p.ID, err)
		}
	}
	if err := r.Admit("edge", all[0].ID); !errors.Is(err, ErrRevoked) {
		t.Errorf("the revoked certificate: %v", err)
	}
}

// Two registries on one store stand for two replicas: neither loses what the other did.
func TestReplicasShareUses(t *testing.T) {
	s := openStore(t, t.TempDir())
	one, _ := openRegistry(t, s)
	two, _ := openRegistry(t, s)
	_, text, err := one.CreateJoinToken(t.Context(), [32]byte{}, "", "", 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	token, err := mtls.ParseJoinToken(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.Enrol(t.Context(), "edge", "x", 1, time.Hour); err != nil { // makes two read what one did
		t.Fatal(err)
	}
	for i, r := range []*Registry{two, one} {
		if _, err := r.Join(t.Context(), token, "p", time.Hour); err != nil {
			t.Errorf("join %d: %v", i, err)
		}
	}
	if _, err := two.Join(t.Context(), token, "p", time.Hour); !errors.Is(err, ErrJoin) {
		t.Errorf("a third use of two: %v", err)
	}
}

func TestSessionKeys(t *testing.T) {
	s := openStore(t, t.TempDir())
	v, err := OpenVault(t.Context(), s, filepath.Join(t.TempDir(), "k"), true)
	if err != nil {
		t.Fatal(err)
	}
	keys, sealed, err := v.Of("a").NewSessionKeys()
	if err != nil {
		t.Fatal(err)
	}
	if len(keys.Keys) != 1 || len(keys.Keys[0].Id) != 4 || len(keys.Keys[0].Key) != 32 {
		t.Errorf("keys = %d", len(keys.Keys))
	}
	opened, err := v.Of("a").OpenSessionKeys(sealed)
	if err != nil || !bytes.Equal(opened.Keys[0].Key, keys.Keys[0].Key) {
		t.Errorf("OpenSessionKeys: %v", err)
	}
	if _, err := v.Of("b").OpenSessionKeys(sealed); err == nil {
		t.Error("session keys opened for another tenant")
	}
}

func TestProxyName(t *testing.T) {
	for wish, want := range map[string]string{"Edge 1": "edge-1", "": "proxy", "..": "proxy", "a/b": "a-b", "é": "proxy", strings.Repeat("x", 99): strings.Repeat("x", 63)} {
		if got := proxyName(wish); got != want {
			t.Errorf("proxyName(%q) = %q, want %q", wish, got, want)
		}
	}
}
