package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/guard"
	"github.com/sluicegate/sluice/internal/policy"
)

// What the `ai` policy does to messages. On the way in, rules admit what the client sent; then its arguments are filled in;
// then guards see what will really be sent. On the way out guards see each message whole, before it is translated for the
// client, so that bytes cannot just be copied any more.

// reads reports whether what a target answers has to be read whole.
func (x *Request) reads(t *snapshot.Target) bool {
	return t.Policy.Guards(policy.ToClient) || t.Policy.Fills()
}

// prepare puts the target's own name of the item into a request, fills in arguments, and lets guards see the outcome. room is
// where there is room for a copy of the request.
func (x *Request) prepare(ctx context.Context, t *snapshot.Target, it item, out *outgoing, room []byte) error {
	filled := false
	if it.own != it.shown || t.Policy.Fills() {
		var e mcp.Edits
		if it.own != it.shown {
			e.String(it.at.Span, []byte(it.own))
		}
		var err error
		if filled, err = x.fill(ctx, t, it, &e); err != nil {
			return err
		}
		if e.Len() > 0 {
			out.body = e.Apply(room, out.body)
		}
	}
	if !filled && !t.Policy.Guards(policy.ToTarget) {
		return nil
	}
	body, err := x.guardRequest(ctx, t, it, x.Message.Method, out.body)
	if err != nil {
		return err
	}
	changed := filled || &body[0] != &out.body[0]
	if out.body = body; it.kind != policy.Tool {
		return nil
	}
	if changed {
		msg, err := mcp.Scan(body, x.mux.cfg.Limits)
		if err != nil {
			return x.fail(http.StatusRequestEntityTooLarge, mcp.CodeInvalidRequest, "the request is too large with what policies make of it: %v", err)
		}
		out.arguments = msg.Arguments.Of(body)
	}
	return x.repeat(ctx, t, it, out)
}

// fill adds what `defaults`, `overrides` and `modelAliases` make of a tool's arguments to the edits of the client's message.
func (x *Request) fill(ctx context.Context, t *snapshot.Target, it item, e *mcp.Edits) (filled bool, err error) {
	if !t.Policy.Fills() || it.kind != policy.Tool || x.Message.Method != "tools/call" {
		return false, nil
	}
	body := x.Message.Body
	was := x.Message.Arguments.Of(body)
	accepts := func(string) bool { return true } // of a tool that nothing is known of
	if len(t.Policy.Filled()) > 0 {
		if known, err := x.tool(ctx, t, it.own); err == nil && known != nil {
			accepts = known.accepts
		}
	}
	arguments, err := t.Policy.FillArguments(was, accepts)
	switch {
	case err != nil:
		return false, x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "arguments: %v", err)
	case len(arguments) == len(was) && (len(was) == 0 || &arguments[0] == &was[0]):
		return false, nil
	case x.Message.Arguments.Present():
		e.Replace(x.Message.Arguments, arguments)
	default:
		e.Insert(body, x.Message.Params, "arguments", arguments)
	}
	return true, nil
}

// repeat makes the headers that repeat a tool's arguments anew, from what guards have seen: a header must neither carry past
// them what they took out, nor contradict the body.
func (x *Request) repeat(ctx context.Context, t *snapshot.Target, it item, out *outgoing) error {
	if !x.stateless() {
		return nil
	}
	sent := false
	for key := range x.HTTP.Header {
		sent = sent || strings.HasPrefix(key, mcp.HeaderParam)
	}
	if !sent && out.arguments == nil {
		return nil
	}
	out.params = http.Header{}
	known, err := x.tool(ctx, t, it.own)
	if err != nil || known == nil {
		return nil // the target tells the client which headers it misses
	}
	arguments := out.arguments
	if arguments == nil {
		arguments = x.Message.Arguments.Of(x.Message.Body)
	}
	if err := known.params.Set(out.params, arguments); err != nil {
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "arguments: %v", err)
	}
	return nil
}

// guardRequest lets guards see a message on its way to a target. method is empty for a response.
func (x *Request) guardRequest(ctx context.Context, t *snapshot.Target, it item, method string, message []byte) ([]byte, error) {
	if !t.Policy.Guards(policy.ToTarget) {
		return message, nil
	}
	call := x.call(t, it.kind, it.own)
	out, note, err := t.Policy.Guard(ctx, &call, policy.ToTarget, message, guard.FromClient(method))
	if x.noteUndecided(note); err != nil {
		return nil, x.guarded(err, mcp.CodeInvalidParams)
	}
	return out, nil
}

// guardAnswer lets guards see a target's response to method.
func (x *Request) guardAnswer(t *snapshot.Target, method string, message []byte) ([]byte, error) {
	if bytes.HasPrefix(bytes.TrimLeft(message, " \t\r\n"), []byte("[")) {
		return x.guardMessage(t, method, message, guard.Batch)
	}
	message, err := t.Policy.FillSampling(message)
	if err != nil {
		return nil, x.guarded(err, mcp.CodeInternal)
	}
	return x.guardMessage(t, method, message, guard.Response(method))
}

