package mux

import (
	"context"
	"net/http"
	"strings"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// byName serves tools/call and prompts/get.
func (m *Mux) byName(w http.ResponseWriter, x *Request) error {
	name, err := x.Message.Target()
	if err != nil {
		return err
	}
	kind := policy.Tool
	if x.Message.Method == "prompts/get" {
		kind = policy.Prompt
	}
	shown := name.String()
	t, own, err := x.owner(x.HTTP.Context(), kind, shown)
	if err != nil {
		return err
	}
	return x.forward(w, t, item{kind: kind, own: own, shown: shown, at: name})
}

// byURI serves resources/read, subscribe and unsubscribe.
func (m *Mux) byURI(w http.ResponseWriter, x *Request) error {
	uri, err := x.Message.Target()
	if err != nil {
		return err
	}
	shown := uri.String()
	t, own := x.byURI(shown)
	if t == nil {
		return x.notFound(policy.Resource, shown)
	}
	return x.forward(w, t, item{kind: policy.Resource, own: own, shown: shown, at: uri})
}

// complete serves completion/complete, for a prompt by its name, for a resource or template by its URI.
func (m *Mux) complete(w http.ResponseWriter, x *Request) error {
	// What rules are asked about must be what the target takes the reference for.
	ref := x.Message.Ref
	kind := ref.Type.String()
	switch {
	case kind == "ref/prompt" && ref.Name.IsString() && !ref.URI.Present():
		shown := ref.Name.String()
		t, own, err := x.owner(x.HTTP.Context(), policy.Prompt, shown)
		if err != nil {
			return err
		}
		return x.forward(w, t, item{kind: policy.Prompt, own: own, shown: shown, at: ref.Name})
	case kind == "ref/resource" && ref.URI.IsString() && !ref.Name.Present():
		shown, kind := ref.URI.String(), policy.Resource
		if strings.Contains(shown, "{") {
			kind = policy.Template
		}
		t, own := x.byURI(shown)
		if t == nil {
			return x.notFound(kind, shown)
		}
		return x.forward(w, t, item{kind: kind, own: own, shown: shown, at: ref.URI})
	default:
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidParams, "completion/complete needs params.ref: type ref/prompt and a name, or type ref/resource and a uri")
	}
}

// other serves methods that name no item that could lead to a target, such as those that no revision has. With several
// targets nothing says for which of them it is.
func (m *Mux) other(w http.ResponseWriter, x *Request) error {
	t := x.alone()
	if t == nil {
		return x.unknownMethod()
	}
	return x.forward(w, t, item{})
}

// item is what a request asks for.
type item struct {
	kind       policy.ItemKind
	own, shown string   // its name as the target and as the client know it; a URI for resources
	at         mcp.Text // where the name stands
	tool       string   // that made a task, if it is known
	// lifecycle: no rule is asked, for no rule may keep a client from speaking the protocol at all.
	lifecycle bool
}

// forward admits one request for one target, sends it on under the target's own name, and relays the answer.
func (x *Request) forward(w http.ResponseWriter, t *snapshot.Target, it item) error {
	ctx, done := x.callContext(t)
	defer done()
	x.Record.Target, x.Record.Name = t.Name, it.own
	if err := x.take(t, it.kind, it.own); err != nil { // before rules: a refusal must not cost less than a call
		return err
	}
	switch {
	case it.lifecycle:
	case it.kind == policy.Task:
		x.Record.Name = it.tool // whoever has a task's id may have the task: it is no matter for logs
		if err := x.admitTask(ctx, t, it.own, it.shown, it.tool); err != nil {
			return err
		}
		x.remember(t, it.own, it.tool)
	default:
		if err := x.admit(ctx, t, it.kind, it.own, it.shown); err != nil {
			return err
		}
	}
	x.item = it
	if err := x.needsKeys(t); err != nil {
		return err
	}
	call := x.call(t, it.kind, it.own)
	if err := t.Policy.Answerable(&call); err != nil { // rather now than after the target has acted
		return x.unreachable(t, err)
	}
	resp, err := x.sendItem(ctx, t, it)
	if err != nil {
		return err
	}
	return x.relay(ctx, w, t, resp, it)
}

// sendItem sends the client's request with the target's own name in it.
func (x *Request) sendItem(ctx context.Context, t *snapshot.Target, it item) (*upstream.Response, error) {
	out := outgoing{body: x.Message.Body, method: x.Message.Method, name: it.own, safe: safe(x.Message.Method), kind: it.kind, own: it.own}
	if it.kind == policy.None || x.Message.Method == "completion/complete" {
		out.name = "" // Mcp-Name is only for what the revision says
	}
	var room []byte
	if it.own != it.shown {
		buf := copyBuffers.Get().(*[]byte)
		defer func() {
			unlend(*buf)
			copyBuffers.Put(buf)
		}()
		room = (*buf)[:0]
	}
	if err := x.prepare(ctx, t, it, &out, room); err != nil {
		return nil, err
	}
	return x.send(ctx, t, out)
}

