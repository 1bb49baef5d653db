package dataplane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/policy"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// witnessed remembers the messages that reach a server, but for those that the proxy sends of itself.
type witnessed struct {
	mu   sync.Mutex
	seen []string // guarded by mu; method and what it names
}

func (r *witnessed) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			next.ServeHTTP(w, req)
			return
		}
		body, _ := io.ReadAll(req.Body)
		req.Body = io.NopCloser(strings.NewReader(string(body)))
		r.note(body)
		next.ServeHTTP(w, req)
	})
}

func (r *witnessed) note(body []byte) {
	var m struct {
		Method string
		Params struct {
			Name, URI, TaskID string
			Ref               struct{ Name, URI string }
			Notifications     struct{ ResourceSubscriptions []string }
		}
	}
	if json.Unmarshal(body, &m) != nil {
		m.Method = "what is no message"
	}
	if strings.HasSuffix(m.Method, "/list") || m.Method == "initialize" || m.Method == "server/discover" || strings.HasPrefix(m.Method, "notifications/") {
		return
	}
	what := m.Params.Name + m.Params.URI + m.Params.TaskID + m.Params.Ref.Name + m.Params.Ref.URI + strings.Join(m.Params.Notifications.ResourceSubscriptions, " ")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, strings.TrimSuffix(m.Method+" "+what, " "))
}

// take returns what was seen since the last time.
func (r *witnessed) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

// small is a server with few things of each kind.
func small(t testing.TB, stateless bool) (*mcptest.Server, *witnessed) {
	r := &witnessed{}
	srv := mcptest.NewServer(t, mcptest.Options{Bare: true, Stateless: stateless, JSON: true, Wrap: r.wrap})
	no := false
	for name, annotations := range map[string]*mcp.ToolAnnotations{"echo": {ReadOnlyHint: true}, "add": {DestructiveHint: &no}, "b_c": nil, "_": nil} {
		one := tool(name)
		one.Annotations = annotations
		srv.MCP.AddTool(one, textHandler(name))
	}
	for _, name := range []string{"greet", "b_c"} {
		srv.MCP.AddPrompt(&mcp.Prompt{Name: name}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return &mcp.GetPromptResult{}, nil
		})
	}
	read := func(_ context.Context, r *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: r.Params.URI, Text: "x"}}}, nil
	}
	for _, uri := range []string{"test://one", "test://b+c"} {
		srv.MCP.AddResource(&mcp.Resource{URI: uri, Name: uri}, read)
	}
	srv.MCP.AddResourceTemplate(&mcp.ResourceTemplate{URITemplate: "test://item/{id}", Name: "item"}, read)
	return srv, r
}

// chance writes random rules.
type chance struct{ *rand.Rand }

func (c chance) pick(choices ...string) string { return choices[c.IntN(len(choices))] }

func (c chance) expression(depth int) string {
	if depth == 0 {
		return c.pick("true", "false", "has(jwt.sub)", "jwt.sub == 'ada'", "'read' in scopes", "'admin' in jwt.roles", "tenant == 'default'", "request.path == '/mcp'",
			"has(mcp.tool)", "mcp.tool.name == 'echo'", "mcp.tool.name.contains('_')", "mcp.tool.target == 'a'", "mcp.tool.annotations.readOnlyHint", "has(mcp.tool.annotations)",
			"mcp.tool.arguments.x == 1", "has(mcp.tool) && has(mcp.tool.arguments.x)", "mcp.tool.arguments.l.exists(e, e == 1)",
			"has(mcp.prompt)", "mcp.prompt.name == 'greet'", "has(mcp.resource)", "mcp.resource.name == 'test://one'", "mcp.resource.name.startsWith('test://i')",
			"has(mcp.task)", "mcp.task.name == 't1'", "mcp.method == 'resources/read'", "mcp.method == 'tools/call'", "mcp.method == 'x/unknown'", "source.port > 0")
	}
	switch c.IntN(4) {
	case 0:
		return "!(" + c.expression(depth-1) + ")"
	case 1:
		return "(" + c.expression(depth-1) + " && " + c.expression(depth-1) + ")"
	case 2:
		return "(" + c.expression(depth-1) + " ? " + c.expression(depth-1) + " : " + c.expression(depth-1) + ")"
	}
	return "(" + c.expression(depth-1) + " || " + c.expression(depth-1) + ")"
}

