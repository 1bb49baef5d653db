package peers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http/httpguts"

	"github.com/sluicegate/sluice/internal/mtls"
)

// The envelope between two proxies: whatever a client sends to one of them is what the other one serves, and whatever a proxy
// that was broken into sends, it stays itself and gains nothing.

// identities of proxies of one group.
func identities(t testing.TB, proxies ...string) (all []*mtls.Identity) {
	t.Helper()
	ca, err := mtls.OpenCA(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, proxy := range proxies {
		i, err := mtls.NewIdentity(t.Context(), "", func(_ context.Context, csr []byte) (mtls.Certificates, error) {
			return ca.Sign(mtls.Request{CSR: csr, ID: mtls.ID{Group: "edge", Proxy: proxy}})
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, i)
	}
	return all
}

// serve runs a proxy's port until the test ends, and returns its address.
func serve(t testing.TB, p *Peers) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		p.Close()
	})
	return l.Addr().String()
}

// said is what a handler was given, or a client.
type said struct {
	Method, Host, Path, RawPath, Query, Source, From, Body string
	Port                                                   uint16
	TLS                                                    bool
	Header                                                 http.Header
}

func FuzzForward(f *testing.F) {
	who := identities(f, "proxy-1", "proxy-2")
	var served chan said
	var answer func(w http.ResponseWriter)
	owner := New(Config{Identity: who[0], Handler: func(port uint16) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				body = []byte(err.Error())
			}
			h := r.Header.Clone()
			h.Del("Content-Length")
			served <- said{r.Method, r.Host, r.URL.Path, r.URL.EscapedPath(), r.URL.RawQuery, r.RemoteAddr, From(r.Context()), string(body), port, r.TLS != nil, h}
			answer(w)
		})
	}})
	peer := New(Config{Identity: who[1], Handler: func(uint16) http.Handler { return http.NotFoundHandler() }})
	peer.Set(map[string]string{"proxy-1": serve(f, owner)})
	f.Cleanup(peer.Close)

	f.Add("POST /mcp?x=1 HTTP/1.1\r\nHost: mcp.example.com\r\nMcp-Session-Id: s\r\nAccept: a\r\nAccept: b", "{}", uint16(3000), "192.0.2.1:4711", true, 200, "Content-Type: text/event-stream\r\nMcp-Session-Id: s", "data: 1\n\n")
	f.Add("GET /a%2Fb;c//d?a=b%00&c HTTP/1.1\r\nHost: x\r\nLast-Event-ID: \"\xff\"", "", uint16(0), "[2001:db8::1%eth0]:1", false, 404, "X: \r\nX: y", "")
	f.Add("DELETE http://other/mcp HTTP/1.1\r\nHost: x\r\nConnection: close, x-y\r\nX-Y: 1\r\nTe: trailers\r\nExpect: 100-continue", "x", uint16(65535), "0.0.0.0:0", false, 204, "", "")
	f.Add("POST //x/../y/%2e%2e? HTTP/1.1\r\nHost: a:1\r\nSluice-Forwarded-Port: 1\r\nsluice-Forwarded-source: 10.0.0.1:1\r\nSLUICE-FORWARDED-TLS: 1\r\nSluice_Forwarded_Port: 1", "x", uint16(1), "192.0.2.1:1", false, 502, "Sluice-Forwarded-Port: 1\r\nConnection: close\r\nKeep-Alive: 1", "x")
	f.Add("POST /mcp HTTP/1.0\r\nHost:\r\nIdempotency-Key: 1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nCookie: a=b; c=d\r\nCookie: e", "{}", uint16(1), "192.0.2.1:1", false, 418, "Content-Length: 1\r\nTrailer: X\r\nSet-Cookie: a", "x")
	f.Add("PATCH * HTTP/1.1\r\nHost: [::1]:80\r\nAuthorization: Bearer \t x", "\x00", uint16(1), "192.0.2.1:1", true, 503, "Www-Authenticate: Bearer", "\x00")
	f.Fuzz(func(t *testing.T, head, body string, port uint16, source string, secure bool, status int, answerHead, answerBody string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + "\r\n\r\n")))
		from, addrErr := netip.ParseAddrPort(source)
		if err != nil || addrErr != nil || status < 200 || status > 599 || !takes(r) || !httpguts.ValidHeaderFieldValue(from.Addr().Zone()) {
			return // a zone is the name of an interface of this machine
		}
		source = from.String() // as the listener has it
		r.RemoteAddr = source
		if secure {
			r.TLS = &tls.ConnectionState{}
		}
		if cookies := r.Header["Cookie"]; len(cookies) > 1 { // which HTTP/2 may join (RFC 9113 section 8.2.3)
			r.Header["Cookie"] = []string{strings.Join(cookies, "; ")}
		}
		want := said{r.Method, r.Host, r.URL.Path, r.URL.EscapedPath(), r.URL.RawQuery, source, "proxy-2", body, port, secure, r.Header.Clone()}
		for name := range want.Header {
			if slices.Contains(hop, name) || strings.HasPrefix(name, "Sluice-") || name == "Content-Length" {
				delete(want.Header, name)
			}
		}
		given, err := http.ReadResponse(bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\n"+answerHead+"\r\n\r\n")), nil)
		if err != nil {
			return
		}
		served = make(chan said, 2)
		answer = func(w http.ResponseWriter) {
			for name, values := range given.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, answerBody)
		}
		w := httptest.NewRecorder()
		if err := forwarded(peer, w, r, port, []byte(body)); err != nil {
			lost := &ErrLost{}
			if !errors.As(err, &lost) {
				t.Fatalf("an error that is none of a lost owner: %v", err)
			}
			if len(served) == 0 {
				t.Fatalf("what the listener takes does not come through: %v\n%q", err, head)
			}
			return // what the answer says it is, it is not
		}
		if len(served) != 1 {
			t.Fatalf("served %d times", len(served))
		}
		if diff := cmp.Diff(want, <-served); diff != "" {
			t.Errorf("the owner serves another request (-want +got):\n%s", diff)
		}
		if w.Code != status {
			t.Errorf("status %d, want %d", w.Code, status)
		}
		for name := range w.Header() {
			if strings.HasPrefix(name, "Sluice-") {
				t.Errorf("the client is told %s", name)
			}
		}
		if got := w.Body.String(); r.Method != http.MethodHead && status != 204 && status != 304 && given.Header.Get("Content-Length") == "" && got != answerBody {
			t.Errorf("the client gets %q of %q", got, answerBody)
		}
	})
}

