package mtls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseID(t *testing.T) {
	for _, tt := range []struct {
		uri  string
		want ID
		err  string
	}{
		{uri: "spiffe://sluice/controlplane", want: ID{TrustDomain: "sluice"}},
		{uri: "spiffe://acme.example/group/edge-eu/proxy/p_1.A", want: ID{"acme.example", "edge-eu", "p_1.A"}},
		{uri: "https://sluice/controlplane", err: "scheme"},
		{uri: "spiffe://sluice/", err: "path"},
		{uri: "spiffe://sluice/group/a/proxy/b/c", err: "path"},
		{uri: "spiffe://sluice/group//proxy/b", err: "names"},
		{uri: "spiffe://sluice/group/../proxy/b", err: "group name"},
		{uri: "spiffe://sluice/group/a/proxy/b%2Fc", err: "proxy name"},
		{uri: "spiffe://sluice/group/a/proxy/b?x", err: "proxy name"},
		{uri: "spiffe://user@sluice/controlplane", err: "trust domain"},
		{uri: "spiffe://Sluice/controlplane", err: "trust domain"},
		{uri: "spiffe://sluice:7071/controlplane", err: "trust domain"},
		{uri: "spiffe:///controlplane", err: "trust domain"},
	} {
		t.Run(tt.uri, func(t *testing.T) {
			got, err := ParseID(tt.uri)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("ParseID() error = %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ParseID() (-want +got):\n%s", diff)
			}
			if got.String() != tt.uri {
				t.Errorf("String() = %q, want %q", got, tt.uri)
			}
		})
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://sluice/controlplane")
	f.Add("spiffe://sluice/group/a/proxy/b")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := ParseID(uri)
		if err == nil && (id.String() != uri || id.url().String() != uri) {
			t.Errorf("ParseID(%q) writes back as %q and %q", uri, id, id.url())
		}
	})
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add(NewJoinToken([32]byte{1}).Encode())
	f.Add(joinPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseJoinToken(s)
		if err == nil && token.Encode() != strings.TrimSpace(s) {
			t.Errorf("ParseJoinToken(%q) writes back as %q", s, token.Encode())
		}
	})
}

