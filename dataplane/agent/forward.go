package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/guard"
	"github.com/sluicegate/sluice/internal/policy"
)

const (
	jsonType   = "application/json"
	streamType = "text/event-stream"
)

// maxErrorPage is how much of an answer that is no success is looked at, whether it is JSON-RPC.
const maxErrorPage = 64 << 10

// toClient are the headers of an agent's answer that are the client's business.
var toClient = append([]string{"Content-Type", "Retry-After", "Cache-Control", "Content-Language"}, protocolHeaders...)

// forward sends the request on, byte for byte, and brings back the answer as it comes. If the client leaves, so does the
// request.
func (c *call) forward(w http.ResponseWriter) error {
	ctx, done := c.Bound(c.agent)
	defer done()
	body, err := c.Guard(ctx, c.agent, policy.ToTarget, c.Message.Body)
	if err != nil {
		return err
	}
	resp, err := c.Exchange(ctx, c.agent, &upstream.Request{
		Method: http.MethodPost, Header: c.header(), Body: body, Call: c.Call(c.agent, policy.Agent, c.Record.Name), Safe: safe(c.Message.Method),
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.Status < 300 && mux.ContentType(resp.Header) == streamType:
		return c.relayEvents(ctx, w, resp)
	case resp.Status < 300:
		return c.relayMessage(ctx, w, resp, c.Limits().Bytes)
	case resp.Status == http.StatusUnauthorized, resp.Status == http.StatusForbidden:
		return c.Unauthorized(c.agent, resp)
	}
	return c.relayMessage(ctx, w, resp, maxErrorPage)
}

func (c *call) header() http.Header {
	h := http.Header{"Accept": {jsonType + ", " + streamType}, "Content-Type": {jsonType}}
	passProtocol(c.Request, c.agent, h)
	return h
}

// passProtocol copies the headers that an agent gets from the client. The version may also stand in the query
// (specification 1.0, section 3.6.1), which is not sent on.
func passProtocol(x *mux.Request, t target, h http.Header) {
	x.Pass(t, h)
	for _, key := range protocolHeaders {
		if values, ok := x.HTTP.Header[key]; ok {
			h[key] = values
		}
	}
	if version := x.HTTP.URL.Query().Get("A2A-Version"); version != "" && h["A2a-Version"] == nil {
		h.Set("A2a-Version", version)
	}
}

// head writes status and headers of the agent's answer. After an error nothing has been written.
func (c *call) head(w http.ResponseWriter, resp *upstream.Response) error {
	own := http.Header{}
	for _, key := range toClient {
		if values, ok := resp.Header[key]; ok {
			own[key] = slices.Clone(values)
		}
	}
	if mux.ContentType(resp.Header) == streamType {
		own["X-Accel-Buffering"] = []string{"no"}
	}
	if err := answerHead(c.Request, c.agent, w, own); err != nil {
		return err
	}
	c.begun = true
	w.WriteHeader(resp.Status)
	return nil
}

// answerHead puts own, as the target's policies change it, beside the headers that are there (of CORS, say).
func answerHead(x *mux.Request, t target, w http.ResponseWriter, own http.Header) error {
	h := w.Header()
	before := h.Clone()
	for key, values := range own {
		h[key] = append(h[key], values...)
	}
	if err := x.Modify(h, t); err != nil {
		clear(h)
		for key, values := range before {
			h[key] = values
		}
		return err
	}
	return nil
}

// relayMessage brings one JSON-RPC response of at most limit bytes, or the empty answer that some give where there is no
// result. It is known by what it is: not all agents say that it is JSON.
func (c *call) relayMessage(ctx context.Context, w http.ResponseWriter, resp *upstream.Response, limit int) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	switch {
	case err != nil:
		return c.Unreachable(c.agent, err)
	case len(body) > limit && resp.Status < 300:
		return c.invalid("its answer has more than %d bytes", limit)
	case len(body) > limit || resp.Status >= 300 && len(body) == 0:
		return c.notA2A(resp)
	case len(body) > 0:
		known := mux.ContentType(resp.Header) == jsonType && resp.Status < 300
		if body, err = c.received(ctx, body); err != nil && !known && !c.understood {
			return c.notA2A(resp)
		} else if err != nil {
			return err
		}
		resp.Header["Content-Type"] = []string{jsonType}
	default:
		delete(resp.Header, "Content-Type")
	}
	if err := c.head(w, resp); err != nil {
		return err
	}
	_, _ = w.Write(body) // if the client is gone, there is nobody to tell
	return nil
}

// relayEvents brings an event stream, each event as soon as it has come.
func (c *call) relayEvents(ctx context.Context, w http.ResponseWriter, resp *upstream.Response) error {
	if err := c.head(w, resp); err != nil {
		return err
	}
	flush := http.NewResponseController(w).Flush
	if flush() != nil {
		return nil // the client is gone
	}
	out := mcp.NewEventWriter(w, flush)
	in := mcp.NewEventReader(resp.Body, c.Limits().Bytes)
	for {
		ev, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case c.HTTP.Context().Err() != nil:
			return nil // the client left, and takes the agent's stream with it
		case errors.Is(err, mcp.ErrEventTooLarge):
			return c.endStream(out, c.invalid("an event of its stream has more than %d bytes", c.Limits().Bytes))
		case err != nil:
			return c.endStream(out, c.Unreachable(c.agent, err))
		}
		if len(bytes.TrimSpace(ev.Data)) > 0 {
			if ev.Data, err = c.received(ctx, ev.Data); err != nil {
				return c.endStream(out, err)
			}
		}
		if out.Write(ev) != nil {
			return nil // the client is gone
		}
	}
}

