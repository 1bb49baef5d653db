package dataplane

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

var allVersions = []string{"2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"}

// two are two targets of the version's era, `a` and `a-b`: names that a careless split confuses.
func two(t *testing.T, version string, o mcptest.Options) (*world, *mcptest.Server, *mcptest.Server) {
	t.Helper()
	o.Stateless = version == "2026-07-28"
	one, other := o, o
	one.Name, other.Name = "one", "other"
	a, b := mcptest.NewServer(t, one), mcptest.NewServer(t, other)
	return behind("a="+a.URL, "a-b="+b.URL), a, b
}

func TestSeveralTargets(t *testing.T) {
	for _, version := range allVersions {
		t.Run(version, func(t *testing.T) {
			w, a, b := two(t, version, mcptest.Options{PageSize: 3})
			p := w.start(t)
			cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})

			var want []string
			for _, target := range []string{"a", "a-b"} {
				direct := mcptest.Connect(t, map[string]string{"a": a.URL, "a-b": b.URL}[target], mcptest.ClientOptions{Version: version})
				for _, name := range direct.ToolNames(t) {
					want = append(want, target+"_"+name)
				}
			}
			got := cli.ToolNames(t)
			slices.Sort(got)
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("tools (-want +got):\n%s", diff)
			}
			for _, tool := range []string{"a_echo", "a-b_echo"} {
				if got := cli.Call(t, tool, map[string]any{"text": tool}); got != tool {
					t.Errorf("%s = %q", tool, got)
				}
			}
			if got := cli.Call(t, "a-b_elicit", nil); got != "Hello, Ada!" {
				t.Errorf("elicit = %q", got)
			}
			if got := cli.Call(t, "a_sample", nil); got != "model: Paris" {
				t.Errorf("sample = %q", got)
			}
			if got := cli.Call(t, "a_roots", nil); !strings.Contains(got, "file:///work") {
				t.Errorf("roots = %q", got)
			}
			checkURIs(t, cli)
			checkPrompts(t, cli)
			if version != "2026-07-28" {
				if err := cli.Ping(t.Context(), nil); err != nil {
					t.Errorf("ping: %v", err)
				}
				if err := cli.SetLoggingLevel(t.Context(), &mcp.SetLoggingLevelParams{Level: "info"}); err != nil {
					t.Errorf("setLevel: %v", err)
				}
				cli.Call(t, "a-b_log", map[string]any{"n": 2})
				cli.Await(t, "notifications/message", 2)
			}
		})
	}
}

// checkURIs: a link that a tool returns can be read, whichever target it came from.
func checkURIs(t *testing.T, cli *mcptest.Client) {
	t.Helper()
	for _, target := range []string{"a", "a-b"} {
		res, err := cli.CallTool(t.Context(), &mcp.CallToolParams{Name: target + "_link"})
		if err != nil {
			t.Fatal(err)
		}
		var uris []string
		for _, c := range res.Content {
			switch c := c.(type) {
			case *mcp.ResourceLink:
				uris = append(uris, c.URI)
			case *mcp.EmbeddedResource:
				uris = append(uris, c.Resource.URI)
			}
		}
		if diff := cmp.Diff([]string{target + "+test://static/one", target + "+test://static/two"}, uris); diff != "" {
			t.Errorf("%s_link (-want +got):\n%s", target, diff)
			continue
		}
		read, err := cli.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: uris[0]})
		if err != nil {
			t.Errorf("reading %s: %v", uris[0], err)
		} else if read.Contents[0].URI != uris[0] {
			t.Errorf("contents of %s are of %s", uris[0], read.Contents[0].URI)
		}
		if _, err := cli.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: target + "+test://item/7"}); err != nil {
			t.Errorf("reading by template: %v", err)
		}
	}
	var listed []string
	for r, err := range cli.Resources(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, r.URI)
	}
	if !slices.Contains(listed, "a+test://static/one") || !slices.Contains(listed, "a-b+test://watched") {
		t.Errorf("resources = %v", listed)
	}
	for r, err := range cli.ResourceTemplates(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if r.URITemplate != "a+test://item/{id}" && r.URITemplate != "a-b+test://item/{id}" {
			t.Errorf("template %q", r.URITemplate)
		}
	}
}