// guardMessage lets guards see what goes to the client.
func (x *Request) guardMessage(t *snapshot.Target, method string, message []byte, shape *guard.Shape) ([]byte, error) {
	if !t.Policy.Guards(policy.ToClient) {
		return message, nil
	}
	call := x.call(t, x.item.kind, x.item.own)
	call.Method = method
	// A client that has left does not spare the target's answer its guards: others may be given it.
	out, note, err := t.Policy.Guard(context.WithoutCancel(x.HTTP.Context()), &call, policy.ToClient, message, shape)
	if x.noteUndecided(note); err != nil {
		return nil, x.guarded(err, mcp.CodeInternal)
	}
	return out, nil
}

// noteUndecided tells the log of a guard that fails open and did not decide.
func (x *Request) noteUndecided(note error) {
	if note != nil {
		x.Record.Err = errors.Join(x.Record.Err, note)
	}
}

// guarded is a guard's refusal as an answer. code is what the refused message is at fault with.
func (x *Request) guarded(err error, code int) error {
	x.Record.Refused = true
	g, ok := errors.AsType[*policy.GuardError](err)
	if !ok {
		x.Record.Err = err
		return x.fail(http.StatusOK, mcp.CodeInternal, "the message cannot be read")
	}
	if x.Record.Rule = g.Rule; g.Rule == "" {
		x.Record.Rule = g.Place
	}
	if g.Undecided {
		code = mcp.CodeInternal
	}
	if g.Err != nil {
		x.Record.Err = g.Err
	}
	return x.fail(http.StatusOK, code, "%s", g.Message)
}

// relayWhole brings an answer that is one JSON message to the client, once guards have seen it.
func (x *Request) relayWhole(w http.ResponseWriter, t *snapshot.Target, resp *upstream.Response) error {
	body, err := readAll(resp, x.mux.cfg.Limits.MaxBytes(), x.scanned().room)
	if err != nil {
		return x.unreadableAnswer(t, err)
	}
	if resp.Status == http.StatusAccepted || resp.Status == http.StatusNoContent || len(body) == 0 {
		return x.head(w, t, resp) // it has nothing to say
	}
	if body, err = x.guardAnswer(t, x.method(), body); err != nil {
		return err
	}
	ev := mcp.Event{Data: body}
	if err := x.translate(t, &ev, nil); err != nil {
		return x.unreadableAnswer(t, err)
	}
	resp.Length = int64(len(ev.Data))
	setLength(w.Header(), resp.Length)
	if err := x.head(w, t, resp); err != nil {
		delete(w.Header(), "Content-Length")
		return err
	}
	_, _ = w.Write(ev.Data) // the client is gone: nobody to tell
	return nil
}

// unreadableAnswer tells the log what is wrong with it.
func (x *Request) unreadableAnswer(t *snapshot.Target, err error) error {
	x.Record.Err = err
	e := x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q gave an answer that cannot be read", t.Name)
	x.Misanswered(t, http.StatusOK, fmt.Errorf("%s: %w", e.Message, err))
	return e
}

// tool is what a target's list says of a tool, as far as policies need it; nil if it does not list the tool.
func (x *Request) tool(ctx context.Context, t *snapshot.Target, name string) (*tool, error) {
	e, listed, err := x.lookUpItem(ctx, t, policy.Tool, name)
	if err != nil || !listed {
		return nil, err
	}
	return e.tool, nil
}

// tool is what is remembered of a tool for policies that change its arguments.
type tool struct {
	declared []string         // of the names that policies fill in
	open     bool             // the schema declares no properties at all
	params   mcp.ParamHeaders // nil too where the annotations are invalid
}

func (d *tool) accepts(name string) bool { return d.open || slices.Contains(d.declared, name) }

// declaresOf reads a tool's inputSchema.
// size is about how many bytes d takes.
func (d *tool) size() int {
	n := 64 + d.params.Size()
	for _, name := range d.declared {
		n += 16 + len(name)
	}
	return n
}

func declaresOf(schema []byte, filled []string) *tool {
	d := &tool{open: true}
	d.params, _ = mcp.ParseParamHeaders(schema)
	if len(schema) == 0 || schema[0] != '{' {
		return d
	}
	_ = mcp.Members(schema, mcp.Limits{}, nil, func(name, value []byte) error {
		if string(name) != "properties" || value[0] != '{' {
			return nil
		}
		return mcp.Members(value, mcp.Limits{}, nil, func(name, _ []byte) error {
			d.open = false
			if slices.Contains(filled, string(name)) {
				d.declared = append(d.declared, string(name))
			}
			return nil
		})
	})
	return d
}
