package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"

	"github.com/sluicegate/sluice/dataplane"
)

type mcpOptions struct {
	output
	url      string
	headers  []string
	protocol string
}

func mcpCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{Use: "mcp", Short: "Talk to an MCP endpoint as a client does", Args: cobra.NoArgs, RunE: usage}
	cmd.AddCommand(mcpList(env), mcpCall(env))
	return cmd
}

func (o *mcpOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.url, "url", "http://127.0.0.1:3000/mcp", "endpoint")
	cmd.Flags().StringArrayVarP(&o.headers, "header", "H", nil, "header to send, e.g. 'Authorization: Bearer …'")
	cmd.Flags().StringVar(&o.protocol, "protocol", "", "MCP revision to speak, e.g. 2025-06-18 (default: the newest that both know)")
	o.output.flag(cmd)
}

// endpoint is a session, and what its server last said beside its status: the SDK drops it.
type endpoint struct {
	*mcp.ClientSession
	said *answers
}

// why is err with the reason that the server gave for it.
func (e endpoint) why(err error) error { return e.said.why(err) }

func (o *mcpOptions) connect(ctx context.Context) (endpoint, error) {
	header := http.Header{}
	for _, h := range o.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return endpoint{}, &codedError{Invalid, fmt.Errorf("sluice: --header %q: want 'Name: value'", h)}
		}
		header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	if all := dataplane.Protocols(); o.protocol != "" && !slices.Contains(all, o.protocol) {
		return endpoint{}, &codedError{Invalid, fmt.Errorf("sluice: --protocol %q: revisions are %s", o.protocol, strings.Join(all, ", "))}
	}
	if u, err := url.Parse(o.url); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return endpoint{}, &codedError{Invalid, fmt.Errorf("sluice: --url %q: want an address such as http://127.0.0.1:3000/mcp", o.url)}
	}
	said := &answers{header: header}
	client := mcp.NewClient(&mcp.Implementation{Name: "sluice", Version: version()}, nil)
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint:   o.url,
		HTTPClient: &http.Client{Transport: said},
	}, &mcp.ClientSessionOptions{ProtocolVersion: o.protocol})
	if err != nil {
		return endpoint{}, fmt.Errorf("connecting to %s: %w", o.url, said.why(err))
	}
	return endpoint{session, said}, nil
}

// answers puts headers into requests, and remembers why the last POST was refused.
type answers struct {
	header http.Header

	mu      sync.Mutex
	refusal string // guarded by mu; empty if the last one was not
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for name, values := range a.header {
		r.Header[name] = values
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil || r.Method != http.MethodPost {
		return resp, err
	}
	refusal := ""
	if resp.StatusCode >= 400 {
		page, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if err == nil {
			refusal = reason(page)
		}
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(page), resp.Body), resp.Body}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refusal = refusal
	return resp, nil
}

func (a *answers) why(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil || a.refusal == "" || strings.Contains(err.Error(), a.refusal) {
		return err
	}
	return fmt.Errorf("%w: %s", err, a.refusal)
}

// reason is the message of a JSON-RPC error, or a page that is one short line of text.
func reason(page []byte) string {
	var refusal struct{ Error struct{ Message string } }
	if json.Unmarshal(page, &refusal) == nil {
		return refusal.Error.Message
	}
	line := string(bytes.TrimSpace(page))
	if len(line) > 200 || strings.ContainsAny(line, "<\n") {
		return ""
	}
	return line
}

func mcpList(env Env) *cobra.Command {
	var opt mcpOptions
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List tools, prompts, resources and templates",
		Example: "  sluice mcp list --url http://127.0.0.1:3000/mcp",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return listItems(cmd.Context(), env, opt) },
	}
	opt.flags(cmd)
	return cmd
}

func listItems(ctx context.Context, env Env, opt mcpOptions) error {
	session, err := opt.connect(ctx)
	if err != nil {
		return err
	}
	defer session.Close()
	type item struct {
		Kind        string `json:"kind"`
		Name        string `json:"name"`
		Description string `json:"description"`
	}
	items := []item{}
	caps := session.InitializeResult().Capabilities
	if caps.Tools != nil {
		for t, err := range session.Tools(ctx, nil) {
			if err != nil {
				return session.why(err)
			}
			items = append(items, item{"tool", t.Name, t.Description})
		}
	}
	if caps.Prompts != nil {
		for p, err := range session.Prompts(ctx, nil) {
			if err != nil {
				return session.why(err)
			}
			items = append(items, item{"prompt", p.Name, p.Description})
		}
	}
	if caps.Resources != nil {
		for r, err := range session.Resources(ctx, nil) {
			if err != nil {
				return session.why(err)
			}
			items = append(items, item{"resource", r.URI, r.Description})
		}
		for t, err := range session.ResourceTemplates(ctx, nil) {
			if err != nil {
				return session.why(err)
			}
			items = append(items, item{"template", t.URITemplate, t.Description})
		}
	}
	return opt.print(env.Stdout, items, func(w io.Writer) error {
		return rows(w, "KIND NAME DESCRIPTION", func(row func(...any)) {
			for _, i := range items {
				description, _, _ := strings.Cut(i.Description, "\n")
				row(i.Kind, i.Name, description)
			}
		})
	})
}

func mcpCall(env Env) *cobra.Command {
	var opt mcpOptions
	var arguments string
	cmd := &cobra.Command{
		Use:     "call TOOL",
		Short:   "Call a tool",
		Example: `  sluice mcp call notes_add --arguments '{"text": "hello"}'`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return callTool(cmd.Context(), env, opt, args[0], arguments)
		},
	}
	opt.flags(cmd)
	cmd.Flags().StringVar(&arguments, "arguments", "{}", "JSON object, or @FILE")
	return cmd
}

func callTool(ctx context.Context, env Env, opt mcpOptions, tool, arguments string) error {
	arguments, err := valueOrFile(arguments)
	if err != nil {
		return &codedError{Invalid, fmt.Errorf("sluice: --arguments: %w", err)}
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(arguments), &object); err != nil {
		return &codedError{Invalid, fmt.Errorf("sluice: --arguments is no JSON object: %w", err)}
	}
	session, err := opt.connect(ctx)
	if err != nil {
		return err
	}
	defer session.Close()
	result, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: json.RawMessage(arguments)})
	if err != nil {
		return session.why(err)
	}
	if err := opt.print(env.Stdout, result, func(w io.Writer) error { return printContent(w, result) }); err != nil {
		return err
	}
	if result.IsError {
		return &codedError{code: Failed}
	}
	return nil
}

func printContent(w io.Writer, result *mcp.CallToolResult) error {
	for _, c := range result.Content {
		if text, ok := c.(*mcp.TextContent); ok {
			fmt.Fprintln(w, text.Text)
			continue
		}
		data, err := json.Marshal(c)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\n", data)
	}
	return nil
}
