package systemtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, encode("CERTIFICATE", der)}
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// issue returns a certificate for the names, and its key, as PEM.
func (a *authority) issue(t *testing.T, serial int64, names ...string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", kb)
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// newTLSFront serves an MCP server over TLS, with a certificate for mcp.test that ca signed, and tells it in headers what
// name it was called by and who called. With clients it wants a certificate that they signed.
func newTLSFront(t *testing.T, behind string, ca, clients *authority) string {
	t.Helper()
	to, err := url.Parse(behind)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host
		r.Out.Header.Set("X-Sni", r.In.TLS.ServerName)
		if peers := r.In.TLS.PeerCertificates; len(peers) > 0 {
			r.Out.Header.Set("X-Client", peers[0].Subject.CommonName)
		}
	}})
	front.Config.ErrorLog = discard
	cert, key := ca.issue(t, 7, "mcp.test")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	front.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients != nil {
		front.TLS.ClientAuth, front.TLS.ClientCAs = tls.RequireAndVerifyClientCert, clients.pool()
	}
	front.StartTLS()
	t.Cleanup(front.Close)
	return front.URL + "/mcp"
}

// newExpiredFront is a target whose certificate was good once.
func newExpiredFront(t *testing.T, ca *authority) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(8), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(http.NotFoundHandler())
	front.Config.ErrorLog = discard
	front.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	front.StartTLS()
	t.Cleanup(front.Close)
	return front.URL + "/mcp"
}

// TLS towards targets; one that is wrong is that target's own error.
func TestBackendTLS(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	ca, clients, other := newAuthority(t), newAuthority(t), newAuthority(t)
	plain, mutual := newTLSFront(t, srv.URL, ca, nil), newTLSFront(t, srv.URL, ca, clients)
	cert, key := clients.issue(t, 9, "gateway")
	dir := t.TempDir()
	root := filepath.Join(dir, "root.pem")
	if err := os.WriteFile(root, []byte(other.pem), 0o600); err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	for name, content := range map[string]string{certFile: cert, keyFile: key} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := newFleet(t, 1, "private-network,file="+dir+"/*")
	for name, value := range map[string]string{"ca": ca.pem, "wrong-ca": other.pem, "cert": cert, "key": key} {
		f.must("apply", "-f", write(t, "secret.yaml", fmt.Sprintf("kind: Secret\nname: %s\nspec: {value: %q}\n", name, value)))
	}
	var targets strings.Builder
	for _, target := range [][3]string{
		{"root", plain, "{root: {secret: ca}}"},
		{"sni", plain, "{root: {secret: ca}, sni: mcp.test}"},
		{"mutual", mutual, "{root: {secret: ca}, cert: {secret: cert}, key: {secret: key}, hostname: mcp.test}"},
		{"insecure", plain, "{insecure: true}"},
		{"system", plain, "{}"},
		{"wrong-ca", plain, "{root: {secret: wrong-ca}}"},
		{"wrong-name", plain, "{root: {secret: ca}, sni: other.test}"},
		{"any-name", plain, "{root: {secret: ca}, sni: other.test, insecureHost: true}"},
		{"no-cert", mutual, "{root: {secret: ca}}"},
		{"file", plain, fmt.Sprintf("{root: {file: %q}}", root)},
		{"expired", newExpiredFront(t, ca), "{root: {secret: ca}}"},
		{"http", "https" + strings.TrimPrefix(srv.URL, "http"), "{root: {secret: ca}}"},
		{"pinned", plain, "{root: {secret: ca}, subjectAltNames: [spiffe://test/mcp]}"},
		{"rotated", mutual, fmt.Sprintf("{root: {secret: ca}, cert: {file: %q}, key: {file: %q}}", certFile, keyFile)},
	} {
		fmt.Fprintf(&targets, "  - {name: %s, mcp: {host: %q}, policies: {backendTLS: %s}}\n", target[0], target[1], target[2])
	}
	f.apply(fmt.Sprintf("mcp:\n  port: %d\n  failureMode: failOpen\n  targets:\n%s", f.port, targets.String()))
	url := f.url(0)
	s := handshake(t, url, nil)
	for target, want := range map[string][2]string{"root": {"", ""}, "sni": {"mcp.test", ""}, "mutual": {"mcp.test", "gateway"}, "insecure": {"", ""}, "any-name": {"other.test", ""}} {
		if got := [2]string{s.sees(t, url, target+"_header", "X-Sni"), s.sees(t, url, target+"_header", "X-Client")}; got != want {
			t.Errorf("%s: SNI and client certificate are %v, want %v", target, got, want)
		}
	}
	bad := map[string]string{"system": "authority that this proxy does not know", "wrong-ca": "authority that is not in backendTLS.root", "wrong-name": "does not name \\\\?\"other.test",
		"no-cert": "asks for a client certificate", "file": "authority that is not in backendTLS.root", "expired": "its certificate has expired on 20", "http": "speaks plain HTTP on this port", "pinned": "none of backendTLS.subjectAltNames"}
	for target, why := range bad {
		got := s.call(t, url, target+"_echo", `{"text":"hi"}`)
		r := got.reply(t)
		if r.Error == nil || !strings.Contains(r.Error.Message, `"`+target+`"`) || !regexp.MustCompile(why).MatchString(r.Error.Message) {
			t.Errorf("%s: %d %s; want an error naming the target, and %s", target, got.status, got.body, why)
		}
		if strings.Contains(got.body, "BEGIN") || strings.Contains(got.body, "127.0.0.1") {
			t.Errorf("%s shows too much: %s", target, got.body)
		}
	}
	for target, why := range bad { // why is the operator's to know
		line := regexp.MustCompile(`"target":"` + target + `".*"name":"echo".*"err":.*` + why)
		until(t, target+"'s call is in the log with "+why, func() bool { return line.MatchString(f.proxies[0].stderr.String()) })
	}
	until(t, "status tells what is wrong with the target", func() bool {
		return regexp.MustCompile(`expired.*its certificate has expired on 20`).MatchString(f.must("status", "-o", "json"))
	})
	// Connections that are open and idle have the old client certificate, and are not used any more.
	if got := s.sees(t, url, "rotated_header", "X-Client"); got != "gateway" {
		t.Errorf("the client certificate is %q", got)
	}
	next, nextKey := clients.issue(t, 10, "renewed")
	replace(t, keyFile, nextKey) // for a moment the pair does not match: the old one stays
	replace(t, certFile, next)
	until(t, "the new client certificate is shown", func() bool { return s.sees(t, url, "rotated_header", "X-Client") == "renewed" })
	replace(t, root, ca.pem)
	until(t, "the root in the file is read again", func() bool {
		s := handshake(t, url, nil)
		return strings.Contains(s.call(t, url, "file_echo", `{"text":"hi"}`).body, `"hi"`)
	})
}

