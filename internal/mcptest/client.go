package mcptest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// A httptest.Server that closes takes the idle connections of http.DefaultTransport with it, and so at times the request of a test that
// runs beside it: what tests send by http.DefaultClient has a transport of its own.
func init() { http.DefaultClient.Transport = http.DefaultTransport.(*http.Transport).Clone() }

// ClientOptions of a [Client].
type ClientOptions struct {
	// Version to ask for. If empty, the newest: 2026-07-28 where the server has it.
	Version string
	// SSE connects over HTTP+SSE of 2024-11-05.
	SSE bool
	// Header is added to every request.
	Header http.Header
	// Passive declares no capability to answer the server: no elicitation, sampling or roots.
	Passive bool
	// Decline refuses elicitations instead of answering Ada.
	Decline bool
	// Answer is what elicitations are accepted with. If nil, {"name": "Ada"}.
	Answer map[string]any
	// NoStream opens no GET stream.
	NoStream bool
	// Reconnect takes broken streams up again, as go-sdk's client does unless told otherwise.
	Reconnect bool
	// HTTPClient to use, e.g. with a CA. If nil, one of its own. Its Transport is wrapped.
	HTTPClient *http.Client
}

// Client is a connected go-sdk client. It answers elicitations with {"name": "Ada"} or what it is told, sampling with "Paris" and
// roots with file:///work, and remembers notifications.
type Client struct {
	*mcp.ClientSession

	mu   sync.Mutex // guards seen
	seen []Notification
	wake chan struct{} // closed and replaced at each notification
}

// Notification is one that a [Client] got. Detail is the log line (empty if it is no string), the progress as "n/total", or the URI.
type Notification struct {
	Method, Detail string
	Level          string // of a log line
}

// Connect connects to a URL until the test ends, and fails the test if it cannot.
func Connect(t testing.TB, url string, o ClientOptions) *Client {
	t.Helper()
	c, err := Dial(t.Context(), url, o)
	if err != nil {
		t.Fatalf("connect to %s: %v", url, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Dial is [Connect] for what may be refused. The caller closes the client.
func Dial(ctx context.Context, url string, o ClientOptions) (*Client, error) {
	hc := &http.Client{}
	if o.HTTPClient != nil {
		*hc = *o.HTTPClient
	}
	base := hc.Transport
	if base == nil {
		base = http.DefaultTransport.(*http.Transport).Clone()
	}
	hc.Transport = addHeader{base, o.Header}
	retries := -1
	if o.Reconnect {
		retries = 0
	}
	var tr mcp.Transport = &mcp.StreamableClientTransport{Endpoint: url, HTTPClient: hc, MaxRetries: retries, DisableStandaloneSSE: o.NoStream}
	if o.SSE {
		tr = &mcp.SSEClientTransport{Endpoint: url, HTTPClient: hc}
	}
	return connect(ctx, tr, o)
}

func connect(ctx context.Context, tr mcp.Transport, o ClientOptions) (*Client, error) {
	c := &Client{wake: make(chan struct{})}
	mc := mcp.NewClient(&mcp.Implementation{Name: "mcptest-client", Version: "1.0.0"}, c.options(o))
	if !o.Passive {
		mc.AddRoots(&mcp.Root{URI: "file:///work", Name: "work"})
	}
	var so *mcp.ClientSessionOptions
	if o.Version != "" {
		so = &mcp.ClientSessionOptions{ProtocolVersion: o.Version}
	}
	cs, err := mc.Connect(ctx, tr, so)
	if err != nil {
		return nil, err
	}
	c.ClientSession = cs
	return c, nil
}

func (c *Client) options(o ClientOptions) *mcp.ClientOptions {
	opts := &mcp.ClientOptions{
		LoggingMessageHandler: func(_ context.Context, r *mcp.LoggingMessageRequest) {
			s, _ := r.Params.Data.(string)
			c.note(Notification{Method: "notifications/message", Detail: s, Level: string(r.Params.Level)})
		},
		ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
			c.note(Notification{Method: "notifications/progress", Detail: format(r.Params.Progress) + "/" + format(r.Params.Total)})
		},
		ToolListChangedHandler: func(context.Context, *mcp.ToolListChangedRequest) {
			c.note(Notification{Method: "notifications/tools/list_changed"})
		},
		PromptListChangedHandler: func(context.Context, *mcp.PromptListChangedRequest) {
			c.note(Notification{Method: "notifications/prompts/list_changed"})
		},
		ResourceListChangedHandler: func(context.Context, *mcp.ResourceListChangedRequest) {
			c.note(Notification{Method: "notifications/resources/list_changed"})
		},
		ResourceUpdatedHandler: func(_ context.Context, r *mcp.ResourceUpdatedNotificationRequest) {
			c.note(Notification{Method: "notifications/resources/updated", Detail: r.Params.URI})
		},
	}
	if o.Passive {
		opts.Capabilities = &mcp.ClientCapabilities{}
		return opts
	}
	opts.ElicitationHandler = func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
		if o.Decline {
			return &mcp.ElicitResult{Action: "decline"}, nil
		}
		if o.Answer != nil {
			return &mcp.ElicitResult{Action: "accept", Content: o.Answer}, nil
		}
		return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"name": "Ada"}}, nil
	}
	opts.CreateMessageHandler = func(context.Context, *mcp.CreateMessageRequest) (*mcp.CreateMessageResult, error) {
		return &mcp.CreateMessageResult{Role: "assistant", Model: "test", Content: &mcp.TextContent{Text: "Paris"}}, nil
	}
	return opts
}

