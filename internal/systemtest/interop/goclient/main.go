// Command goclient drives an endpoint of two targets with the official Go SDK's client, at every revision.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, revision := range []string{"2025-03-26", "2025-06-18", "2025-11-25"} {
		session(ctx, revision, os.Getenv("SESSION_URL"), "npm_echo", map[string]any{"message": "hello"})
	}
	session(ctx, "2026-07-28", os.Getenv("STATELESS_URL"), "fast_greet", map[string]any{"name": "hello"})
}

func session(ctx context.Context, revision, url, secondTool string, arguments map[string]any) {
	stateless := revision == "2026-07-28"
	updated := make(chan string, 8)
	client := mcp.NewClient(&mcp.Implementation{Name: "goclient", Version: "1"}, &mcp.ClientOptions{
		CreateMessageHandler: func(context.Context, *mcp.CreateMessageRequest) (*mcp.CreateMessageResult, error) {
			return &mcp.CreateMessageResult{Role: "assistant", Model: "none", Content: &mcp.TextContent{Text: "sampled here"}}, nil
		},
		ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			if stateless { // another tool, which asks for another thing
				return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"name": "ada"}}, nil
			}
			return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"username": "ada", "email": "ada@example.com"}}, nil
		},
		ResourceUpdatedHandler: func(_ context.Context, r *mcp.ResourceUpdatedNotificationRequest) { updated <- r.Params.URI },
	})
	s, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: url}, &mcp.ClientSessionOptions{ProtocolVersion: revision})
	must(revision, "connects", err)
	defer s.Close()

	tools, err := s.ListTools(ctx, nil)
	must(revision, "lists tools", err)
	has := func(name string) bool {
		return slices.ContainsFunc(tools.Tools, func(t *mcp.Tool) bool { return t.Name == name })
	}
	check(revision, "lists tools of both targets", has("go_test_simple_text") && has(secondTool))
	call := func(what, name string, arguments map[string]any, want string) {
		if arguments == nil {
			arguments = map[string]any{} // some servers refuse null
		}
		result, err := s.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: arguments})
		must(revision, what, err)
		var text strings.Builder
		for _, c := range result.Content {
			if t, ok := c.(*mcp.TextContent); ok {
				text.WriteString(t.Text)
			}
		}
		check(revision, what, !result.IsError && strings.Contains(text.String(), want))
	}
	call("calls the first target", "go_test_simple_text", nil, "")
	call("calls the second target", secondTool, arguments, "hello")
	read, err := s.ReadResource(ctx, &mcp.ReadResourceParams{URI: "go+test://static-text"})
	must(revision, "reads a resource", err)
	check(revision, "reads under the name it asked for", read.Contents[0].URI == "go+test://static-text")
	_, err = s.GetPrompt(ctx, &mcp.GetPromptParams{Name: "go_test_simple_prompt"})
	must(revision, "gets a prompt", err)
	_, err = s.Complete(ctx, &mcp.CompleteParams{
		Ref:      &mcp.CompleteReference{Type: "ref/prompt", Name: "go_test_prompt_with_arguments"},
		Argument: mcp.CompleteParamsArgument{Name: "arg1", Value: "a"},
	})
	must(revision, "completes", err)
	if stateless {
		call("answers an elicitation by retry", "go_test_input_required_result_elicitation", nil, "ada")
		return
	}
	call("is asked to sample", "go_test_sampling", map[string]any{"prompt": "hi"}, "sampled here")
	if revision >= "2025-06-18" {
		call("is asked to elicit", "go_test_elicitation", map[string]any{"message": "who?"}, "ada")
	}
	must(revision, "subscribes", s.Subscribe(ctx, &mcp.SubscribeParams{URI: "npm+demo://resource/dynamic/text/1"}))
	call("asks for updates", "npm_toggle-subscriber-updates", nil, "")
	select {
	case uri := <-updated:
		check(revision, "hears of an update", strings.HasPrefix(uri, "npm+"))
	case <-time.After(15 * time.Second):
		log.Fatalf("%s: no update came", revision)
	}
}

func must(revision, what string, err error) {
	if err != nil {
		log.Fatalf("%s: %s: %v", revision, what, err)
	}
	check(revision, what, true)
}

func check(revision, what string, ok bool) {
	if !ok {
		log.Fatalf("%s: does not hold: %s", revision, what)
	}
	fmt.Printf("ok %s %s\n", revision, what)
}
