package mcptest

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// stateless says whether the caller speaks 2026-07-28, which has no requests from the server.
func stateless(r *mcp.CallToolRequest) bool {
	p := r.Session.InitializeParams()
	return p != nil && p.ProtocolVersion >= "2026-07-28"
}

var nameSchema = json.RawMessage(`{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}`)

// addAsking adds the tools that ask something of the client.
func addAsking(s *mcp.Server) {
	elicit := &mcp.ElicitParams{Message: "What is your name?", RequestedSchema: nameSchema}
	mcp.AddTool(s, &mcp.Tool{Name: "elicit", Description: "Asks the user"},
		func(ctx context.Context, r *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
			if !stateless(r) {
				res, err := r.Session.Elicit(ctx, elicit)
				if err != nil {
					return nil, nil, err
				}
				return hello(res), nil, nil
			}
			if res, ok := r.Params.InputResponses["name"].(*mcp.ElicitResult); ok {
				return hello(res), nil, nil
			}
			return &mcp.CallToolResult{InputRequests: mcp.InputRequestMap{"name": elicit}, RequestState: "asked-name"}, nil, nil
		})

	sample := &mcp.CreateMessageParams{MaxTokens: 10, Messages: []*mcp.SamplingMessage{
		{Role: "user", Content: &mcp.TextContent{Text: "Capital of France?"}}}}
	mcp.AddTool(s, &mcp.Tool{Name: "sample", Description: "Asks the client's model"},
		func(ctx context.Context, r *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
			if !stateless(r) {
				res, err := r.Session.CreateMessage(ctx, sample)
				if err != nil {
					return nil, nil, err
				}
				return said(res.Content), nil, nil
			}
			if res, ok := r.Params.InputResponses["capital"].(*mcp.CreateMessageWithToolsResult); ok && len(res.Content) > 0 {
				return said(res.Content[0]), nil, nil
			}
			return &mcp.CallToolResult{InputRequests: mcp.InputRequestMap{"capital": sample}, RequestState: "asked-model"}, nil, nil
		})

	mcp.AddTool(s, &mcp.Tool{Name: "roots", Description: "Asks for the roots"},
		func(ctx context.Context, r *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
			if !stateless(r) {
				res, err := r.Session.ListRoots(ctx, nil)
				if err != nil {
					return nil, nil, err
				}
				return uris(res), nil, nil
			}
			if res, ok := r.Params.InputResponses["roots"].(*mcp.ListRootsResult); ok {
				return uris(res), nil, nil
			}
			return &mcp.CallToolResult{InputRequests: mcp.InputRequestMap{"roots": &mcp.ListRootsParams{}}, RequestState: "asked-roots"}, nil, nil
		})
}

func hello(r *mcp.ElicitResult) *mcp.CallToolResult {
	if r.Action != "accept" {
		return text("declined")
	}
	return text(fmt.Sprintf("Hello, %v!", r.Content["name"]))
}

func said(c mcp.Content) *mcp.CallToolResult {
	if t, ok := c.(*mcp.TextContent); ok {
		return text("model: " + t.Text)
	}
	return text(fmt.Sprintf("model: %T", c))
}

func uris(r *mcp.ListRootsResult) *mcp.CallToolResult {
	var all []string
	for _, root := range r.Roots {
		all = append(all, root.URI)
	}
	return text(strings.Join(all, " "))
}
