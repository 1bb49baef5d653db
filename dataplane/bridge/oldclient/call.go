package oldclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// call is one request of a client of the session era at a stateless target.
type call struct {
	f    *sessionsFace
	r    upstream.Request
	m    *mcp.Message
	name string // of the tool, for a call of one

	tries int
}

// errCancelled ends a call that its client has cancelled.
var errCancelled = errors.New("the client cancelled the request")

// send sends the request, or its retry with answers and the state that came with the questions. A target that finds the
// Mcp-Param-* headers wrong is sent them anew, once, by its list of now.
func (c *call) send(ctx context.Context, answers, state []byte) (*upstream.Response, error) {
	for again := false; ; again = true {
		r := c.r
		r.Header = c.r.Header.Clone()
		r.Body = c.f.withMeta(c.m, c.newID(), answers, state)
		var params mcp.ParamHeaders
		if c.m.Method == "tools/call" {
			var err error
			if params, err = c.f.params(ctx, &c.r, c.name, again); err != nil {
				return nil, err
			}
			if err := params.Set(r.Header, c.m.Arguments.Of(c.m.Body)); err != nil {
				return nil, err
			}
		}
		resp, err := c.f.inner.Do(ctx, &r)
		if err == nil && unauthorized(resp) {
			_ = resp.Body.Close()
			return nil, &unauthorizedError{c.f.t.Name, c.m.Method, resp.Status, resp.Header}
		}
		if err != nil || again || resp.Status != http.StatusBadRequest || c.m.Method != "tools/call" {
			return resp, err
		}
		msg, err := c.f.b.readJSON(resp)
		if err != nil || msg == nil {
			return resp, err
		}
		if code, _ := msg.ErrorCode(); code != mcp.CodeHeaderMismatch {
			return jsonResponse(resp.Status, msg.Body, resp.Header), nil
		}
	}
}

// newID is nil for the client's own id, which the first try has: each further one must have another.
func (c *call) newID() []byte {
	c.tries++
	if c.tries == 1 {
		return nil
	}
	return strconv.AppendQuote(nil, "sluice-"+strconv.Itoa(c.tries))
}

// input is what a target wants of the client before it answers.
type input struct {
	requests []inputRequest
	state    []byte // raw; nil: none
}

type inputRequest struct {
	key            string
	method, params []byte // raw
}