func (c chance) policies() *policyv1.Policies {
	z := &policyv1.McpAuthorization{ExplainDenials: c.IntN(3) == 0}
	for range 1 + c.IntN(3) {
		expr := c.expression(c.IntN(3))
		switch c.IntN(5) {
		case 0:
			z.Rules = append(z.Rules, deny(expr))
		case 1:
			z.Rules = append(z.Rules, require(expr))
		case 2:
			z.Rules = append(z.Rules, scoped(require("("+expr+") || 'write' in scopes"), "write"))
		default:
			z.Rules = append(z.Rules, allow(expr))
		}
	}
	return &policyv1.Policies{McpAuthorization: z}
}

// trial is one configuration and one caller.
type trial struct {
	*testProxy
	version, session string
	headers          []string
	recorders        []*witnessed
}

// reached sends a request and says what of it the targets saw.
func (x *trial) reached(t *testing.T, method, name, params string) (bool, answer) {
	t.Helper()
	for _, r := range x.recorders {
		r.take()
	}
	got := x.ask(t, x.version, x.session, method, name, params, x.headers...)
	for _, r := range x.recorders {
		if len(r.take()) > 0 {
			return true, got
		}
	}
	return false, got
}

// listens checks that a stream is told of a resource only if it is listed and, if exact, whenever it is.
func (x *trial) listens(t *testing.T, uri string, visible, exact bool) {
	t.Helper()
	for _, r := range x.recorders {
		r.take()
	}
	body := strings.Replace(listenAll, `"%watched","nobody+x://y"`, `"`+uri+`"`, 1)
	s := x.open(t, http.MethodPost, "", body, append([]string{"MCP-Protocol-Version", x.version, "Mcp-Method", "subscriptions/listen"}, x.headers...)...)
	defer s.close()
	first := <-s.msgs
	params, _ := first["params"].(map[string]any)
	granted, _ := params["notifications"].(map[string]any)
	told := granted != nil && strings.Contains(mustJSON(granted["resourceSubscriptions"]), mustJSON(uri))
	if first["method"] != "notifications/subscriptions/acknowledged" || told && !visible || exact && visible != told {
		t.Errorf("listening to %s: listed %v: %s", uri, visible, mustJSON(first))
	}
	own := strings.TrimPrefix(strings.TrimPrefix(uri, "a+"), "a-b+")
	for _, r := range x.recorders {
		for _, saw := range r.take() {
			if !visible && strings.Contains(saw, own) {
				t.Errorf("listening to %s, which is not listed: a target saw %s", uri, saw)
			}
		}
	}
}

