package peers

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicegate/sluice/internal/mtls"
)

// A proxy that the control plane names no more is one of the group for a minute, for the control plane may just have been started anew;
// then it is not, whether or not anything is said again, and whoever else is left.
func TestPeerIsTakenOut(t *testing.T) {
	who := identities(t, "proxy-1", "proxy-2")
	state := shakeHands(t, who[1], who[0])
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Identity: who[0]})
		admitted := func() bool {
			_, err := p.admitted(t.Context(), state)
			return err == nil
		}
		if !admitted() {
			t.Error("before the control plane has said anything, a certificate does not count")
		}
		p.Set(map[string]string{"proxy-2": "192.0.2.1:1"})
		if !admitted() {
			t.Error("a proxy of the group is kept out")
		}
		p.Set(nil)
		time.Sleep(missingKept / 2)
		if !admitted() || !slices.Contains(p.Known(), "proxy-2") {
			t.Error("a proxy that is not named is kept out at once")
		}
		time.Sleep(missingKept)
		if admitted() {
			t.Error("a proxy that was taken out is let in")
		}
		if got := p.Known(); len(got) > 0 {
			t.Errorf("known are %v", got)
		}
		if _, err := p.find(t.Context(), "proxy-2"); !errors.Is(err, ErrUnknown) {
			t.Errorf("the way to a proxy that was taken out: %v", err)
		}
		p.Set(map[string]string{"proxy-2": "192.0.2.1:1"})
		if !admitted() {
			t.Error("a proxy that is back is kept out")
		}
	})
}

// What the owner's port refuses is no answer of the owner's: the client is not told to mind its credentials.
func TestOwnerRefusesPeer(t *testing.T) {
	who := identities(t, "proxy-1", "proxy-2")
	nobody := func(uint16) http.Handler { t.Error("served"); return http.NotFoundHandler() }
	owner, peer := New(Config{Identity: who[0], Handler: nobody}), New(Config{Identity: who[1], Handler: nobody})
	owner.Set(nil)
	peer.Set(map[string]string{"proxy-1": serve(t, owner)})
	t.Cleanup(peer.Close)
	w := httptest.NewRecorder()
	err := peer.Forward(w, httptest.NewRequest(http.MethodPost, "/mcp", nil), 3000, "proxy-1", []byte("{}"))
	if gone := (&ErrLost{}); !errors.As(err, &gone) || gone.Sent || w.Body.Len() > 0 {
		t.Errorf("%v, and the client gets %d %s", err, w.Code, w.Body)
	}
}