func TestJoinToken(t *testing.T) {
	token := NewJoinToken([32]byte{7})
	text := token.Encode()
	got, err := ParseJoinToken("  " + text + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got != token || got.Pin() != [32]byte{7} || got.Hash() != token.Hash() || got.ID() != token.ID() {
		t.Errorf("ParseJoinToken(Encode()) is another token")
	}
	if NewJoinToken([32]byte{7}).Hash() == token.Hash() {
		t.Error("two tokens have one secret")
	}
	for _, bad := range []string{"", "x", joinPrefix, text[:len(text)-1], text + "A", strings.Replace(text, "-1-", "-2-", 1)} {
		if _, err := ParseJoinToken(bad); err == nil || strings.Contains(err.Error(), text[20:40]) {
			t.Errorf("ParseJoinToken(%q) error = %v, want one that shows no secret", bad, err)
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("joining", "token", token)
	for _, shown := range []string{log.String(), fmt.Sprint(token), fmt.Sprintf("%+v %#v", token, token)} {
		if secret := text[len(joinPrefix) : len(joinPrefix)+16]; strings.Contains(shown, secret) || strings.Contains(shown, "secret:") {
			t.Errorf("a log shows the secret: %s", shown)
		}
	}
}

// TestCAKilledWhileMade stops the making of a CA between any two of its steps.
func TestCAKilledWhileMade(t *testing.T) {
	whole := t.TempDir()
	made, err := OpenCA(whole, "acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		files map[string]string // copies
		same  bool              // the CA is the one that was being made
	}{
		{"before the key", nil, false},
		{"before the certificate", map[string]string{"ca.key.new": "ca.key"}, false},
		{"before the key gets its name", map[string]string{"ca.key.new": "ca.key", "ca.crt": "ca.crt"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for to, from := range tt.files {
				copyFile(t, filepath.Join(whole, from), filepath.Join(dir, to))
			}
			ca, err := OpenCA(dir, "acme")
			if err != nil {
				t.Fatal(err)
			}
			if same := ca.Pin() == made.Pin(); same != tt.same {
				t.Errorf("the same CA: %v, want %v", same, tt.same)
			}
			again, err := LoadCA(dir)
			if err != nil || again.Pin() != ca.Pin() {
				t.Errorf("opened again it is another one: %v", err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 2 {
				t.Errorf("left in the directory: %v, %v, want key and certificate", entries, err)
			}
		})
	}
}

func TestCAOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	ca, err := OpenCA(dir, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("ca.key: %v, %v, want mode 0600", info.Mode(), err)
	}
	again, err := OpenCA(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if again.Pin() != ca.Pin() || again.TrustDomain() != "acme" {
		t.Error("a reopened CA is another one")
	}
	if years := time.Until(ca.Certificate().NotAfter).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("the CA lives for %.1f years, want 10", years)
	}
	if _, err := OpenCA(dir, "other"); err == nil || !strings.Contains(err.Error(), `"acme"`) {
		t.Errorf("OpenCA with another trust domain: %v", err)
	}

	other := t.TempDir()
	if _, err := OpenCA(other, ""); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		err   string
	}{
		{"key of another CA", func(t *testing.T, dir string) {
			copyFile(t, filepath.Join(other, "ca.key"), filepath.Join(dir, "ca.key"))
		}, "not the certificate of the key"},
		{"key for all to read", func(t *testing.T, dir string) { os.Chmod(filepath.Join(dir, "ca.key"), 0o644) }, "chmod 600"},
		{"certificate lost", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "ca.crt")) }, "certificate of the CA"},
		{"key lost", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "ca.key")) }, "private key"},
		{"key cut", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, "ca.key"), 40) }, "no PEM private key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spoilt := t.TempDir()
			copyFile(t, filepath.Join(dir, "ca.key"), filepath.Join(spoilt, "ca.key"))
			copyFile(t, filepath.Join(dir, "ca.crt"), filepath.Join(spoilt, "ca.crt"))
			tt.spoil(t, spoilt)
			if _, err := OpenCA(spoilt, ""); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("OpenCA() error = %v, want one with %q", err, tt.err)
			}
		})
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(to, data); err != nil {
		t.Fatal(err)
	}
}

func TestSignRefuses(t *testing.T) {
	ca := newCA(t)
	good := csr(t, elliptic.P256())
	spoilt := bytes.Clone(good)
	spoilt[len(spoilt)-1] ^= 1
	for _, tt := range []struct {
		name string
		r    Request
		err  string
	}{
		{"signature", Request{CSR: spoilt, ID: ID{Group: "g", Proxy: "p"}}, "certificate request"},
		{"curve", Request{CSR: csr(t, elliptic.P384()), ID: ID{Group: "g", Proxy: "p"}}, "P-256"},
		{"trust domain", Request{CSR: good, ID: ID{TrustDomain: "other", Group: "g", Proxy: "p"}}, "trust domain"},
		{"proxy name", Request{CSR: good, ID: ID{Group: "g", Proxy: "p/../q"}}, "proxy name"},
		{"no proxy name", Request{CSR: good, ID: ID{Group: "g"}}, "proxy name"},
		{"garbage", Request{CSR: []byte("x")}, "certificate request"},
	} {
		if _, err := ca.Sign(tt.r); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: Sign() error = %v, want one with %q", tt.name, err, tt.err)
		}
	}
}

