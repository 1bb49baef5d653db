// Package demo holds the MCP servers that `sluice up` starts when it is given no configuration: real ones, on the official
// Go SDK, so that everything can be tried without Node or Python.
package demo

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// Config is the demo's configuration, in the form that users write. It reads NOTES_URL and SLUICE from the environment.
//
//go:embed sluice.yaml
var Config []byte

// ServeNotes serves the notes server on a loopback port of the system's choice until ctx ends, and returns its URL.
// It speaks every revision since 2025-03-26.
func ServeNotes(ctx context.Context) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := notesServer()
	srv := &http.Server{
		Handler: mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server },
			&mcp.StreamableHTTPOptions{Stateless: true}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	context.AfterFunc(ctx, func() { srv.Close() })
	go srv.Serve(listener) // ends with ctx; its error then is ErrServerClosed
	return fmt.Sprintf("http://%s/mcp", listener.Addr()), nil
}

// ServeClock serves the clock server on standard input and output until the input ends.
func ServeClock(ctx context.Context) error {
	err := clockServer().Run(ctx, &mcp.StdioTransport{})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

type notes struct {
	mu   sync.Mutex
	list []string // guarded by mu
}

func notesServer() *mcp.Server {
	n := &notes{list: []string{"Sluice serves many MCP servers as one"}}
	s := mcp.NewServer(&mcp.Implementation{Name: "notes", Version: "1"}, &mcp.ServerOptions{Instructions: "Keeps short notes in memory."})
	readOnly := &mcp.ToolAnnotations{ReadOnlyHint: true}
	mcp.AddTool(s, &mcp.Tool{Name: "list", Description: "List the notes", Annotations: readOnly},
		func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
			return text(n.String()), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "add", Description: "Add a note"},
		func(_ context.Context, _ *mcp.CallToolRequest, in struct {
			Text string `json:"text" jsonschema:"what to remember"`
		}) (*mcp.CallToolResult, any, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.list = append(n.list, in.Text)
			return text(fmt.Sprintf("noted, as number %d", len(n.list))), nil, nil
		})
	destructive := true
	mcp.AddTool(s, &mcp.Tool{Name: "wipe", Description: "Forget all notes", Annotations: &mcp.ToolAnnotations{DestructiveHint: &destructive}},
		func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.list = nil
			return text("forgotten"), nil, nil
		})
	s.AddResource(&mcp.Resource{URI: "notes://all", Name: "all", Description: "All notes", MIMEType: "text/plain"},
		func(context.Context, *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
			return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: "notes://all", MIMEType: "text/plain", Text: n.String()}}}, nil
		})
	s.AddPrompt(&mcp.Prompt{Name: "summarize", Description: "Summarize the notes"},
		func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{{Role: "user", Content: &mcp.TextContent{Text: "Summarize these notes:\n" + n.String()}}}}, nil
		})
	return s
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.list) == 0 {
		return "(no notes)"
	}
	return "- " + strings.Join(slices.Clone(n.list), "\n- ")
}

func clockServer() *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: "clock", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "now", Description: "Tell the time", Annotations: &mcp.ToolAnnotations{ReadOnlyHint: true}},
		func(_ context.Context, _ *mcp.CallToolRequest, in struct {
			Zone string `json:"zone,omitempty" jsonschema:"IANA time zone, e.g. Europe/Berlin; UTC if empty"`
		}) (*mcp.CallToolResult, any, error) {
			zone, err := time.LoadLocation(in.Zone)
			if err != nil {
				return nil, nil, fmt.Errorf("time zone %q is not known here", in.Zone)
			}
			return text(time.Now().In(zone).Format(time.RFC1123)), nil, nil
		})
	return s
}

func text(s string) *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: s}}}
}
