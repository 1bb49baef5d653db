package agent

import (
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

// maxErrorPage is how much of an answer that is no success is looked at, whether it is JSON-RPC.
const maxErrorPage = 64 << 10

// toClient are the headers of an agent's answer that are the client's business.
var toClient = append([]string{"Content-Type", "Retry-After", "Cache-Control", "Content-Language"}, protocolHeaders...)

// forward sends the request on, byte for byte, and brings back the answer as it comes. If the client leaves, so does the
// request.
func (c *call) forward(w http.ResponseWriter) error {
	ctx, done := c.Bound(c.agent)
	defer done()
	body, err := c.said(ctx)
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
	case resp.Status < 300 && mcp.MediaType(resp.Header) == mcp.TypeStream:
		return c.relayEvents(ctx, done, w, resp)
	case resp.Status < 300:
		return c.relayMessage(ctx, w, resp, c.Limits().Bytes)
	case resp.Status == http.StatusUnauthorized, resp.Status == http.StatusForbidden:
		return c.Unauthorized(c.agent, resp)
	}
	return c.relayMessage(ctx, w, resp, maxErrorPage)
}

func (c *call) header() http.Header {
	h := http.Header{"Accept": {mcp.TypeJSON + ", " + mcp.TypeStream}, "Content-Type": {mcp.TypeJSON}}
	passProtocol(c.Request, c.agent, h)
	return h
}

// passProtocol copies the headers that an agent gets from the client. The version may also stand in the query, which is not sent on.
func passProtocol(x *mux.Request, t target, h http.Header) {
	x.Pass(t, h)
	for _, key := range protocolHeaders {
		if values, ok := x.HTTP.Header[key]; ok {
			h[key] = values
		}
	}
	if version := versionOf(x.HTTP); version != "" {
		h["A2a-Version"] = []string{version}
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
	if mcp.MediaType(resp.Header) == mcp.TypeStream {
		own["Content-Type"], own["X-Accel-Buffering"] = []string{mcp.TypeStream}, []string{"no"}
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
		known := mcp.MediaType(resp.Header) == mcp.TypeJSON && resp.Status < 300
		original, guarded, err := c.received(ctx, body)
		if err == nil {
			body, err = c.whole(ctx, policy.ToClient, original, guarded)
		}
		switch {
		case err != nil && !known && !c.understood:
			return c.notA2A(resp)
		case err != nil:
			return err
		}
		resp.Header["Content-Type"] = []string{mcp.TypeJSON}
	default:
		delete(resp.Header, "Content-Type")
	}
	if err := c.head(w, resp); err != nil {
		return err
	}
	_, _ = w.Write(body) // if the client is gone, there is nobody to tell
	return nil
}

// received is one message of the agent's, a whole one however its bytes arrived, and what guards make of it.
func (c *call) received(ctx context.Context, body []byte) (original, guarded []byte, err error) {
	msg, err := mcp.Scan(body, c.Limits())
	if err != nil {
		return nil, nil, c.invalid("its answer is no JSON-RPC: %v", err)
	}
	if msg.Kind != mcp.Response {
		return nil, nil, c.invalid("its answer is a %s of JSON-RPC, not a response", msg.Kind)
	}
	c.understood = true
	c.Record.Failed = c.Record.Failed || msg.Error.Present()
	if msg.Result.Present() && slices.Contains(cardMethods, c.Message.Method) {
		card, err := rewriteCard(msg.Result.Of(body), c.at.URL(c.HTTP), skillFilter(c.Request, c.agent))
		if err != nil {
			return nil, nil, c.invalid("its card: %v", err)
		}
		var edits mcp.Edits
		edits.Replace(msg.Result, card)
		body = edits.Apply(nil, body)
	}
	guarded, err = c.Guard(ctx, c.agent, policy.ToClient, body, guard.Agent)
	return body, guarded, err
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
	status, kind, hint := mux.Misanswer(resp, "is its path that of the agent's JSON-RPC endpoint?")
	e := c.Fail(status, codeInvalidAgentResponse, "agent %q answered %d with %s, which is no A2A: %s", c.agent.Name, resp.Status, kind, hint)
	c.Misanswered(c.agent, resp.Status, errors.New(e.Message))
	if after := resp.Header.Get("Retry-After"); after != "" {
		return &mux.Error{Refusal: e, Header: http.Header{"Retry-After": {after}}}
	}
	return e
}

// tell answers an error in an event stream, where the client takes nothing else and the protocol gives errors with status
// 200. All others are answered as those of every request are.
func (c *call) tell(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*mcp.Error](err)
	if c.begun || !ok || e.HTTPStatus() != http.StatusOK || mcp.Accepts(c.HTTP.Header, mcp.TypeJSON) || !mcp.Accepts(c.HTTP.Header, mcp.TypeStream) {
		return
	}
	c.begun = true
	w.Header()["Content-Type"] = []string{mcp.TypeStream}
	w.WriteHeader(http.StatusOK)
	_ = c.endStream(mcp.NewEventWriter(w, http.NewResponseController(w).Flush), err)
}
