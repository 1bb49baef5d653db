package systemtest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// balancer is a dumb one: it passes each HTTP request to one of several proxies, knows nothing of MCP, sends nothing twice, and only
// what found nobody listening to the next one.
type balancer struct {
	URL      string
	backends []string // host:port
	// choose gives the index of a backend. It may change the request's path.
	choose func(r *http.Request, body []byte) int
	client http.Client
}

// newBalancer starts a balancer until the test ends. If choose is nil, each request goes to the other proxy.
func newBalancer(t *testing.T, backends []string, choose func(*http.Request, []byte) int) *balancer {
	t.Helper()
	b := &balancer{backends: backends, choose: choose}
	b.client.Transport = &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	b.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if choose == nil {
		var turn atomic.Uint64
		b.choose = func(*http.Request, []byte) int { return int(turn.Add(1) % uint64(len(backends))) }
	}
	s := httptest.NewServer(b)
	b.URL = s.URL
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return b
}

func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Whole, so that the connection to the client tells when he leaves, and the request could be sent to the next one.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	at := b.choose(r, body)
	var resp *http.Response
	for i := range b.backends {
		resp, err = b.send(r, b.backends[(at+i)%len(b.backends)], body)
		var dial *net.OpError
		if err == nil || !errors.As(err, &dial) || dial.Op != "dial" {
			break
		}
	}
	if err != nil {
		http.Error(w, "no answer from the proxy", http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, vs := range resp.Header {
		w.Header()[k] = vs
	}
	w.WriteHeader(resp.StatusCode)
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		if _, gone := w.Write(buf[:n]); gone != nil {
			return
		}
		_ = flush.Flush()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // the answer is not whole, and the client must see that
		}
	}
}

func (b *balancer) send(r *http.Request, to string, body []byte) (*http.Response, error) {
	out, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+to+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, vs := range r.Header {
		if k != "Connection" {
			out.Header[k] = vs
		}
	}
	return b.client.Do(out)
}