func checkPrompts(t *testing.T, cli *mcptest.Client) {
	t.Helper()
	got, err := cli.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "a-b_greet", Arguments: map[string]string{"name": "Bo"}})
	if err != nil {
		t.Errorf("prompt: %v", err)
	} else if text := got.Messages[0].Content.(*mcp.TextContent).Text; !strings.Contains(text, "Bo") {
		t.Errorf("prompt = %q", text)
	}
	done, err := cli.Complete(t.Context(), &mcp.CompleteParams{
		Ref: &mcp.CompleteReference{Type: "ref/prompt", Name: "a_greet"}, Argument: mcp.CompleteParamsArgument{Name: "name", Value: "al"},
	})
	if err != nil || !slices.Contains(done.Completion.Values, "alice") {
		t.Errorf("completion = %v, %v", done, err)
	}
}

// Subscriptions reach the target of the URI, and its updates come back under the URI that the client knows.
func TestSubscribe(t *testing.T) {
	w, a, b := two(t, "2025-11-25", mcptest.Options{})
	p := w.start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25"})
	awaitStreams(t, a, b)
	if err := cli.Subscribe(t.Context(), &mcp.SubscribeParams{URI: "a-b+test://watched"}); err != nil {
		t.Fatal(err)
	}
	cli.Call(t, "a_touch", nil)
	cli.Call(t, "a-b_touch", nil)
	got := cli.Await(t, "notifications/resources/updated", 1)
	if got[0].Detail != "a-b+test://watched" {
		t.Errorf("updated %q", got[0].Detail)
	}
	cli.Call(t, "a_grow", nil)
	cli.Await(t, "notifications/tools/list_changed", 1)
}

// awaitStreams waits until a GET stream is open at each server: what is said before nobody hears.
func awaitStreams(t *testing.T, servers ...*mcptest.Server) {
	t.Helper()
	for _, s := range servers {
		waitFor(t, "a GET stream", func() bool { return countMethod(s.Requests(), "GET") > 0 })
	}
	time.Sleep(20 * time.Millisecond) // the request is there, the stream may be on its way
}

// Each revision's own target says what the session-era merge and the stateless one have in common.
func TestMergedServer(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			w, _, _ := two(t, version, mcptest.Options{Instructions: "be brief"})
			cli := mcptest.Connect(t, w.start(t).URL, mcptest.ClientOptions{Version: version})
			init := cli.InitializeResult()
			if init == nil {
				t.Fatal("no result")
			}
			if want := "## a\n\nbe brief\n\n## a-b\n\nbe brief"; init.Instructions != want {
				t.Errorf("instructions = %q, want %q", init.Instructions, want)
			}
			c := init.Capabilities
			if c == nil || c.Tools == nil || !c.Tools.ListChanged || c.Resources == nil || !c.Resources.Subscribe || c.Prompts == nil || c.Completions == nil {
				b, _ := json.Marshal(c)
				t.Errorf("capabilities = %s", b)
			}
		})
	}
}