// safe reports whether a target may see a request of the method twice.
func safe(method string) bool {
	switch method {
	case "resources/read", "prompts/get", "completion/complete", "ping", "server/discover", "logging/setLevel",
		"tools/list", "prompts/list", "resources/list", "resources/templates/list", "tasks/get", "tasks/list":
		return true
	}
	return false
}

// callContext bounds a call. In the stateless era a client that leaves has cancelled, at once. In the session era it
// has not: it may come back for the answer, or have sent a notification that it cancels; the call goes on for a while.
func (x *Request) callContext(t *snapshot.Target) (context.Context, context.CancelFunc) {
	ctx, cancel := x.HTTP.Context(), context.CancelFunc(func() {})
	if !x.Ends && !x.revision().CancelsOnDisconnect() {
		l := linger(ctx, x.mux.cfg.Linger)
		ctx, cancel = l, l.end
	}
	if d := deadline(t); d > 0 {
		outer := cancel
		bounded, stop := context.WithTimeoutCause(ctx, d, upstream.ErrTimeout)
		return bounded, func() { stop(); outer() }
	}
	return ctx, cancel
}

// owner finds the target of a tool's or prompt's name, and the target's own name for it.
//
// Without prefixes the first target in order whose list has the name owns it. A target before it that this proxy has
// never seen the list of, and cannot see now, may be the owner: that is an error, never the next one's turn.
func (x *Request) owner(ctx context.Context, kind policy.ItemKind, name string) (*snapshot.Target, string, error) {
	if x.prefixed() {
		t, own := x.byPrefix(name)
		if t == nil {
			return nil, "", x.notFound(kind, name)
		}
		return t, own, nil
	}
	if t := x.alone(); t != nil {
		return t, name, nil
	}
	if len(x.Backend.Targets) == 1 {
		return x.Backend.Targets[0], name, nil
	}
	for _, t := range x.Backend.Targets {
		_, listed, err := x.lookUp(ctx, t, kind, name)
		if err != nil {
			return nil, "", err
		}
		if listed {
			return t, name, nil
		}
	}
	return nil, "", x.notFound(kind, name)
}

// response brings a client's answer to the target that asked.
func (m *Mux) response(w http.ResponseWriter, x *Request) error {
	if x.Session == nil {
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "a response needs a session")
	}
	msg := x.Message
	t, leg, id := x.asked(msg)
	if t == nil {
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "the response answers no request of this session")
	}
	body := msg.Body
	if id != nil {
		var e mcp.Edits
		e.Replace(msg.ID, id)
		body = e.Apply(nil, body)
	}
	ctx, done := x.callContext(t)
	defer done()
	x.Record.Target = t.Name
	guarded, err := x.guardRequest(ctx, t, item{}, "", body)
	if err != nil {
		// The target waits for an answer, and gets this one. The client is told by what becomes of its call: an error here
		// would read as the end of its session to some.
		e := x.asError(err)
		guarded = mcp.AppendError(nil, idOr(id, msg.RawID()), e.Code, e.Message, nil)
	}
	resp, err := x.send(ctx, t, outgoing{body: guarded, session: leg})
	if err != nil {
		return err
	}
	if x.alone() == nil && resp.Status < 300 { // a response has no answer: what came could only be for what another target was asked
		_ = resp.Body.Close()
		resp = &upstream.Response{Status: http.StatusAccepted, Header: http.Header{}, Body: http.NoBody}
	}
	return x.relay(ctx, w, t, resp, item{})
}

func idOr(id, passed []byte) []byte {
	if id != nil {
		return id
	}
	return passed
}

// asked finds the target whose request a response answers, its session, and its own id of the request; nil for an id
// that was passed through.
func (x *Request) asked(msg *mcp.Message) (*snapshot.Target, *session.Target, []byte) {
	if sealed, ok := mcp.Unquote(msg.RawID()); ok && x.Codec != nil {
		if r, err := x.Codec.OpenRequest(x.Scope, x.Session.Nonce, string(sealed)); err == nil {
			leg := session.Target{Name: r.Target, ID: r.Session, Version: x.Session.Version}
			t := x.target(r.Target)
			if own, ok := x.Session.Target(r.Target); ok {
				leg.Version = own.Version
			}
			if t != nil {
				if own := x.known(t); own.ID == leg.ID && own.Version != "" { // begun later, perhaps through a bridge
					leg.Version = own.Version
				}
			}
			return t, &leg, []byte(r.ID)
		}
	}
	for _, t := range x.Backend.Targets {
		if !x.wraps(t) {
			return t, nil, nil
		}
	}
	return nil, nil, nil
}