// Who drains waits for what others have forwarded, and not for ever.
func TestDrain(t *testing.T) {
	who := identities(t, "proxy-1", "proxy-2")
	begun, release := make(chan struct{}), make(chan struct{})
	var served atomic.Bool
	owner := New(Config{Identity: who[0], Base: context.WithValue(context.Background(), baseKey{}, "base"), Handler: func(uint16) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.Context().Value(baseKey{}) != "base" {
				t.Error("the request's context is not made of the given one")
			}
			close(begun)
			<-release
			served.Store(true)
		})
	}})
	owner.Drain(t.Context()) // nothing is there
	peer := New(Config{Identity: who[1]})
	peer.Set(map[string]string{"proxy-1": serve(t, owner)})
	t.Cleanup(peer.Close)
	answered := make(chan error, 1)
	go func() {
		answered <- peer.Forward(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/mcp", nil), 3000, "proxy-1", []byte("{}"))
	}()
	<-begun
	drained := make(chan bool, 1)
	go func() {
		owner.Drain(t.Context())
		drained <- served.Load()
	}()
	for waits := false; !waits; runtime.Gosched() {
		owner.mu.Lock()
		waits = owner.idle != nil
		owner.mu.Unlock()
	}
	late, cancel := context.WithCancel(t.Context())
	cancel()
	owner.Drain(late)
	if served.Load() {
		t.Error("Drain outlasts its context")
	}
	close(release)
	if !<-drained {
		t.Error("Drain ends while a request is being served")
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

type baseKey struct{}

// A connection that is never idle must not be used any more once its certificate was replaced: soon it is one that has expired, with which
// no proxy is let in.
func TestForwardWithRenewedCertificate(t *testing.T) {
	ca, err := mtls.OpenCA(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(proxy string, ttl time.Duration) mtls.Issuer {
		return func(_ context.Context, csr []byte) (mtls.Certificates, error) {
			return ca.Sign(mtls.Request{CSR: csr, ID: mtls.ID{Group: "edge", Proxy: proxy}, TTL: ttl})
		}
	}
	var who []*mtls.Identity
	for _, proxy := range []string{"proxy-1", "proxy-2"} {
		i, err := mtls.NewIdentity(t.Context(), "", issue(proxy, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		who = append(who, i)
	}
	shown, release := make(chan time.Time, 2), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	owner := &http.Server{TLSConfig: who[0].PeerServerConfig(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown <- r.TLS.PeerCertificates[0].NotAfter
		if r.URL.Path == "/stream" {
			<-release
		}
	})}
	go func() { _ = owner.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = owner.Close() })
	peer := New(Config{Identity: who[1]})
	t.Cleanup(peer.Close)
	peer.Set(map[string]string{"proxy-1": l.Addr().String()})
	forward := func(path string) error {
		return peer.Forward(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil), 3000, "proxy-1", nil)
	}
	streamed := make(chan error, 1)
	go func() { streamed <- forward("/stream") }()
	<-shown
	if err := who[1].Renew(t.Context(), issue("proxy-2", 2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := forward("/"); err != nil {
		t.Fatal(err)
	}
	if got := <-shown; !got.Equal(who[1].NotAfter()) {
		t.Errorf("the owner is shown a certificate until %v, not the one until %v", got, who[1].NotAfter())
	}
	close(release)
	if err := <-streamed; err != nil {
		t.Errorf("the stream that was open: %v", err)
	}
}

// However many requests are for a proxy that is gone, the control plane is asked a few times; one that comes soon is found.
func TestRefresh(t *testing.T) {
	who := identities(t, "proxy-1")
	synctest.Test(t, func(t *testing.T) {
		var asked, lost atomic.Int64
		p := New(Config{Identity: who[0], Wait: time.Second, Refresh: func() { asked.Add(1) }})
		for range 1000 {
			go func() {
				if _, err := p.find(t.Context(), "gone"); errors.Is(err, ErrUnknown) {
					lost.Add(1)
				}
			}()
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		before := asked.Load()
		if lost.Load() != 1000 || before < 20 || before > 25 {
			t.Errorf("%d of 1000 within 10 s got no way, and the control plane was asked %d times", lost.Load(), before)
		}
		found := make(chan error)
		go func() {
			_, err := p.find(t.Context(), "soon")
			found <- err
		}()
		synctest.Wait()
		if n := asked.Load() - before; n != 1 {
			t.Errorf("asked %d times for one that is not known", n)
		}
		p.Set(map[string]string{"soon": "192.0.2.1:1"})
		if err := <-found; err != nil {
			t.Error(err)
		}
	})
}

// All that has to come about before a request is sent has one time, however far it came.
func TestOutOfReach(t *testing.T) {
	who := identities(t, "proxy-1", "proxy-2")
	for name, tt := range map[string]struct{ known, dialled time.Duration }{
		"never known":      {time.Hour, 0},
		"never dialled":    {500 * time.Millisecond, time.Hour},
		"no handshake":     {300 * time.Millisecond, 300 * time.Millisecond},
		"known, but mute":  {0, 0},
		"known and absent": {0, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := New(Config{Identity: who[1]})
				defer p.Close()
				p.clients["proxy-1"] = &client{address: "owner", until: who[1].NotAfter(), rt: &http.Transport{
					DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
						select {
						case <-time.After(tt.dialled):
						case <-ctx.Done():
							return nil, context.Cause(ctx)
						}
						near, far := net.Pipe()
						go func() { _, _ = io.Copy(io.Discard, far) }() // it reads, and says nothing
						return near, nil
					},
					TLSClientConfig: who[1].PeerClientConfig("proxy-1"), TLSHandshakeTimeout: p.cfg.Wait,
				}}
				time.AfterFunc(tt.known, func() { p.Set(map[string]string{"proxy-1": "owner"}) })
				began := time.Now()
				err := p.Forward(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/mcp", nil), 1, "proxy-1", []byte("{}"))
				lost, ok := errors.AsType[*ErrLost](err)
				if took := time.Since(began); !ok || lost.Sent || took != p.cfg.Wait {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}