func csr(t *testing.T, curve elliptic.Curve) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := OpenCA(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issuer(ca *CA, id ID, ttl time.Duration, hosts ...string) Issuer {
	return func(_ context.Context, csr []byte) (Certificates, error) {
		return ca.Sign(Request{CSR: csr, ID: id, TTL: ttl, Hosts: hosts})
	}
}

func newIdentity(t *testing.T, ca *CA, id ID, ttl time.Duration) *Identity {
	t.Helper()
	i, err := NewIdentity(t.Context(), "", issuer(ca, id, ttl, "localhost", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// dial does a handshake over a pipe and returns what the server learns, and both ends' errors.
func dial(server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	a, b := net.Pipe()
	done := make(chan error, 1)
	s, c := tls.Server(a, server), tls.Client(b, client)
	go func() {
		err := s.Handshake()
		if err != nil {
			a.Close()
		} else {
			s.Write([]byte{1}) // a TLS 1.3 client learns at its first read whether it was let in
		}
		done <- err
	}()
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	} else {
		b.Close()
	}
	serverErr = <-done
	return s.ConnectionState(), serverErr, clientErr
}

func TestHandshake(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	server := newIdentity(t, ca, ID{}, 0)
	proxy := newIdentity(t, ca, ID{Group: "g", Proxy: "p"}, 0)
	stranger := newIdentity(t, other, ID{Group: "g", Proxy: "p"}, 0)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())

	for _, tt := range []struct {
		name           string
		server, client *tls.Config
		ok             bool
		peer           error // of PeerOf
		want           string
	}{
		{name: "proxy", server: server.ServerConfig(), client: proxy.ClientConfig(), ok: true, want: "spiffe://sluice/group/g/proxy/p"},
		{name: "join", server: server.ServerConfig(), client: NewJoinToken(ca.Pin()).ClientConfig(), ok: true, peer: ErrNoCertificate},
		{name: "join at another control plane", server: server.ServerConfig(), client: NewJoinToken(other.Pin()).ClientConfig()},
		{name: "join at a proxy", server: proxy.ServerConfig(), client: NewJoinToken(ca.Pin()).ClientConfig()},
		{name: "certificate of another CA", server: server.ServerConfig(), client: stranger.ClientConfig()},
		{name: "control plane of another CA", server: newIdentity(t, other, ID{}, 0).ServerConfig(), client: proxy.ClientConfig()},
		{name: "proxy posing as control plane", server: proxy.ServerConfig(), client: proxy.ClientConfig()},
		{name: "foreign client checking names", server: server.ServerConfig(), client: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ok: true, peer: ErrNoCertificate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state, serverErr, clientErr := dial(tt.server, tt.client)
			if ok := serverErr == nil && clientErr == nil; ok != tt.ok {
				t.Fatalf("handshake: server %v, client %v; want success %v", serverErr, clientErr, tt.ok)
			}
			if !tt.ok {
				return
			}
			peer, err := PeerOf(state)
			if !errors.Is(err, tt.peer) {
				t.Fatalf("PeerOf() error = %v, want %v", err, tt.peer)
			}
			if err == nil && peer.ID.String() != tt.want {
				t.Errorf("PeerOf() = %s, want %s", peer.ID, tt.want)
			}
		})
	}
}

func TestExpiredCertificateMayOnlyRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		server := newIdentity(t, ca, ID{}, 365*24*time.Hour)
		proxy := newIdentity(t, ca, ID{Group: "g", Proxy: "p"}, 0)
		time.Sleep(DefaultTTL + time.Hour)
		state, serverErr, clientErr := dial(server.ServerConfig(), proxy.ClientConfig())
		if serverErr != nil || clientErr != nil {
			t.Fatalf("handshake with an expired certificate: %v, %v", serverErr, clientErr)
		}
		peer, err := PeerOf(state)
		if !errors.Is(err, ErrExpired) || !peer.Expired || peer.ID.Proxy != "p" {
			t.Errorf("PeerOf() = %+v, %v, want the expired peer and ErrExpired", peer.ID, err)
		}
		time.Sleep(RenewGrace)
		if _, serverErr, _ := dial(server.ServerConfig(), proxy.ClientConfig()); serverErr == nil {
			t.Error("a certificate that expired 30 days ago is still let in")
		}
		// A server's certificate gets no grace.
		server = newIdentity(t, ca, ID{}, 0)
		proxy = newIdentity(t, ca, ID{Group: "g", Proxy: "p"}, 365*24*time.Hour)
		time.Sleep(DefaultTTL + time.Hour)
		if _, _, clientErr := dial(server.ServerConfig(), proxy.ClientConfig()); clientErr == nil {
			t.Error("an expired control plane is trusted")
		}
	})
}

