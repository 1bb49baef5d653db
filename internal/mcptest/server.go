package mcptest

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// Options of a [Server]. The zero value is a streamable HTTP server of the session era, in plain HTTP.
type Options struct {
	// Name in serverInfo. If empty, "mcptest".
	Name string
	// Instructions for clients.
	Instructions string
	// Stateless serves 2026-07-28 (and older revisions without a session).
	Stateless bool
	// SSE serves the HTTP+SSE transport of 2024-11-05.
	SSE bool
	// JSON answers calls with application/json instead of an event stream.
	JSON bool
	// TLS serves HTTPS with a certificate for 127.0.0.1 and example.com; see Server.CA.
	TLS bool
	// Bare leaves out [AddFeatures].
	Bare bool
	// Resumable keeps events, so that Last-Event-ID works.
	Resumable bool
	// PageSize of lists. If zero, the go-sdk's.
	PageSize int
	// Wrap stands in front of the MCP handler. If nil, nothing does.
	Wrap func(http.Handler) http.Handler
	// Caching decides ttlMs and cacheScope of results (2026-07-28). If nil, the go-sdk's default.
	Caching func(context.Context, mcp.Request, *mcp.Cacheable)
}

// Server is an MCP server on a loopback port until its test ends.
type Server struct {
	// URL of the MCP endpoint.
	URL string
	// MCP is the server behind it, to add tools to or remove them from.
	MCP *mcp.Server
	// CA is the PEM certificate that signed the server's, with Options.TLS.
	CA []byte

	http *httptest.Server
	mu   sync.Mutex // guards requests
	reqs []Request
}

// Request is what a [Server] saw of one HTTP request.
type Request struct {
	Method string
	URL    string
	Header http.Header
}

// NewServer starts a server.
func NewServer(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{MCP: newMCP(o)}
	get := func(*http.Request) *mcp.Server { return s.MCP }
	var h http.Handler
	path := "/mcp"
	if o.SSE {
		path = "/sse"
		h = mcp.NewSSEHandler(get, nil)
	} else {
		opts := &mcp.StreamableHTTPOptions{Stateless: o.Stateless, JSONResponse: o.JSON}
		if o.Resumable {
			opts.EventStore = mcp.NewMemoryEventStore(nil)
		}
		h = mcp.NewStreamableHTTPHandler(get, opts)
	}
	if o.Wrap != nil {
		h = o.Wrap(h)
	}
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.reqs = append(s.reqs, Request{r.Method, r.URL.String(), r.Header.Clone()})
		s.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	if o.TLS {
		s.http.StartTLS()
		s.CA = pemOf(s.http.Certificate())
	} else {
		s.http.Start()
	}
	s.URL = s.http.URL + path
	t.Cleanup(s.Close)
	return s
}

// Close ends the server and all its connections. The test's end does too.
func (s *Server) Close() {
	s.http.CloseClientConnections() // streams would hold Close
	for ss := range s.MCP.Sessions() {
		go ss.Close() // a session that waits for its client must not hold us either
	}
	done := make(chan struct{})
	go func() { s.http.Close(); close(done) }()
	for {
		select {
		case <-done:
			return
		case <-time.After(20 * time.Millisecond):
			s.http.CloseClientConnections()
		}
	}
}

// Requests returns what came in so far, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.reqs...)
}

// DropConnections closes the TCP connections and leaves the server running.
func (s *Server) DropConnections() { s.http.CloseClientConnections() }

func newMCP(o Options) *mcp.Server {
	name := o.Name
	if name == "" {
		name = "mcptest"
	}
	s := mcp.NewServer(&mcp.Implementation{Name: name, Version: "1.0.0"}, &mcp.ServerOptions{
		Instructions:       o.Instructions,
		PageSize:           o.PageSize,
		SetCacheable:       o.Caching,
		CompletionHandler:  complete,
		SubscribeHandler:   func(context.Context, *mcp.SubscribeRequest) error { return nil },
		UnsubscribeHandler: func(context.Context, *mcp.UnsubscribeRequest) error { return nil },
	})
	if !o.Bare {
		AddFeatures(s)
	}
	return s
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
