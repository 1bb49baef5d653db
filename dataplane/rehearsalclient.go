package dataplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// Caller is a client of a [Rehearsal]: who it is on the wire, and where it sends what it sends.
type Caller struct {
	Port uint16
	// Host is the Host header's, Path begins with / and may have a query.
	Host, Path string
	// Header is what the client sends beside what its protocol says.
	Header http.Header
	// Source is the peer's address and port. Required.
	Source string
	// TLS is the connection's. Nil for plain HTTP.
	TLS *tls.ConnectionState
	// At is when its requests come. Zero: now.
	At time.Time
	// Protocol is a revision of MCP that Protocols returns.
	Protocol string

	session string
	id      int
}

// Protocols are the revisions that a [Caller] may speak, oldest first.
func Protocols() []string {
	var all []string
	for _, r := range mcp.Revisions() {
		all = append(all, string(r))
	}
	return all
}

// Call sends one request as a client of c.Protocol does. A revision with sessions begins one first, and goes on in it; if it
// gets none, the answer is what refused it.
func (h *Rehearsal) Call(ctx context.Context, c *Caller, method string, params map[string]any) (Performance, error) {
	r := mcp.Revision(c.Protocol)
	switch {
	case !r.Known():
		return Performance{}, fmt.Errorf("%q is no revision of MCP; write one of %v", c.Protocol, Protocols())
	case r.Era() == mcp.Stateless:
		params = maps.Clone(params)
		if params == nil {
			params = map[string]any{}
		}
		meta, _ := params["_meta"].(map[string]any)
		all := map[string]any{mcp.MetaVersion: c.Protocol, mcp.MetaClientInfo: rehearsalClient, mcp.MetaClientCapabilities: map[string]any{}}
		maps.Copy(all, meta)
		params["_meta"] = all
	case c.session == "" && method != "initialize":
		begun, err := h.send(ctx, c, r, "initialize", map[string]any{"protocolVersion": c.Protocol, "clientInfo": rehearsalClient, "capabilities": map[string]any{}}, false)
		if err != nil {
			return begun, err
		}
		if c.session = begun.Header.Get(mcp.HeaderSession); c.session == "" {
			return begun, nil
		}
		if p, err := h.send(ctx, c, r, "notifications/initialized", nil, true); err != nil || p.Status >= 300 {
			return p, err
		}
	}
	return h.send(ctx, c, r, method, params, false)
}

// CallAgent sends one request of A2A, whose clients keep no state, to the agent at c.Path.
func (h *Rehearsal) CallAgent(ctx context.Context, c *Caller, method string, params map[string]any) (Performance, error) {
	return h.send(ctx, c, "", method, params, false)
}

// Card asks for the card of the agent at c.Path.
func (h *Rehearsal) Card(ctx context.Context, c *Caller) (Performance, error) {
	at := *c
	path, query, _ := strings.Cut(c.Path, "?")
	at.Path = strings.TrimSuffix(path, "/") + "/.well-known/agent-card.json"
	if query != "" {
		at.Path += "?" + query
	}
	r, err := at.request(ctx, http.MethodGet, nil)
	if err != nil {
		return Performance{}, err
	}
	return h.Serve(c.Port, r, c.at()), nil
}

var rehearsalClient = map[string]any{"name": "sluice-rehearsal", "version": "1"}

// send sends one message of a revision, or of no MCP at all.
func (h *Rehearsal) send(ctx context.Context, c *Caller, revision mcp.Revision, method string, params map[string]any, notification bool) (Performance, error) {
	message := map[string]any{"jsonrpc": "2.0", "method": method}
	if !notification {
		c.id++
		message["id"] = c.id
	}
	if params != nil {
		message["params"] = params
	}
	body, err := json.Marshal(message)
	if err != nil {
		return Performance{}, err
	}
	r, err := c.request(ctx, http.MethodPost, body)
	if err != nil {
		return Performance{}, err
	}
	if revision == "" {
		return h.Serve(c.Port, r, c.at()), nil
	}
	scanned, err := mcp.Scan(body, mcp.Limits{})
	if err != nil {
		return Performance{}, err
	}
	name, _ := scanned.Target() // what lacks a name that it needs is refused with or without this
	mcp.SetHeaders(r.Header, revision, method, name.String())
	if c.session != "" {
		r.Header[mcp.HeaderSession] = []string{c.session}
	}
	for key, values := range c.Header {
		r.Header[http.CanonicalHeaderKey(key)] = slices.Clone(values) // a test may break what the protocol says
	}
	return h.Serve(c.Port, r, c.at()), nil
}

// at is when a request comes.
func (c *Caller) at() time.Time {
	if c.At.IsZero() {
		return time.Now()
	}
	return c.At
}

func (c *Caller) request(ctx context.Context, method string, body []byte) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+c.Host+c.Path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.RemoteAddr, r.TLS, r.RequestURI = c.Source, c.TLS, c.Path
	r.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
	maps.Copy(r.Header, c.Header)
	return r, nil
}

// Route tells which route a caller's requests go to, by its own name.
func (h *Rehearsal) Route(ctx context.Context, c *Caller) (string, error) {
	r, err := c.request(ctx, http.MethodPost, nil)
	if err != nil {
		return "", err
	}
	found, err := h.proxy.parts.Store.Load().Route(c.Port, r)
	if err != nil {
		return "", err
	}
	return found.Name, nil
}