// forwarded is Forward, where an answer that breaks off is an error.
func forwarded(p *Peers, w http.ResponseWriter, r *http.Request, port uint16, body []byte) (err error) {
	defer func() {
		if broke := recover(); broke == http.ErrAbortHandler {
			err = &ErrLost{Sent: true}
		} else if broke != nil {
			panic(broke)
		}
	}()
	return p.Forward(w, r, port, "proxy-1", body)
}

// takes reports whether net/http's server takes a request that it has read.
func takes(r *http.Request) bool {
	if !httpguts.ValidHostHeader(r.Host) || r.Method == http.MethodConnect || r.URL.Path == "" || r.Host == "" && r.ProtoAtLeast(1, 1) {
		return false
	}
	for name, values := range r.Header {
		if !httpguts.ValidHeaderFieldName(name) || slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return false
		}
	}
	return true
}

// FuzzReceive gives the port what a proxy that was broken into can send.
func FuzzReceive(f *testing.F) {
	who := identities(f, "proxy-1", "proxy-2")
	var seen *http.Request
	var asPort uint16
	owner := New(Config{Identity: who[0], Handler: func(port uint16) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen, asPort = r, port })
	}})
	f.Add("3000", "192.0.2.1:4711", "1", "Sluice-Forwarded-Port: 2")
	f.Add("65536", "192.0.2.1:4711", "", "")
	f.Add("-1", "192.0.2.1", "2", "X: y")
	f.Add("+3000", "[::1]:1", "1 1", "Sluice-Other: x")
	f.Add("3000", "localhost:1", "1", "sluice-forwarded-source: [::1]:1\r\nAuthorization: Bearer x")
	state := shakeHands(f, who[1], who[0])
	f.Fuzz(func(t *testing.T, port, source, secure, more string) {
		seen = nil
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST /mcp HTTP/1.1\r\nHost: x\r\n" + more + "\r\n\r\n")))
		if err != nil {
			return
		}
		r.Header[headerHost], r.Header[headerPort], r.Header[headerSource], r.Header[headerTLS] = []string{"x"}, []string{port}, []string{source}, []string{secure}
		r.TLS = state
		w := httptest.NewRecorder()
		owner.receive(w, r)
		if seen == nil {
			if w.Code != http.StatusBadRequest {
				t.Errorf("refused with %d", w.Code)
			}
			return
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || uint16(n) != asPort {
			t.Errorf("port %q is served as %d", port, asPort)
		}
		if from := From(seen.Context()); from != "proxy-2" {
			t.Errorf("the peer is %q", from)
		}
		if _, err := netip.ParseAddrPort(seen.RemoteAddr); err != nil {
			t.Errorf("the client's address is %q", seen.RemoteAddr)
		}
		if seen.TLS != nil && (len(seen.TLS.VerifiedChains) > 0 || len(seen.TLS.PeerCertificates) > 0 && seen.TLS.PeerCertificates[0].Raw != nil || seen.TLS.HandshakeComplete) {
			t.Error("the peer's connection passes for the client's")
		}
		for name := range seen.Header {
			if strings.HasPrefix(name, "Sluice-") {
				t.Errorf("the handler is told %s", name)
			}
		}
	})
}