// endStream says in a stream why it ends before its time, so that nobody takes it for a whole one.
func (c *call) endStream(out *mcp.EventWriter, why error) error {
	c.Record.Failed = true
	if e, ok := errors.AsType[*mcp.Error](why); ok {
		_ = out.Write(mcp.Event{Data: e.Append(nil), HasData: true})
	}
	return why
}

// received is what becomes of one message of the agent's, a whole one however its bytes arrived.
func (c *call) received(ctx context.Context, body []byte) ([]byte, error) {
	msg, err := mcp.Scan(body, c.Limits())
	if err != nil {
		return nil, c.invalid("its answer is no JSON-RPC: %v", err)
	}
	if msg.Kind != mcp.Response {
		return nil, c.invalid("its answer is a %s of JSON-RPC, not a response", msg.Kind)
	}
	c.understood = true
	c.Record.Failed = c.Record.Failed || msg.Error.Present()
	if msg.Result.Present() && slices.Contains(cardMethods, c.Message.Method) {
		card, err := rewriteCard(msg.Result.Of(body), c.at.URL(c.HTTP), skillFilter(c.Request, c.agent))
		if err != nil {
			return nil, c.invalid("its card: %v", err)
		}
		var edits mcp.Edits
		edits.Replace(msg.Result, card)
		body = edits.Apply(nil, body)
	}
	if body, err = c.Guard(ctx, c.agent, policy.ToClient, body); err != nil {
		return nil, err
	}
	return c.joined(body)
}

// joined looks for what this message of a stream completes of those before it, which have left: an agent's text comes in pieces,
// and each is shown as it comes. What is found is taken out of this one, or ends the stream.
func (c *call) joined(body []byte) ([]byte, error) {
	filters := c.agent.Policy.Filters(policy.ToClient)
	if len(filters) == 0 {
		return body, nil
	}
	n := c.said
	c.said++
	splits, err := c.trail.Add(filters, n, body, guard.AgentSaid)
	if err != nil {
		return nil, c.invalid("its answer: %v", err)
	}
	var extra []guard.Extra
	for _, s := range splits {
		switch {
		case s.Finding != nil:
			return nil, c.Found(c.agent, s.Finding)
		case s.Message == n:
			extra = append(extra, s.Extra)
		}
	}
	if extra == nil {
		return body, nil
	}
	out, _, err := guard.Apply(nil, body, guard.Agent, extra...)
	if err != nil {
		return nil, c.invalid("its answer: %v", err)
	}
	return out, nil
}

// safe reports whether an agent may see a request of the method twice.
func safe(method string) bool {
	switch method {
	case "tasks/get", "tasks/pushNotificationConfig/get", "tasks/pushNotificationConfig/list", "agent/getAuthenticatedExtendedCard",
		"GetTask", "ListTasks", "GetTaskPushNotificationConfig", "ListTaskPushNotificationConfigs", "GetExtendedAgentCard":
		return true
	}
	return false
}

// invalid says that the agent's answer cannot be one. What is wrong is for the log: it may quote the agent.
func (c *call) invalid(format string, args ...any) error {
	return invalid(c.Request, c.agent, format, args...)
}

func invalid(x *mux.Request, t target, format string, args ...any) error {
	x.Record.Err = fmt.Errorf("the agent: "+format, args...)
	return x.Fail(http.StatusBadGateway, codeInvalidAgentResponse, "agent %q gave an answer that is no A2A", t.Name)
}

// notA2A is for an answer that is none of the protocol's. Its page never reaches the client: it was not written for it.
func (c *call) notA2A(resp *upstream.Response) error {
	kind := mux.ContentType(resp.Header)
	if kind == "" {
		kind = "nothing"
	}
	status, hint := http.StatusBadGateway, "is its path that of the agent's JSON-RPC endpoint?"
	switch {
	case resp.Status == http.StatusTooManyRequests || resp.Status == http.StatusServiceUnavailable:
		status, hint = resp.Status, "it is overloaded or not ready"
	case resp.Status >= 500:
		hint = "it has an error of its own"
	case resp.Status/100 == 3:
		hint = "redirects are not followed: configure the address that it points to"
	}
	e := c.Fail(status, codeInvalidAgentResponse, "agent %q answered %d with %s, which is no A2A: %s", c.agent.Name, resp.Status, kind, hint)
	if after := resp.Header.Get("Retry-After"); after != "" {
		return &mux.Error{Refusal: e, Header: http.Header{"Retry-After": {after}}}
	}
	return e
}

// tell answers an error in an event stream, where the client takes nothing else and the protocol gives errors with status
// 200. All others are answered as those of every request are.
func (c *call) tell(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*mcp.Error](err)
	if c.begun || !ok || e.HTTPStatus() != http.StatusOK || mcp.Accepts(c.HTTP.Header, jsonType) || !mcp.Accepts(c.HTTP.Header, streamType) {
		return
	}
	c.begun = true
	w.Header()["Content-Type"] = []string{streamType}
	w.WriteHeader(http.StatusOK)
	_ = c.endStream(mcp.NewEventWriter(w, http.NewResponseController(w).Flush), err)
}
