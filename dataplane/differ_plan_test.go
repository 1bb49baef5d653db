package dataplane

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// op is something that a client does. Those of one group run at once.
type op struct {
	id     string
	group  int
	target string // "" for all
	do     string
	name   string // of what it is about: a tool, a path, a level
	args   json.RawMessage
	meta   map[string]any
}

// lists is the list that the op reads; "": none.
func (o op) lists() string {
	switch {
	case isList(o.do):
		return o.do
	case o.name == "placed":
		return "tools"
	}
	return ""
}

func (o op) String() string {
	return fmt.Sprintf("op %s, group %d: %s %s %s %s, with _meta %s", o.id, o.group, o.target, o.do, o.name, o.args, mustJSON(o.meta))
}

// odd is JSON that a decoder would not give back as it was.
var odd = []string{
	`{"z":1,"a":9223372036854775808,"u":"é\/<>& \u2028","n":[],"k":{"K":-0.0},"é":[1.0,1E+2]}`, `{}`, `{"a":null,"b":[null,{},[[]]],"":""}`,
	`{"test":"test://static/one","uri":"test://static/one","name":"script","_meta":{"op":7}}`, `{"s":"😀\ud83d\ude00\t\\\"","d":1e-7,"i":-9007199254740993}`,
	`{"deep":` + strings.Repeat(`{"a":[`, 20) + strings.Repeat(`]}`, 20) + `}`, `{"content":[{"uri":"test://w/1","type":"resource_link"}],"resource":{"uri":"test://x"}}`,
	`{"big":"` + strings.Repeat("xé", 40_000) + `"}`, `{"jsonrpc":"2.0","id":1,"method":"x","result":{},"error":{"code":1}}`,
}

type drawer struct {
	chance
	cell differCell
}

