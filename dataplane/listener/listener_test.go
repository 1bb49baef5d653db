package listener

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// freePort returns a port that nobody listens on.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// world is a store and a manager that follow one another.
type world struct {
	t        *testing.T
	store    *snapshot.Store
	manager  *Manager
	revision int64
}

func newWorld(t *testing.T, drain time.Duration, handler http.Handler) *world {
	w := &world{t: t}
	w.manager = New(Config{
		Handler: func(uint16) http.Handler { return handler },
		TLS:     func(port uint16, name string) *snapshot.Listener { return w.store.Load().Server(port, name) },
		Drain:   drain,
	})
	w.store = snapshot.New(snapshot.Config{Bind: w.manager.Bind})
	w.store.Subscribe(func(_, now *snapshot.Index) { w.manager.Follow(now) })
	t.Cleanup(w.manager.Close)
	return w
}

func (w *world) resource(typ, name string, m proto.Message) snapshot.Resource {
	w.t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	return snapshot.Resource{Type: typ, Name: name, Version: fmt.Sprint(w.revision), Body: body}
}

// listen makes these the tenant's listeners, by port; a pair of PEM makes one TLS.
func (w *world) listen(ports map[uint16][2][]byte) []*xdsv1.Refusal {
	w.t.Helper()
	w.revision++
	u := snapshot.Update{Tenant: "t", Revision: w.revision}
	for key := range w.store.Versions()[snapshot.ConfigType] {
		u.Removed = append(u.Removed, snapshot.Key{Type: snapshot.ConfigType, Name: key})
	}
	for port, pair := range ports {
		l := &xdsv1.Listener{Port: uint32(port)}
		if pair[0] != nil {
			for i, part := range []string{"cert", "key"} {
				name := fmt.Sprintf("t/secret/%s-%d", part, port)
				u.Set = append(u.Set, w.resource(snapshot.SecretType, name, &xdsv1.Secret{Secret: &xdsv1.Secret_Value{Value: pair[i]}}))
			}
			ref := func(part string) *policyv1.Credential {
				return &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: fmt.Sprintf("t/secret/%s-%d", part, port)}}
			}
			l.Tls = &xdsv1.ListenerTls{Cert: ref("cert"), Key: ref("key")}
		}
		u.Set = append(u.Set, w.resource(snapshot.ConfigType, fmt.Sprintf("t/listener/l%d", port), &xdsv1.Config{Resource: &xdsv1.Config_Listener{Listener: l}}))
	}
	refusals, err := w.store.Apply(u)
	if err != nil {
		w.t.Fatal(err)
	}
	return refusals
}

var plain [2][]byte

func pair(t *testing.T) [2][]byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{SerialNumber: serial, DNSNames: []string{"x.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return [2][]byte{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}
}

func address(port uint16) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))) }

