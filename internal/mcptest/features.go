package mcptest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// Arguments of the tools that have some.
type (
	echoArgs struct {
		Text string `json:"text"`
	}
	addArgs struct {
		A float64 `json:"a"`
		B float64 `json:"b"`
	}
	slowArgs struct {
		Millis int `json:"ms"`
	}
	countArgs struct {
		N      int `json:"n"`
		Millis int `json:"ms,omitempty"` // between two notifications
	}
	bigArgs struct {
		Bytes int `json:"bytes"`
	}
	nameArgs struct {
		Name string `json:"name"`
	}
	sayArgs struct {
		Progress []string `json:"progress,omitempty"`
		Log      []string `json:"log,omitempty"`
		Text     string   `json:"text,omitempty"`
		Error    string   `json:"error,omitempty"`
	}
)

// AddFeatures gives a server what every server of this package has:
//
//	echo {text}             the text; annotated readOnlyHint
//	add {a, b}              the sum, also as structuredContent {"sum": n}
//	slow {ms}               "done" after ms, or "cancelled" if cancelled first
//	progress {n, ms}        n progress notifications with the caller's token, then "n"
//	log {n, ms}             n log messages at level info, then "n"
//	big {bytes}             that many bytes of text
//	count                   how often this server was called, 1 first: what a call that ran twice shows
//	session                 the session id that the server sees; empty without
//	header {name}           the request header of that name, values joined with "|"
//	env {name}              the server process's environment variable, "-" if unset
//	say {progress, log, text, error}  each of progress and log as a message of its own, then a JSON-RPC error with
//	                        that text, or the text, also as structuredContent {"said": text}
//	elicit                  asks the user for a name: "Hello, NAME!"; by request in the session era, by
//	                        input_required in the stateless one; "declined" if refused
//	sample                  asks the client's model: "model: TEXT"; same eras
//	roots                   asks for the roots: their URIs joined with " "; same eras
//	fail                    a result with isError
//	error                   a JSON-RPC error, code -32099, data {"why": "asked"}
//	link                    a resource_link to test://static/one and an embedded test://static/two
//	grow                    adds the tool "grown", or removes it again: list_changed
//	touch                   test://watched was updated
//
// Prompts greet(name) and plain; resources test://static/one, test://static/two, test://watched; template
// test://item/{id}; completion of greet's name among alice, bob, carol.
func AddFeatures(s *mcp.Server) {
	addPlain(s)
	addNotifying(s)
	addSaying(s)
	addAsking(s)
	addChanging(s)
	addPromptsAndResources(s)
}

func text(s string) *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: s}}}
}

func addPlain(s *mcp.Server) {
	var calls atomic.Int64
	mcp.AddTool(s, &mcp.Tool{Name: "echo", Description: "Gives the text back", Annotations: &mcp.ToolAnnotations{ReadOnlyHint: true}},
		func(_ context.Context, _ *mcp.CallToolRequest, a echoArgs) (*mcp.CallToolResult, any, error) {
			return text(a.Text), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "add", Description: "Adds two numbers"},
		func(_ context.Context, _ *mcp.CallToolRequest, a addArgs) (*mcp.CallToolResult, map[string]float64, error) {
			sum := a.A + a.B
			return text(strconv.FormatFloat(sum, 'g', -1, 64)), map[string]float64{"sum": sum}, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "slow", Description: "Takes its time"},
		func(ctx context.Context, _ *mcp.CallToolRequest, a slowArgs) (*mcp.CallToolResult, any, error) {
			if !sleep(ctx, a.Millis) {
				return text("cancelled"), nil, nil
			}
			return text("done"), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "big", Description: "A big result"},
		func(_ context.Context, _ *mcp.CallToolRequest, a bigArgs) (*mcp.CallToolResult, any, error) {
			return text(strings.Repeat("x", a.Bytes)), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "count", Description: "Counts its calls"},
		func(context.Context, *mcp.CallToolRequest, any) (*mcp.CallToolResult, any, error) {
			return text(strconv.FormatInt(calls.Add(1), 10)), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "session", Description: "The session as the server sees it"},
		func(_ context.Context, r *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
			return text(r.Session.ID()), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "header", Description: "A header of this request"},
		func(_ context.Context, r *mcp.CallToolRequest, a nameArgs) (*mcp.CallToolResult, any, error) {
			if r.Extra == nil {
				return text(""), nil, nil
			}
			return text(strings.Join(r.Extra.Header.Values(a.Name), "|")), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "env", Description: "An environment variable of the server"},
		func(_ context.Context, _ *mcp.CallToolRequest, a nameArgs) (*mcp.CallToolResult, any, error) {
			v, ok := os.LookupEnv(a.Name)
			if !ok {
				v = "-"
			}
			return text(v), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "fail", Description: "A result that is an error"},
		func(context.Context, *mcp.CallToolRequest, any) (*mcp.CallToolResult, any, error) {
			return nil, nil, errors.New("asked to")
		})
	s.AddTool(&mcp.Tool{Name: "error", Description: "A protocol error", InputSchema: json.RawMessage(`{"type":"object"}`)},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return nil, &jsonrpc.Error{Code: -32099, Message: "asked to", Data: json.RawMessage(`{"why":"asked"}`)}
		})
	mcp.AddTool(s, &mcp.Tool{Name: "link", Description: "A link and an embedded resource"},
		func(context.Context, *mcp.CallToolRequest, any) (*mcp.CallToolResult, any, error) {
			return &mcp.CallToolResult{Content: []mcp.Content{
				&mcp.ResourceLink{URI: "test://static/one", Name: "one"},
				&mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: "test://static/two", Text: "content of test://static/two"}},
			}}, nil, nil
		})
}