func TestPrefixModes(t *testing.T) {
	for _, tt := range []struct {
		mode xdsv1.Backend_PrefixMode
		n    int
		want []string // some tools that are listed
		not  []string
	}{
		{xdsv1.Backend_PREFIX_MODE_CONDITIONAL, 1, []string{"echo"}, []string{"a_echo"}},
		{xdsv1.Backend_PREFIX_MODE_CONDITIONAL, 2, []string{"a_echo", "a-b_echo"}, []string{"echo"}},
		{xdsv1.Backend_PREFIX_MODE_ALWAYS, 1, []string{"a_echo"}, []string{"echo"}},
		{xdsv1.Backend_PREFIX_MODE_NEVER, 2, []string{"echo", "own"}, []string{"a_echo", "a-b_echo"}},
	} {
		for _, version := range []string{"2025-06-18", "2026-07-28"} {
			t.Run(tt.mode.String()+version, func(t *testing.T) {
				w, _, b := two(t, version, mcptest.Options{})
				mcp.AddTool(b.MCP, &mcp.Tool{Name: "own"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
					return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "b's own"}}}, nil, nil
				})
				w.targets = w.targets[:tt.n]
				w.backend.PrefixMode = tt.mode
				cli := mcptest.Connect(t, w.start(t).URL, mcptest.ClientOptions{Version: version})
				names := cli.ToolNames(t)
				for _, name := range tt.want {
					if n := count(names, name); n != 1 {
						t.Errorf("%s is listed %d times in %v", name, n, names)
					}
					if name == "own" {
						if got := cli.Call(t, name, nil); got != "b's own" {
							t.Errorf("own = %q", got)
						}
						continue
					}
					if got := cli.Call(t, name, map[string]any{"text": "x"}); got != "x" {
						t.Errorf("%s = %q", name, got)
					}
				}
				for _, name := range tt.not {
					if slices.Contains(names, name) {
						t.Errorf("%s is listed", name)
					}
					if _, err := cli.TryCall(t.Context(), name, map[string]any{"text": "x"}); err == nil {
						t.Errorf("%s can be called", name)
					}
				}
			})
		}
	}
}

func count(names []string, name string) (n int) {
	for _, other := range names {
		if other == name {
			n++
		}
	}
	return n
}

// Without prefixes a name is never the next target's while the first may have it.
func TestNeverOwnerDown(t *testing.T) {
	w, a, _ := two(t, "2025-11-25", mcptest.Options{JSON: true})
	w.backend.PrefixMode = xdsv1.Backend_PREFIX_MODE_NEVER
	w.backend.FailureMode = xdsv1.Backend_FAILURE_MODE_FAIL_OPEN
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	a.Close()
	got := p.post(t, id, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}`)
	if got.status != 502 || !strings.Contains(got.body, `target \"a\"`) {
		t.Errorf("echo, whose owner is down: %d %s", got.status, got.body)
	}
}

func TestFailureModes(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		w, _, b := two(t, version, mcptest.Options{})
		b.Close()
		p := w.start(t)
		if _, err := mcptest.Dial(t.Context(), p.URL, mcptest.ClientOptions{Version: version}); err == nil {
			t.Errorf("%s: failClosed lets a client in though a target is down", version)
		}
		w.backend.FailureMode = xdsv1.Backend_FAILURE_MODE_FAIL_OPEN
		p.apply(t, w)
		cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
		res, err := cli.ListTools(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		missing, _ := json.Marshal(res.Meta["sluice/missing"])
		if !strings.Contains(string(missing), `"target":"a-b"`) {
			t.Errorf("%s: _meta of a list that lacks a target: %v", version, res.Meta)
		}
		if !slices.ContainsFunc(res.Tools, func(t *mcp.Tool) bool { return t.Name == "a_echo" }) {
			t.Errorf("%s: a's tools are gone", version)
		}
		if got := cli.Call(t, "a_echo", map[string]any{"text": "x"}); got != "x" {
			t.Errorf("%s: a_echo = %q", version, got)
		}
	}
}

// A listen acknowledges before anything else, and honours what any of the targets does.
func TestListen(t *testing.T) {
	w, _, _ := two(t, "2026-07-28", mcptest.Options{})
	p := w.start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2026-07-28"})
	time.Sleep(50 * time.Millisecond)
	cli.Call(t, "a-b_grow", nil)
	cli.Await(t, "notifications/tools/list_changed", 1)
}