func get(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "x.test"}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func TestSocketsFollow(t *testing.T) {
	w := newWorld(t, time.Second, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	a, b := freePort(t), freePort(t)
	w.listen(map[uint16][2][]byte{a: plain})
	client := newClient(t)
	if body, err := get(client, "http://"+address(a)); err != nil || body != "HTTP/1.1" {
		t.Fatalf("GET: %q, %v", body, err)
	}
	// A connection that is kept survives reloads that do not concern its port.
	conn, err := net.Dial("tcp", address(a))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	ask := func() error {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	w.listen(map[uint16][2][]byte{a: plain, b: plain})
	if err := ask(); err != nil {
		t.Errorf("the kept connection after a reload: %v", err)
	}
	if got := w.manager.Addresses(); len(got) != 2 {
		t.Errorf("addresses %v", got)
	}
	w.listen(map[uint16][2][]byte{b: plain})
	for deadline := time.Now().Add(10 * time.Second); ask() == nil; { // one request may arrive before the drain does
		if time.Now().After(deadline) {
			t.Fatal("an idle connection of a removed listener is still served")
		}
	}
	if _, err := net.Dial("tcp", address(a)); err == nil {
		t.Error("a removed listener is still open")
	}
	if _, err := get(client, "http://"+address(b)); err != nil {
		t.Error(err)
	}
}

func TestPortTaken(t *testing.T) {
	w := newWorld(t, time.Second, http.NotFoundHandler())
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	taken, free := uint16(other.Addr().(*net.TCPAddr).Port), freePort(t)
	refusals := w.listen(map[uint16][2][]byte{taken: plain, free: plain})
	if len(refusals) != 1 || !strings.Contains(refusals[0].GetReason(), address(taken)) || !strings.Contains(refusals[0].GetReason(), "in use") {
		t.Errorf("refusals %v", refusals)
	}
	if got := w.manager.Addresses(); len(got) != 1 || got[0] != address(free) {
		t.Errorf("addresses %v, want the other port's", got)
	}
}

func TestTLSIsReloaded(t *testing.T) {
	w := newWorld(t, time.Second, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	port := freePort(t)
	first, second := pair(t), pair(t)
	w.listen(map[uint16][2][]byte{port: first})
	shown := func(client *http.Client) string {
		resp, err := client.Get("https://" + address(port))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); string(body) != "HTTP/2.0" {
			t.Errorf("spoke %s, want HTTP/2.0", body)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: resp.TLS.PeerCertificates[0].Raw}))
	}
	old := newClient(t)
	if shown(old) != string(first[0]) {
		t.Error("another certificate")
	}
	w.listen(map[uint16][2][]byte{port: second})
	if shown(old) != string(first[0]) {
		t.Error("the open connection was dropped for the new certificate")
	}
	if shown(newClient(t)) != string(second[0]) {
		t.Error("a new connection is shown the old certificate")
	}
	if _, err := get(newClient(t), "http://"+address(port)); err == nil {
		// Go answers plain HTTP on a TLS port with 400; what matters is that no handler is reached.
		if body, _ := get(newClient(t), "http://"+address(port)); strings.HasPrefix(body, "HTTP/") {
			t.Error("plain HTTP is served on a TLS port")
		}
	}
	// From TLS to plain HTTP on the same port.
	w.listen(map[uint16][2][]byte{port: plain})
	if body, err := get(newClient(t), "http://"+address(port)); err != nil || body != "HTTP/1.1" {
		t.Errorf("after the change to plain HTTP: %q, %v", body, err)
	}
}

// TestDrain: requests end, streams are told, and who does not listen is cut off after the drain time.
func TestDrain(t *testing.T) {
	var began, told, cut atomic.Int32
	release := make(chan struct{})
	w := newWorld(t, 300*time.Millisecond, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		began.Add(1)
		switch r.URL.Path {
		case "/request":
			<-release
			io.WriteString(w, "done")
		case "/stream":
			<-Draining(r.Context())
			told.Add(1)
			io.WriteString(w, "bye")
		case "/deaf":
			<-r.Context().Done()
			cut.Add(1)
		}
	}))
	port := freePort(t)
	w.listen(map[uint16][2][]byte{port: plain})
	type result struct {
		body string
		err  error
	}
	results := map[string]chan result{}
	for _, path := range []string{"/request", "/stream", "/deaf"} {
		c := make(chan result, 1)
		results[path] = c
		go func() {
			body, err := get(newClient(t), "http://"+address(port)+path)
			c <- result{body, err}
		}()
	}
	for deadline := time.Now().Add(5 * time.Second); began.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the requests did not begin")
		}
	}
	closed := make(chan struct{})
	go func() { w.manager.Close(); close(closed) }()
	if r := <-results["/stream"]; r.err != nil || r.body != "bye" {
		t.Errorf("stream: %+v", r)
	}
	close(release)
	if r := <-results["/request"]; r.err != nil || r.body != "done" {
		t.Errorf("request: %+v", r)
	}
	if r := <-results["/deaf"]; r.err == nil {
		t.Errorf("a handler that does not end outlived the drain time: %+v", r)
	}
	<-closed
	if err := w.manager.Bind(port); err == nil {
		t.Error("a closed manager opens sockets")
	}
}

func TestStrangersAreBounded(t *testing.T) {
	w := newWorld(t, time.Second, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	port := freePort(t)
	w.listen(map[uint16][2][]byte{port: plain})
	request, _ := http.NewRequest("GET", "http://"+address(port), nil)
	request.Header.Set("X-Long", strings.Repeat("a", 2*maxHeader))
	resp, err := newClient(t).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of %d bytes: %d, want 431", 2*maxHeader, resp.StatusCode)
	}
	s := w.manager.sockets[port].server
	if s.ReadHeaderTimeout <= 0 || s.IdleTimeout <= 0 || s.WriteTimeout != 0 || s.ReadTimeout != 0 {
		t.Errorf("timeouts %v %v %v %v: headers and idle connections need one, streams must have none", s.ReadHeaderTimeout, s.IdleTimeout, s.WriteTimeout, s.ReadTimeout)
	}
}

func TestDrainingOfNoRequest(t *testing.T) {
	if Draining(context.Background()) != nil {
		t.Error("a context of no request drains")
	}
}