func (c *Client) note(n Notification) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, n)
	close(c.wake)
	c.wake = make(chan struct{})
}

// Notifications returns those that came so far, in order.
func (c *Client) Notifications() []Notification {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Notification(nil), c.seen...)
}

// Await waits until n notifications of the method have come, and fails the test after 5 s.
func (c *Client) Await(t testing.TB, method string, n int) []Notification {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	got, err := c.Hear(ctx, method, n)
	if err != nil {
		t.Fatalf("%d notifications %s within 5 s, want %d", len(got), method, n)
	}
	return got
}

// Hear waits until n notifications of the method have come, and returns those that did.
func (c *Client) Hear(ctx context.Context, method string, n int) ([]Notification, error) {
	for {
		c.mu.Lock()
		var got []Notification
		for _, x := range c.seen {
			if x.Method == method {
				got = append(got, x)
			}
		}
		wake := c.wake
		c.mu.Unlock()
		if len(got) >= n {
			return got, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return got, context.Cause(ctx)
		}
	}
}

// Call calls a tool and returns the text of its content; the test fails on any error, also a result's.
func (c *Client) Call(t testing.TB, tool string, args map[string]any) string {
	t.Helper()
	out, err := c.TryCall(t.Context(), tool, args)
	if err != nil {
		t.Fatalf("call %s: %v", tool, err)
	}
	return out
}

// TryCall is [Client.Call] for what may fail. A result with isError is an error too.
func (c *Client) TryCall(ctx context.Context, tool string, args map[string]any) (string, error) {
	return c.TryCallParams(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
}

// TryCallParams is [Client.TryCall] with all that a call can have.
func (c *Client) TryCallParams(ctx context.Context, params *mcp.CallToolParams) (string, error) {
	res, err := c.CallTool(ctx, params)
	if err != nil {
		return "", err
	}
	var all []string
	for _, content := range res.Content {
		if x, ok := content.(*mcp.TextContent); ok {
			all = append(all, x.Text)
		}
	}
	out := strings.Join(all, "\n")
	if res.IsError {
		return out, errors.New("isError: " + out)
	}
	return out, nil
}

// ToolNames lists the tools over all pages, in order.
func (c *Client) ToolNames(t testing.TB) []string {
	t.Helper()
	var names []string
	for tool, err := range c.Tools(t.Context(), nil) {
		if err != nil {
			t.Fatalf("list tools: %v", err)
		}
		names = append(names, tool.Name)
	}
	return names
}

// addHeader adds a header to each request.
type addHeader struct {
	base http.RoundTripper
	add  http.Header
}

func (a addHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	if len(a.add) == 0 {
		return a.base.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	for k, vs := range a.add {
		r.Header[k] = append(r.Header[k], vs...)
	}
	return a.base.RoundTrip(r)
}