// plan is what a client does in a session or several.
func (d drawer) plan(groups int) (all []op) {
	for group := range groups {
		n := 1
		if d.IntN(4) == 0 {
			n = 2 + d.IntN(4)
		}
		listed := map[string]bool{}
		for range n {
			o := d.op(n > 1)
			for d.cell.modern && listed[o.lists()] { // a proxy makes one request of those for one page that come at once
				o = d.op(n > 1)
			}
			listed[o.lists()] = o.lists() != ""
			o.id, o.group = fmt.Sprintf("op-%d", len(all)), group
			o.meta = map[string]any{"op": o.id}
			switch d.IntN(4) {
			case 0:
				o.meta["vendor/x"] = json.RawMessage(odd[d.IntN(len(odd)-2)])
			case 1:
				o.meta["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			}
			switch o.do {
			case "call", "prompt", "read":
				switch d.IntN(4) {
				case 0:
				case 1:
					o.meta["progressToken"] = len(all)
				default:
					o.meta["progressToken"] = fmt.Sprintf("tökén %d", len(all))
				}
			}
			all = append(all, o)
		}
	}
	return all
}

func (d drawer) op(parallel bool) op {
	o := op{target: d.pick(d.cell.targets...)}
	paths := []string{"static/one", "w/1", "w/2", "item/7", "item/none", "nowhere", "boom/1", "é/<&>"}
	if d.cell.bridged && !d.cell.modern {
		paths = paths[:len(paths)-1] // go-sdk's server does not decode Mcp-Name
	}
	kinds := 11
	if !parallel {
		kinds = 19 // the rest changes what others see
	}
	switch d.IntN(kinds) {
	case 0:
		o.do, o.target = d.pick("tools", "prompts", "resources", "templates"), ""
	case 1, 2, 3:
		o.do, o.name = "call", "script"
		o.args = json.RawMessage(mustJSON(d.errand()))
	case 4:
		o.do, o.name, o.args = "call", "echo", json.RawMessage(odd[d.IntN(len(odd))])
	case 5:
		o.do, o.name = "call", d.pick("sum", "broken", "unknown", "placed", "placed")
		o.args = json.RawMessage(d.pick(`{"a":1,"b":2.5}`, `{"a":"x"}`, `{}`, `{"a":1,"c":2}`, `{"region":"eu"}`, `{"region":"é x "}`))
	case 6:
		o.do, o.name = "prompt", "script"
		s := d.errand()
		s.Error = nil
		o.args = json.RawMessage(mustJSON(map[string]string{"script": mustJSON(s)}))
	case 7:
		o.do, o.name, o.args = "prompt", d.pick("a", "b", "unknown", "script"), json.RawMessage(d.pick(`{}`, `{"x":"é"}`))
	case 8:
		o.do, o.name = "read", d.pick(paths...)
	case 9:
		o.do, o.name = d.pick("complete-prompt", "complete-resource"), d.pick("script", "a", "unknown", "item/{id}", "static/one")
	case 10:
		o.do, o.name = "cancel", "script"
		s := d.errand()
		o.name, s.Steps = "script", append(s.Steps, step{Hold: true})
		if !d.cell.modern && d.IntN(3) == 0 { // who leaves with a question has not come back yet, in the stateless era
			o.do = "cancel-asked"
			s.Steps[len(s.Steps)-1] = step{Ask: []question{{"elicit", "block OP"}}}
		}
		o.args = json.RawMessage(mustJSON(s))
	case 11, 12:
		o.do, o.name = "subscribe", d.pick("w/1", "w/2", "é/<&>", "item/7")
	case 13:
		o.do, o.name = "unsubscribe", d.pick("w/1", "w/2", "é/<&>", "item/7")
	case 14, 15:
		o.do, o.name = "touch", d.pick("w/1", "w/2", "é/<&>", "item/7")
	case 16:
		o.do, o.name = "grow", d.pick("tools", "prompts", "resources")
	case 17:
		o.do, o.name, o.target = "level", d.pick("debug", "info", "warning", "error", "emergency"), ""
		if d.IntN(3) == 0 {
			o.do = "ping"
		}
		if d.IntN(3) == 0 {
			o.do = "roots"
		}
	default:
		o.do, o.target = "reopen", ""
	}
	return o
}

func (d drawer) errand() (s errand) {
	texts := []string{"x", "é <b> & \u2028", "test://static/one", "data: {}\n\nevent: x", strings.Repeat("y", 3000)}
	for range d.IntN(5) {
		switch d.IntN(4) {
		case 0, 1:
			s.Steps = append(s.Steps, step{Progress: d.pick(texts...)})
		case 2:
			s.Steps = append(s.Steps, step{Level: d.pick("debug", "info", "warning", "critical"), Data: json.RawMessage(odd[d.IntN(len(odd)-2)])})
		case 3:
			var ask []question
			for range 1 + d.IntN(2)*d.IntN(2) {
				switch d.IntN(3) {
				case 0:
					ask = append(ask, question{"elicit", d.pick("accept Ada", "accept é <&>", "decline", "cancel")})
				case 1:
					ask = append(ask, question{"sample", d.pick(texts...)})
				case 2:
					ask = append(ask, question{Kind: "roots"})
				}
			}
			s.Steps = append(s.Steps, step{Ask: ask})
		}
	}
	s.Text = d.pick(texts...)
	switch d.IntN(5) {
	case 0:
		s.Result = json.RawMessage(odd[d.IntN(len(odd))])
	case 1:
		s.Failed = true
	case 2: // no code that is a status too: go-sdk's stateless server loses such an answer once the stream has begun
		s.Error = &jsonrpc.Error{Code: int64([]int{-32099, -32010, 7, -32603, -32000}[d.IntN(5)]), Message: d.pick(texts...), Data: json.RawMessage(odd[d.IntN(len(odd)-2)])}
	}
	return s
}

// runner has clients at their endpoints, and the servers behind.
type runner struct {
	servers []*actor
	sides   map[string]*side // by target; through a proxy, one for all
	prefix  bool             // names and URIs have one
}

func (r *runner) distinct() (all []*side) {
	for _, s := range r.servers {
		if x := r.sides[s.name]; len(all) == 0 || all[0] != x {
			all = append(all, x)
		}
	}
	return all
}

func (r *runner) server(name string) *actor {
	for _, s := range r.servers {
		if s.name == name {
			return s
		}
	}
	panic(name)
}

func (r *runner) tool(target, name string) string {
	if r.prefix {
		return target + "_" + name
	}
	return name
}

func (r *runner) uri(target, path string) string {
	if r.prefix {
		return target + "+test://" + path
	}
	return "test://" + path
}

// run does all of a plan, group by group.
func (r *runner) run(ctx context.Context, plan []op) error {
	for _, s := range r.distinct() {
		if err := r.begin(ctx, s); err != nil {
			return err
		}
	}
	for len(plan) > 0 {
		n := 1
		for n < len(plan) && plan[n].group == plan[0].group {
			n++
		}
		var all sync.WaitGroup
		for _, o := range plan[:n] {
			all.Go(func() { r.do(ctx, o) })
		}
		all.Wait()
		if ctx.Err() != nil {
			return fmt.Errorf("%v: %w", plan[0], context.Cause(ctx))
		}
		plan = plan[n:]
	}
	for _, s := range r.distinct() {
		r.end(s, "end")
	}
	return nil
}

func (r *runner) begin(ctx context.Context, s *side) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	for _, x := range r.servers {
		if r.sides[x.name] == s && !x.await(func() bool { return x.standing > 0 }) {
			return fmt.Errorf("no stream of %s stands", x.name)
		}
	}
	s.note("begin", "= %s", mustJSON(s.InitializeResult()))
	return nil
}

// end closes a session, and waits until its targets know.
func (r *runner) end(s *side, op string) {
	before := map[*actor]int{}
	for _, x := range r.servers {
		x.mu.Lock()
		before[x] = x.ended
		x.mu.Unlock()
	}
	close(s.release)
	if err := s.Close(); err != nil {
		s.note(op, "closing: %v", err)
	}
	for _, x := range r.servers {
		if r.sides[x.name] == s && !x.await(func() bool { return x.standing == 0 && (s.modern() || x.stateless || x.ended > before[x]) }) {
			s.note(op, "%s does not know of the end", x.name)
		}
	}
}

func (r *runner) do(ctx context.Context, o op) {
	if o.target != "" {
		r.at(ctx, r.sides[o.target], o)
		return
	}
	for _, s := range r.distinct() {
		r.at(ctx, s, o)
	}
}

// at does one thing as one client.
func (r *runner) at(ctx context.Context, s *side, o op) {
	meta := func() mcp.Meta { // of its own for each request: go-sdk's client adds to it
		m := mcp.Meta{}
		for k, v := range o.meta {
			m[k] = v
		}
		if s.modern() && s.level != "" {
			m[mcp.MetaKeyLogLevel] = s.level
		}
		return m
	}
	say := func(result any, err error) { s.note(o.id, "%s", outcome(result, err)) }
	call := func(ctx context.Context) (*mcp.CallToolResult, error) {
		args := o.args
		if o.do == "cancel-asked" {
			args = json.RawMessage(strings.Replace(string(args), "block OP", "block "+o.id, 1))
		}
		return s.CallTool(ctx, &mcp.CallToolParams{Meta: meta(), Name: r.tool(o.target, o.name), Arguments: args})
	}
	changed := func(key, tool, args string) {
		s.mu.Lock()
		want := s.countLocked(key) + 1
		s.mu.Unlock()
		if tool == "touch" && !s.subscribed[r.uri(o.target, o.name)] {
			want = 0
		}
		say(s.CallTool(ctx, &mcp.CallToolParams{Meta: meta(), Name: r.tool(o.target, tool), Arguments: json.RawMessage(args)}))
		if want > 0 && !s.await(func() bool { return s.countLocked(key) >= want }) {
			s.note(o.id, "was not told: %s", key)
		}
	}
	switch o.do {
	case "tools", "prompts", "resources", "templates":
		r.list(ctx, s, o, meta)
	case "call":
		if o.name == "placed" && s.modern() { // its headers follow its schema, which go-sdk's client forgets when any list has changed
			r.list(ctx, s, op{id: "known", do: "tools"}, func() mcp.Meta { return nil })
		}
		say(call(ctx))
	case "cancel", "cancel-asked":
		ctx, cancel := context.WithCancel(ctx)
		over := make(chan struct{})
		go func() {
			defer close(over)
			say(call(ctx))
		}()
		x := r.server(o.target)
		reached := false
		if o.do == "cancel" {
			reached = x.await(func() bool { return x.holding[o.id] })
		} else {
			reached = s.await(func() bool { return s.asked[o.id] })
		}
		if !reached {
			s.note(o.id, "was not held")
		}
		cancel()
		<-over
		if cancelled := func() bool { return strings.Contains(strings.Join(x.saw[o.id], "\n"), "cancelled") }; (o.do == "cancel" || !x.stateless) && !x.await(cancelled) {
			s.note(o.id, "was not cancelled")
		}
	case "prompt":
		var args map[string]string
		_ = json.Unmarshal(o.args, &args)
		say(s.GetPrompt(ctx, &mcp.GetPromptParams{Meta: meta(), Name: r.tool(o.target, o.name), Arguments: args}))
	case "read":
		say(s.ReadResource(ctx, &mcp.ReadResourceParams{Meta: meta(), URI: r.uri(o.target, o.name)}))
	case "complete-prompt":
		say(s.Complete(ctx, &mcp.CompleteParams{Meta: meta(), Ref: &mcp.CompleteReference{Type: "ref/prompt", Name: r.tool(o.target, o.name)}, Argument: mcp.CompleteParamsArgument{Name: "name", Value: "a"}}))
	case "complete-resource":
		say(s.Complete(ctx, &mcp.CompleteParams{Meta: meta(), Ref: &mcp.CompleteReference{Type: "ref/resource", URI: r.uri(o.target, o.name)}, Argument: mcp.CompleteParamsArgument{Name: "id", Value: "b"}}))
	case "subscribe":
		uri, stood := r.uri(o.target, o.name), s.stands()
		fresh := !s.subscribed[uri]
		say(nil, s.Subscribe(ctx, &mcp.SubscribeParams{Meta: meta(), URI: uri}))
		if s.modern() && fresh && !s.await(func() bool { return s.standing > stood }) {
			s.note(o.id, "no acknowledgement")
		}
		s.subscribed[uri] = true
	case "unsubscribe":
		uri := r.uri(o.target, o.name)
		say(nil, s.Unsubscribe(ctx, &mcp.UnsubscribeParams{Meta: meta(), URI: uri}))
		x := r.server(o.target)
		if !x.await(func() bool { return len(x.subscribed["test://"+o.name]) == 0 }) {
			s.note(o.id, "is subscribed still")
		}
		delete(s.subscribed, uri)
	case "touch":
		changed("notifications/resources/updated "+r.uri(o.target, o.name), "touch", mustJSON(map[string]string{"path": o.name}))
	case "grow":
		changed("notifications/"+o.name+"/list_changed ", "grow", mustJSON(map[string]string{"kind": o.name}))
	case "level":
		s.level = o.name
		if !s.modern() {
			say(nil, s.ClientSession.SetLoggingLevel(ctx, &mcp.SetLoggingLevelParams{Meta: meta(), Level: mcp.LoggingLevel(o.name)}))
		}
	case "ping":
		if !s.modern() {
			say(nil, s.Ping(ctx, &mcp.PingParams{Meta: meta()}))
		}
	case "roots":
		s.client.AddRoots(&mcp.Root{URI: "file:///" + o.id, Name: "more"})
	case "reopen":
		r.end(s, o.id)
		if err := r.begin(ctx, s); err != nil {
			s.note(o.id, "opening anew: %v", err)
		}
	}
}

// list reads all pages of a list.
func (r *runner) list(ctx context.Context, s *side, o op, meta func() mcp.Meta) {
	for cursor, pages := "", 0; ; pages++ {
		var next string
		var items []any
		var err error
		add := func(item any) { items = append(items, item) }
		switch o.do {
		case "tools":
			var res *mcp.ListToolsResult
			if res, err = s.ListTools(ctx, &mcp.ListToolsParams{Meta: meta(), Cursor: cursor}); err == nil {
				next = res.NextCursor
				for _, i := range res.Tools {
					add(i)
				}
			}
		case "prompts":
			var res *mcp.ListPromptsResult
			if res, err = s.ListPrompts(ctx, &mcp.ListPromptsParams{Meta: meta(), Cursor: cursor}); err == nil {
				next = res.NextCursor
				for _, i := range res.Prompts {
					add(i)
				}
			}
		case "resources":
			var res *mcp.ListResourcesResult
			if res, err = s.ListResources(ctx, &mcp.ListResourcesParams{Meta: meta(), Cursor: cursor}); err == nil {
				next = res.NextCursor
				for _, i := range res.Resources {
					add(i)
				}
			}
		case "templates":
			var res *mcp.ListResourceTemplatesResult
			if res, err = s.ListResourceTemplates(ctx, &mcp.ListResourceTemplatesParams{Meta: meta(), Cursor: cursor}); err == nil {
				next = res.NextCursor
				for _, i := range res.ResourceTemplates {
					add(i)
				}
			}
		}
		if err != nil {
			s.note(o.id, "%s", outcome(nil, err))
			return
		}
		for _, i := range items {
			s.note(o.id, "= %s", mustJSON(i))
		}
		if next == "" || pages > 20 {
			return
		}
		cursor = next
	}
}