// listed is the names of a list.
func (x *trial) listed(t *testing.T, method string) []string {
	t.Helper()
	got := x.ask(t, x.version, x.session, method, "", "", x.headers...)
	var list struct {
		Result struct {
			Tools, Prompts    []struct{ Name string }
			Resources         []struct{ URI string }
			ResourceTemplates []struct{ URITemplate string }
		}
	}
	text := got.body
	if i := strings.Index(text, "data: "); i >= 0 {
		text, _, _ = strings.Cut(text[i+len("data: "):], "\n")
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil || got.status != 200 || strings.Contains(text, `"error"`) {
		t.Fatalf("%s: %d %s", method, got.status, got.body)
	}
	names := []string{}
	for _, i := range append(list.Result.Tools, list.Result.Prompts...) {
		names = append(names, i.Name)
	}
	for _, i := range list.Result.Resources {
		names = append(names, i.URI)
	}
	for _, i := range list.Result.ResourceTemplates {
		names = append(names, i.URITemplate)
	}
	return names
}

// The two properties of admission, through the whole proxy to real servers: what is not listed is not callable whatever the
// arguments, and where no rule reads what only a call knows, what is listed is. A request is callable if a target sees it.
func TestListedAndCallable(t *testing.T) {
	t.Parallel()
	const trials = 80
	servers, recorders := map[bool][]*mcptest.Server{}, map[bool][]*witnessed{}
	for _, stateless := range []bool{false, true} {
		for range 2 {
			srv, r := small(t, stateless)
			servers[stateless], recorders[stateless] = append(servers[stateless], srv), append(recorders[stateless], r)
		}
	}
	var hidden, shown, exact, gated int
	for seed := range uint64(trials) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			c := chance{rand.New(rand.NewPCG(seed, 4))}
			version := c.pick("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "2026-07-28")
			stateless := version == "2026-07-28"
			bridged := c.IntN(3) == 0 // its targets are of the other era
			w := behind("a="+servers[stateless != bridged][0].URL, "a-b="+servers[stateless != bridged][1].URL)
			n := 1 + c.IntN(2)
			w.targets = w.targets[:n]
			w.backend.PrefixMode = []xdsv1.Backend_PrefixMode{xdsv1.Backend_PREFIX_MODE_CONDITIONAL, xdsv1.Backend_PREFIX_MODE_ALWAYS, xdsv1.Backend_PREFIX_MODE_NEVER}[c.IntN(3)]
			bearer := w.withTokens(t)
			open := w.start(t)
			callers := []struct {
				headers   []string
				principal *policy.Principal
			}{
				{nil, nil},
				{bearer(`"sub":"ada","roles":["admin"],"scope":"read"`), &policy.Principal{Claims: map[string]any{"sub": "ada", "roles": []any{"admin"}, "scope": "read"}}},
				{bearer(`"sub":"bob","scp":["write"]`), &policy.Principal{Claims: map[string]any{"sub": "bob", "scp": []any{"write"}}}},
			}
			caller := callers[c.IntN(len(callers))]
			x := &trial{testProxy: open, version: version, headers: caller.headers, recorders: recorders[stateless != bridged]}
			begin := func() {
				if !stateless {
					x.session = x.initialize(t, version, x.headers...)
				}
			}
			begin()
			lists := []string{"tools/list", "prompts/list", "resources/list", "resources/templates/list"}
			all := map[string][]string{}
			for _, list := range lists {
				all[list] = x.listed(t, list) // before there are rules
			}
			rules := ""
			for _, target := range w.targets {
				w.policies[target.Name] = c.policies()
				rules += target.Name + ": " + prototext.Format(w.policies[target.Name]) + "\n"
			}
			callOnly := strings.Contains(rules, "arguments") || strings.Contains(rules, "mcp.method")
			scope := strings.Contains(rules, "scope:")
			x.apply(t, w)
			begin()
			defer func() {
				if t.Failed() {
					t.Logf("%s, %d targets, %v, caller %d headers, rules:\n%s", version, n, w.backend.PrefixMode, len(x.headers), rules)
				}
			}()
			check := func(list, item, method, name, params string) {
				t.Helper()
				visible := slices.Contains(x.listed(t, list), item)
				reached, got := x.reached(t, method, name, params)
				refused := got.status == 403 || got.status == 401
				switch {
				case visible:
					shown++
				default:
					hidden++
				}
				if refused {
					gated++
				}
				if reached && !visible {
					t.Errorf("%s of %s, which is not listed, reached a target: %d %s", method, item, got.status, got.body)
				}
				if !reached && !strings.Contains(got.body, `"error"`) {
					t.Errorf("%s of %s: no target saw it, and no error: %d %s", method, item, got.status, got.body)
				}
				if refused && (!visible || !scope) {
					t.Errorf("%s of %s: %d though it is not for scope to open", method, item, got.status)
				}
				if !callOnly && !scope {
					exact++
					if reached != visible {
						t.Errorf("%s of %s: listed %v, but callable %v: %d %s", method, item, visible, reached, got.status, got.body)
					}
				}
				if rulesExplain := strings.Contains(rules, "explain_denials:"); !reached && !rulesExplain && !refused && strings.Contains(got.body, "rules[") {
					t.Errorf("%s of %s names a rule: %s", method, item, got.body)
				}
			}
			for _, name := range all["tools/list"] {
				for _, arguments := range []string{`{}`, `{"x":1}`, `{"x":2,"l":[1]}`} {
					check("tools/list", name, "tools/call", name, `"name":"`+name+`","arguments":`+arguments)
				}
			}
			for _, name := range all["prompts/list"] {
				check("prompts/list", name, "prompts/get", name, `"name":"`+name+`"`)
				check("prompts/list", name, "completion/complete", "", `"ref":{"type":"ref/prompt","name":"`+name+`"},"argument":{"name":"a","value":"b"}`)
			}
			for _, uri := range all["resources/list"] {
				check("resources/list", uri, "resources/read", uri, `"uri":"`+uri+`"`)
				switch {
				case stateless && scope: // a refusal of the whole stream is TestStepUp's
				case stateless:
					x.listens(t, uri, slices.Contains(x.listed(t, "resources/list"), uri), !callOnly && !scope)
				case bridged: // what the target sees is a stream, when somebody listens
					visible := slices.Contains(x.listed(t, "resources/list"), uri)
					if got := x.ask(t, version, x.session, "resources/subscribe", "", `"uri":"`+uri+`"`, x.headers...); strings.Contains(got.body, `"result"`) != visible && (!visible || !callOnly && !scope) {
						t.Errorf("resources/subscribe of %s: listed %v, %d %s", uri, visible, got.status, got.body)
					}
				default:
					check("resources/list", uri, "resources/subscribe", "", `"uri":"`+uri+`"`)
				}
				check("resources/list", uri, "completion/complete", "", `"ref":{"type":"ref/resource","uri":"`+uri+`"},"argument":{"name":"a","value":"b"}`)
			}
			for _, uri := range all["resources/templates/list"] {
				check("resources/templates/list", uri, "completion/complete", "", `"ref":{"type":"ref/resource","uri":"`+uri+`"},"argument":{"name":"a","value":"b"}`)
			}
			if n > 1 || bridged {
				return
			}
			// What no list shows is asked of the rules themselves.
			rulesOf, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: w.policies["a"]}, policy.HTTP, policy.Resolver{})
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range []policy.Call{
				{Kind: policy.Task, Name: "t1", Method: "tasks/get"}, {Kind: policy.Task, Name: "t2", Method: "tasks/cancel"}, {Method: "x/unknown"},
			} {
				call.Principal, call.Tenant, call.Target = caller.principal, "default", "a"
				call.HTTP = httptest.NewRequest("POST", "http://localhost/mcp", nil)
				params := `"a":1`
				if call.Name != "" {
					params = `"taskId":"` + call.Name + `"`
				}
				verdict := rulesOf.Admit(&call)
				reached, got := x.reached(t, call.Method, call.Name, params)
				if gated := got.status == 401 || got.status == 403; reached != verdict.Allowed || gated != (verdict.Scopes != nil) {
					t.Errorf("%s %s: a target saw it: %v, %d %s, want %+v", call.Method, call.Name, reached, got.status, got.body, verdict)
				}
			}
		})
	}
	if hidden < 300 || shown < 300 || exact < 150 || gated < 20 {
		t.Errorf("%d hidden, %d shown, %d exact, %d gated: too few to mean anything", hidden, shown, exact, gated)
	}
	t.Logf("%d hidden, %d shown, %d exact, %d gated", hidden, shown, exact, gated)
}