// A listener's own certificate, by file and by Secret, changes without a request lost.
func TestListenerTLS(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	ca := newAuthority(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	first, firstKey := ca.issue(t, 100, "gateway.test")
	for name, content := range map[string]string{cert: first, key: firstKey} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := newFleet(t, 1, "private-network,file="+dir+"/*")
	second := freePort(t)
	secrets := func(cert, key string) string {
		return fmt.Sprintf("kind: Secret\nname: cert\nspec: {value: %q}\n---\nkind: Secret\nname: key\nspec: {value: %q}\n", cert, key)
	}
	f.must("apply", "-f", write(t, "secrets.yaml", secrets(first, firstKey)))
	f.apply(fmt.Sprintf(`binds:
- port: %d
  listeners:
  - tls: {cert: {file: %q}, key: {file: %q}}
    routes: [{backends: [{backend: tools}]}]
- port: %d
  listeners:
  - tls: {cert: {secret: cert}, key: {secret: key}, minVersion: "1.3"}
    routes: [{backends: [{backend: tools}]}]
backends:
- name: tools
  mcp: {targets: [{name: one, mcp: {host: %q}}]}
`, f.port, cert, key, second, srv.URL))

	// serial is that of the certificate that a new connection is shown.
	serial := func(port int) int64 {
		t.Helper()
		conn, err := tls.Dial("tcp", fmt.Sprintf("%s:%d", f.host(0), port), &tls.Config{RootCAs: ca.pool(), ServerName: "gateway.test"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool(), ServerName: "gateway.test"}}}
	defer client.CloseIdleConnections()
	url := fmt.Sprintf("https://%s:%d/mcp", f.host(0), f.port)
	c := mcptest.Connect(t, url, mcptest.ClientOptions{Version: "2025-11-25", HTTPClient: client})
	slow := make(chan string, 1)
	go func() {
		got, err := c.TryCall(t.Context(), "slow", map[string]any{"ms": 2000})
		slow <- fmt.Sprint(got, err)
	}()
	if a, b := serial(f.port), serial(second); a != 100 || b != 100 {
		t.Fatalf("serials %d and %d", a, b)
	}
	next, nextKey := ca.issue(t, 200, "gateway.test")
	replace(t, key, nextKey) // for a moment the pair does not match: the old one stays
	replace(t, cert, next)
	until(t, "the file's new certificate", func() bool { return serial(f.port) == 200 })
	f.must("apply", "-f", write(t, "secrets.yaml", secrets(next, nextKey)), "--wait")
	if got := serial(second); got != 200 {
		t.Errorf("after apply --wait of the Secret the serial is %d", got)
	}
	if got := <-slow; got != "done<nil>" {
		t.Errorf("a call over the old connection: %s", got)
	}
	if _, err := tls.Dial("tcp", fmt.Sprintf("%s:%d", f.host(0), second), &tls.Config{RootCAs: ca.pool(), ServerName: "gateway.test", MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is taken in spite of minVersion")
	}
	if resp, err := http.Get(strings.Replace(url, "https:", "http:", 1)); err == nil {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 400 || strings.Contains(string(body), "one") {
			t.Errorf("plain HTTP at a TLS listener: %d %s", resp.StatusCode, body)
		}
	}
}