// translate makes a response one of the session era, under the client's own id; or tells what the target wants first.
func (c *call) translate(msg *mcp.Message) ([]byte, *input, error) {
	if msg.Error.Present() {
		var e mcp.Edits
		if msg.ID.Present() {
			e.Replace(msg.ID, c.m.RawID())
		} else { // it could not read the request, and there was one alone
			body := bytes.TrimSpace(msg.Body)
			e.Insert(body, mcp.Span{End: int32(len(body))}, "id", c.m.RawID())
			return e.Apply(nil, body), nil, nil
		}
		return e.Apply(nil, msg.Body), nil, nil
	}
	raw := msg.Result.Of(msg.Body)
	var kind, requests, state, structured []byte
	err := mcp.Members(raw, c.f.b.cfg.Limits, resultNames, func(name, value []byte) error {
		switch string(name) {
		case "resultType":
			kind, _ = mcp.Unquote(value)
		case "inputRequests":
			requests = value
		case "requestState":
			state = value
		case "structuredContent":
			structured = value
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	switch string(kind) {
	case "input_required":
		in, err := c.f.b.readInput(requests, state)
		return nil, in, err
	case "", "complete":
	default: // a client that names no extension is given none
		return mcp.AppendError(nil, c.m.RawID(), mcp.CodeInternal, fmt.Sprintf("the target answered with a result of type %.40q, which this client cannot take", kind), nil), nil, nil
	}
	drop := []string{"resultType", "ttlMs", "cacheScope"}
	if c.m.Method == "tools/call" && len(structured) > 0 && structured[0] != '{' {
		drop = append(drop, "structuredContent") // any JSON there, an object here; the content says it in text
	}
	stripped, err := mcp.Strip(nil, raw, c.f.b.cfg.Limits, drop...)
	if err == nil && c.m.Method == "tools/list" {
		stripped, err = forOldClients(stripped, c.f.b.cfg.Limits)
	}
	if err != nil {
		return nil, nil, err
	}
	var e mcp.Edits
	e.Replace(msg.ID, c.m.RawID())
	e.Replace(msg.Result, stripped)
	return e.Apply(nil, msg.Body), nil, nil
}

var resultNames = []string{"resultType", "inputRequests", "requestState", "structuredContent"}

func (b *Bridge) readInput(requests, state []byte) (*input, error) {
	in := &input{state: bytes.Clone(state)}
	if requests == nil {
		return in, nil
	}
	err := mcp.Members(requests, b.cfg.Limits, nil, func(name, value []byte) error {
		q := inputRequest{key: string(name)}
		err := mcp.Members(value, b.cfg.Limits, []string{"method", "params"}, func(name, value []byte) error {
			switch string(name) {
			case "method":
				q.method, _ = mcp.Unquote(value)
				q.method = bytes.Clone(q.method)
			case "params":
				q.params = bytes.Clone(value)
			}
			return nil
		})
		if err == nil && q.method == nil {
			err = fmt.Errorf("inputRequests[%q] has no method", q.key)
		}
		in.requests = append(in.requests, q)
		return err
	})
	return in, err
}

// stream passes a target's event stream on. end is called when it is over.
func (c *call) stream(ctx context.Context, resp *upstream.Response, end func()) *upstream.Response {
	body, w := c.f.b.pipe(ctx)
	go func() {
		defer end()
		w.finish(c.told(ctx, w, c.follow(ctx, resp, w)))
	}()
	return &upstream.Response{Status: http.StatusOK, Header: streamHeader(resp.Header), Body: body}
}

// ask begins a stream with what the target wants of the client.
func (c *call) ask(ctx context.Context, in *input, end func()) *upstream.Response {
	body, w := c.f.b.pipe(ctx)
	go func() {
		defer end()
		w.finish(c.told(ctx, w, c.rounds(ctx, in, w)))
	}()
	return &upstream.Response{Status: http.StatusOK, Header: streamHeader(nil), Body: body}
}

// told tells the client of a stream that broke off before its response came; a stream that merely ended would say nothing.
func (c *call) told(ctx context.Context, w *eventPipe, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	c.f.b.log.Warn("a target broke off its answer", "tenant", c.f.t.Tenant.Name, "target", c.f.t.Name, "err", err)
	return w.message(c.failed("target %q broke off its answer; it may have processed the request", c.f.t.Name))
}

// follow writes the events of an answer up to its response, and what comes of that.
func (c *call) follow(ctx context.Context, resp *upstream.Response, w *eventPipe) error {
	in, err := c.events(ctx, resp, w)
	if err != nil || in == nil {
		return err
	}
	return c.rounds(ctx, in, w)
}

// events passes an answer's notifications on, and its response unless that asks for input.
func (c *call) events(ctx context.Context, resp *upstream.Response, w *eventPipe) (*input, error) {
	defer resp.Body.Close()
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	events := mcp.NewEventReader(resp.Body, c.f.b.cfg.Limits.MaxBytes())
	for {
		ev, err := events.Next()
		if err == io.EOF {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		if !ev.IsMessage() {
			continue
		}
		msg, err := mcp.Scan(ev.Data, c.f.b.cfg.Limits)
		switch {
		case err != nil:
			return nil, err
		case msg.Kind == mcp.Notification:
			if err := w.message(msg.Body); err != nil {
				return nil, err
			}
		case msg.Kind == mcp.Response:
			out, in, err := c.translate(&msg)
			if err != nil || in != nil {
				return in, err
			}
			return nil, w.message(out)
		}
	}
}

// rounds asks the client and sends the call again with the answers, until the target has a result.
func (c *call) rounds(ctx context.Context, in *input, w *eventPipe) error {
	wait := idleRound
	idle := 0
	for range maxRounds {
		if len(in.requests) == 0 {
			if idle++; idle > maxIdleRounds {
				return w.message(c.failed("the target is busy: it asked for patience %d times", maxIdleRounds))
			}
			select {
			case <-time.After(wait):
				wait *= 2
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		answers, refused, err := c.answers(ctx, in, w)
		if err != nil {
			return err
		}
		if refused != nil {
			return w.message(refused)
		}
		resp, err := c.send(ctx, answers, in.state)
		if err != nil {
			c.f.b.log.Warn("a call's next round failed", "tenant", c.f.t.Tenant.Name, "target", c.f.t.Name, "err", err)
			return w.message(c.failed("target %q broke off the call while it was asking the client", c.f.t.Name))
		}
		if isStream(resp) {
			if in, err = c.events(ctx, resp, w); err != nil || in == nil {
				return err
			}
			continue
		}
		msg, err := c.f.b.readJSON(resp)
		if err != nil {
			return err
		}
		if msg == nil {
			_ = resp.Body.Close()
			return w.message(c.failed("target %q answered %d with what is no MCP", c.f.t.Name, resp.Status))
		}
		out, next, err := c.translate(msg)
		if err != nil {
			return err
		}
		if next == nil {
			return w.message(out)
		}
		in = next
	}
	return w.message(c.failed("target %q asked more than %d times", c.f.t.Name, maxRounds))
}

func (c *call) failed(format string, args ...any) []byte {
	return mcp.AppendError(nil, c.m.RawID(), mcp.CodeInternal, fmt.Sprintf(format, args...), nil)
}

// answers asks all that the target wants to know at once, and returns the raw inputResponses; or the refusal to give the
// client, where he cannot be asked or will not answer.
func (c *call) answers(ctx context.Context, in *input, w *eventPipe) (answers, refused []byte, err error) {
	if len(in.requests) == 0 {
		return nil, nil, nil
	}
	if len(in.requests) > maxAsked {
		return nil, c.failed("target %q asked %d things at once; %d are the most", c.f.t.Name, len(in.requests), maxAsked), nil
	}
	for _, q := range in.requests {
		if !c.f.canAnswer(q) {
			return nil, c.failed("target %q wants %s of the client, which has not declared it", c.f.t.Name, clip(q.method)), nil
		}
	}
	waiting := make([]*question, len(in.requests))
	defer func() {
		for _, q := range waiting {
			if q != nil {
				c.f.b.soft.withdraw(c.f.key(), q)
			}
		}
	}()
	room := c.f.b.cfg.Limits.MaxBytes()
	for i, q := range in.requests {
		waiting[i] = c.f.b.soft.ask(c.f.key(), &room, c.f.whose())
		if err := w.message(mcp.AppendRequest(nil, waiting[i].id, string(q.method), sessionParams(q))); err != nil {
			return nil, nil, err
		}
	}
	answers = []byte{'{'}
	for i, q := range in.requests {
		var msg *mcp.Message
		select {
		case msg = <-waiting[i].answer:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		if msg == nil || msg.Error.Present() {
			if err := c.void(waiting[i+1:], w); err != nil {
				return nil, nil, err
			}
		}
		if msg == nil {
			return nil, c.failed("the client's answers to target %q are too large: together they may have %d bytes", c.f.t.Name, c.f.b.cfg.Limits.MaxBytes()), nil
		}
		if msg.Error.Present() {
			return nil, c.failed("the client refused %s: %s", clip(q.method), errorMessage(msg)), nil
		}
		given := msg.Result.Of(msg.Body)
		if string(q.method) != "sampling/createMessage" { // 2026-07-28 has no _meta in the others' results
			if given, err = mcp.Strip(nil, given, c.f.b.cfg.Limits, "_meta"); err != nil {
				return nil, c.failed("the client's answer to %s is no object", clip(q.method)), nil
			}
		}
		if i > 0 {
			answers = append(answers, ',')
		}
		answers = append(append(mcp.AppendString(answers, q.key), ':'), given...)
	}
	return append(answers, '}'), nil, nil
}

// void tells the client that questions which it may still be at need no answer.
func (c *call) void(waiting []*question, w *eventPipe) error {
	for _, q := range waiting {
		if len(q.answer) > 0 {
			continue
		}
		params := append(append([]byte(`{"requestId":`), q.id...), `,"reason":"the call has ended"}`...)
		if err := w.message(mcp.AppendNotification(nil, "notifications/cancelled", params)); err != nil {
			return err
		}
	}
	return nil
}