func addNotifying(s *mcp.Server) {
	mcp.AddTool(s, &mcp.Tool{Name: "progress", Description: "Reports progress"},
		func(ctx context.Context, r *mcp.CallToolRequest, a countArgs) (*mcp.CallToolResult, any, error) {
			for i := 1; i <= a.N; i++ {
				err := r.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
					ProgressToken: r.Params.GetProgressToken(), Progress: float64(i), Total: float64(a.N)})
				if err != nil {
					return nil, nil, err
				}
				sleep(ctx, a.Millis)
			}
			return text(strconv.Itoa(a.N)), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "log", Description: "Logs"},
		func(ctx context.Context, r *mcp.CallToolRequest, a countArgs) (*mcp.CallToolResult, any, error) {
			for i := 1; i <= a.N; i++ {
				if err := r.Session.Log(ctx, &mcp.LoggingMessageParams{Level: "info", Data: fmt.Sprintf("line %d", i)}); err != nil {
					return nil, nil, err
				}
				sleep(ctx, a.Millis)
			}
			return text(strconv.Itoa(a.N)), nil, nil
		})
}

func addSaying(s *mcp.Server) {
	mcp.AddTool(s, &mcp.Tool{Name: "say", Description: "Says what it is told"},
		func(ctx context.Context, r *mcp.CallToolRequest, a sayArgs) (*mcp.CallToolResult, map[string]string, error) {
			for i, m := range a.Progress {
				if err := r.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
					ProgressToken: r.Params.GetProgressToken(), Progress: float64(i + 1), Message: m}); err != nil {
					return nil, nil, err
				}
			}
			for _, m := range a.Log {
				if err := r.Session.Log(ctx, &mcp.LoggingMessageParams{Level: "info", Data: m}); err != nil {
					return nil, nil, err
				}
			}
			if a.Error != "" {
				return nil, nil, &jsonrpc.Error{Code: -32099, Message: a.Error, Data: json.RawMessage(strconv.Quote(a.Error))}
			}
			return text(a.Text), map[string]string{"said": a.Text}, nil
		})
}

func addChanging(s *mcp.Server) {
	var grown atomic.Bool
	mcp.AddTool(s, &mcp.Tool{Name: "grow", Description: "Adds or removes the tool \"grown\""},
		func(context.Context, *mcp.CallToolRequest, any) (*mcp.CallToolResult, any, error) {
			if grown.CompareAndSwap(true, false) {
				s.RemoveTools("grown")
				return text("removed"), nil, nil
			}
			grown.Store(true)
			mcp.AddTool(s, &mcp.Tool{Name: "grown", Description: "Came later"},
				func(context.Context, *mcp.CallToolRequest, any) (*mcp.CallToolResult, any, error) {
					return text("grown"), nil, nil
				})
			return text("added"), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "touch", Description: "Updates test://watched"},
		func(ctx context.Context, _ *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
			return text("touched"), nil, s.ResourceUpdated(ctx, &mcp.ResourceUpdatedNotificationParams{URI: "test://watched"})
		})
}

func addPromptsAndResources(s *mcp.Server) {
	s.AddPrompt(&mcp.Prompt{Name: "greet", Description: "A greeting", Arguments: []*mcp.PromptArgument{{Name: "name", Required: true}}},
		func(_ context.Context, r *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return prompt("Greet " + r.Params.Arguments["name"]), nil
		})
	s.AddPrompt(&mcp.Prompt{Name: "plain", Description: "No arguments"},
		func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return prompt("Plain"), nil
		})

	read := func(_ context.Context, r *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{
			{URI: r.Params.URI, MIMEType: "text/plain", Text: "content of " + r.Params.URI}}}, nil
	}
	for _, name := range []string{"static/one", "static/two", "watched"} {
		s.AddResource(&mcp.Resource{URI: "test://" + name, Name: name, MIMEType: "text/plain"}, read)
	}
	s.AddResourceTemplate(&mcp.ResourceTemplate{URITemplate: "test://item/{id}", Name: "item", MIMEType: "text/plain"}, read)
}

func prompt(s string) *mcp.GetPromptResult {
	return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{{Role: "user", Content: &mcp.TextContent{Text: s}}}}
}

func complete(_ context.Context, r *mcp.CompleteRequest) (*mcp.CompleteResult, error) {
	var values []string
	for _, v := range []string{"alice", "bob", "carol"} {
		if strings.HasPrefix(v, r.Params.Argument.Value) {
			values = append(values, v)
		}
	}
	return &mcp.CompleteResult{Completion: mcp.CompletionResultDetails{Values: values, Total: len(values)}}, nil
}

// sleep reports whether the time passed before ctx ended.
func sleep(ctx context.Context, millis int) bool {
	if millis <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-time.After(time.Duration(millis) * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}