func TestIdentityOnDisk(t *testing.T) {
	ca := newCA(t)
	path := filepath.Join(t.TempDir(), "identity.pem")
	if _, err := LoadIdentity(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("LoadIdentity of nothing: %v, want fs.ErrNotExist", err)
	}
	id := ID{Group: "g", Proxy: "p"}
	made, err := NewIdentity(t.Context(), path, issuer(ca, id, 0))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	loaded, err := LoadIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.ID() != made.ID() || !loaded.NotAfter().Equal(made.NotAfter()) {
		t.Error("the loaded identity is another one")
	}
	if _, s, c := dial(newIdentity(t, ca, ID{}, 0).ServerConfig(), loaded.ClientConfig()); s != nil || c != nil {
		t.Errorf("handshake with a loaded identity: %v, %v", s, c)
	}
	// A renewal that fails changes nothing, in memory and on disk.
	before, _ := os.ReadFile(path)
	if err := loaded.Renew(t.Context(), func(context.Context, []byte) (Certificates, error) { return Certificates{}, errors.New("no") }); err == nil {
		t.Error("Renew() hid the issuer's error")
	}
	wrongKey := func(context.Context, []byte) (Certificates, error) {
		return ca.Sign(Request{CSR: csr(t, elliptic.P256()), ID: id})
	}
	if err := loaded.Renew(t.Context(), wrongKey); err == nil {
		t.Error("a certificate for another key was taken")
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("a failed renewal changed the file")
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%d files left in the directory, want 1", len(entries))
	}
	os.Chmod(path, 0o604)
	if _, err := LoadIdentity(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("LoadIdentity of a file for all to read: %v", err)
	}
}

// TestKeep lives three weeks: certificates are traded after a third of their life, a failing issuer is
// asked again, and configurations made before a renewal use what came after it.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		start := time.Now()
		proxyID := ID{Group: "g", Proxy: "p"}
		server := newIdentity(t, ca, ID{}, 365*24*time.Hour).ServerConfig()
		proxy := newIdentity(t, ca, proxyID, 0)
		config := proxy.ClientConfig()
		var calls, reports atomic.Int32
		issue := func(ctx context.Context, csr []byte) (Certificates, error) {
			if calls.Add(1) == 2 {
				return Certificates{}, errors.New("control plane away")
			}
			return issuer(ca, proxyID, 0)(ctx, csr)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- proxy.Keep(ctx, issue, func(err error) {
				reports.Add(1)
				if !strings.Contains(err.Error(), "control plane away") {
					t.Errorf("reported %v", err)
				}
			})
		}()
		time.Sleep(DefaultTTL/3 + DefaultTTL/30 + time.Hour)
		if n := calls.Load(); n != 1 {
			t.Errorf("%d renewals after a third of the life, want 1", n)
		}
		time.Sleep(21*24*time.Hour - time.Since(start))
		if n := calls.Load(); n < 8 || n > 10 || reports.Load() != 1 {
			t.Errorf("%d renewals and %d reports in three weeks, want 8 to 10 and 1", n, reports.Load())
		}
		state, serverErr, clientErr := dial(server, config)
		if serverErr != nil || clientErr != nil {
			t.Fatalf("handshake after renewals: %v, %v", serverErr, clientErr)
		}
		if peer, err := PeerOf(state); err != nil || !peer.Certificate.NotAfter.Equal(proxy.NotAfter()) {
			t.Errorf("the old configuration shows an old certificate (%v)", err)
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Keep() = %v", err)
		}
	})
}