// shakeHands returns a connection of a peer, as its server sees it.
func shakeHands(t testing.TB, peer, server *mtls.Identity) *tls.ConnectionState {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- tls.Client(near, peer.PeerClientConfig(server.ID().Proxy)).HandshakeContext(context.Background())
	}()
	conn := tls.Server(far, server.PeerServerConfig())
	if err := errors.Join(conn.HandshakeContext(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
	state := conn.ConnectionState()
	return &state
}

// FuzzPass breaks an answer off anywhere.
func FuzzPass(f *testing.F) {
	f.Add("data: 1\n\ndata: 2\n\n", uint16(9), uint8(3), true)
	f.Add("data: 1\r\n\r\n", uint16(11), uint8(1), true)
	f.Add("\n\n", uint16(1), uint8(1), true)
	f.Add("{}", uint16(2), uint8(1), false)
	f.Add("", uint16(0), uint8(1), true)
	f.Fuzz(func(t *testing.T, body string, cut uint16, piece uint8, events bool) {
		cut = min(cut, uint16(min(len(body), 1<<16-1)))
		w := httptest.NewRecorder()
		if events {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		broke := errors.New("broke off")
		whole, err := pass(w, &pieces{rest: []byte(body[:cut]), size: max(1, int(piece)), err: broke})
		if !errors.Is(err, broke) {
			t.Fatalf("the break is not told: %v", err)
		}
		got := w.Body.Bytes()
		if string(got) != body[:cut] {
			t.Errorf("passed %q of %q", got, body[:cut])
		}
		between := len(got) == 0 || bytes.HasSuffix(got, []byte("\n\n")) || bytes.HasSuffix(got, []byte("\r\n\r\n"))
		if whole != (events && between) {
			t.Errorf("whole = %v after %q", whole, got)
		}
	})
}

// pieces is a body that comes in pieces and then breaks off.
type pieces struct {
	rest []byte
	size int
	err  error
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, p.err
	}
	n := copy(b[:min(len(b), p.size)], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
