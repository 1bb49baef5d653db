package oldclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// withMeta is the client's message with what every request of the stateless era carries; id, answers and state are those of a
// retry, nil where there is none.
func (f *sessionsFace) withMeta(m *mcp.Message, id, answers, state []byte) []byte {
	var e mcp.Edits
	if id != nil {
		e.Replace(m.ID, id)
	}
	retry := appendRetry(nil, answers, state)
	meta := f.meta(m)
	switch params := m.Params.Of(m.Body); {
	case m.Meta.Span.Present() && m.Meta.Span.Of(m.Body)[0] == '{':
		name, rest := firstMember(meta)
		e.Insert(m.Body, m.Meta.Span, name, rest)
		if retry != nil {
			name, rest := firstMember(retry)
			e.Insert(m.Body, m.Params, name, rest)
		}
	case len(params) > 0 && params[0] == '{':
		e.Insert(m.Body, m.Params, "_meta", append(append(append([]byte{'{'}, meta...), '}'), withComma(retry)...))
	case m.Params.Present(): // null
		e.Replace(m.Params, object(append([]byte(`"_meta":`), object(meta, nil)...), retry))
	default:
		e.Insert(m.Body, mcp.Span{Start: int32(bytes.IndexByte(m.Body, '{')), End: int32(len(m.Body))}, "params", object(append([]byte(`"_meta":`), object(meta, nil)...), retry))
	}
	return e.Apply(nil, m.Body)
}

// meta are the members, without braces.
func (f *sessionsFace) meta(m *mcp.Message) []byte {
	out := append([]byte(`"`+mcp.MetaVersion+`":`), strconv.Quote(string(mcp.V20260728))...)
	out = append(append(out, `,"`+mcp.MetaClientCapabilities+`":`...), f.capabilities()...)
	out = append(append(out, `,"`+mcp.MetaClientInfo+`":`...), f.c.Session.ClientInfo...)
	if level := f.b.soft.level(f.key()); level != "" && !m.Meta.LogLevel.Present() {
		out = mcp.AppendString(append(out, `,"`+mcp.MetaLogLevel+`":`...), level)
	}
	return out
}

// capabilities are the client's, less what only sessions have.
func (f *sessionsFace) capabilities() []byte {
	raw := []byte(f.c.Session.Capabilities)
	if !bytes.Contains(raw, []byte("listChanged")) && !bytes.Contains(raw, []byte("tasks")) {
		return raw
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(raw, &all) != nil {
		return []byte("{}")
	}
	delete(all, "tasks")
	if extensions, ok := all["extensions"]; ok { // a task of that form could not be told to this client
		if stripped, err := mcp.Strip(nil, extensions, mcp.Limits{}, mcp.TasksExtension); err == nil {
			all["extensions"] = stripped
		}
	}
	if roots, ok := all["roots"]; ok {
		if stripped, err := mcp.Strip(nil, roots, mcp.Limits{}, "listChanged"); err == nil {
			all["roots"] = stripped
		}
	}
	out, err := json.Marshal(all)
	if err != nil {
		return []byte("{}")
	}
	return out
}

// canAnswer reports whether the client has declared what a question needs.
func (f *sessionsFace) canAnswer(q inputRequest) bool {
	var caps map[string]json.RawMessage
	if json.Unmarshal([]byte(f.c.Session.Capabilities), &caps) != nil {
		return false
	}
	need, ok := map[string]string{"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}[string(q.method)]
	return ok && caps[need] != nil
}

// sessionParams are a question's as the session era has them: an elicitation by URL has an id there.
func sessionParams(q inputRequest) []byte {
	if string(q.method) != "elicitation/create" {
		return q.params
	}
	var mode struct{ Mode, ElicitationID string }
	if json.Unmarshal(q.params, &mode) != nil || mode.Mode != "url" || mode.ElicitationID != "" {
		return q.params
	}
	var e mcp.Edits
	e.Insert(q.params, mcp.Span{Start: 0, End: int32(len(q.params))}, "elicitationId", strconv.AppendQuote(nil, newID()))
	return e.Apply(nil, q.params)
}

func appendRetry(dst, answers, state []byte) []byte {
	if answers != nil {
		dst = append(append(dst, `"inputResponses":`...), answers...)
	}
	if state != nil {
		if dst != nil {
			dst = append(dst, ',')
		}
		dst = append(append(dst, `"requestState":`...), state...)
	}
	return dst
}

func withComma(members []byte) []byte {
	if members == nil {
		return nil
	}
	return append([]byte{','}, members...)
}

func object(members, more []byte) []byte {
	out := append([]byte{'{'}, members...)
	return append(append(out, withComma(more)...), '}')
}

// firstMember splits members into the first one's name and what comes after its colon, which is how [mcp.Edits.Insert] takes
// several at once.
func firstMember(members []byte) (name string, rest []byte) {
	at := bytes.Index(members, []byte(`":`))
	return string(members[1:at]), members[at+2:]
}

// paramsKey: servers list by who asks, with which headers, and what the client can do.
type paramsKey struct{ digest, principal, vary, capabilities string }

func (k paramsKey) size() int {
	return len(k.digest) + len(k.principal) + len(k.vary) + len(k.capabilities)
}

// paramsAge is how long a list of tools is believed for its Mcp-Param-* headers; -32020 makes it be read anew.
const paramsAge = 5 * time.Minute

// params are the headers that a call of a tool carries. A tool that the target does not list has none.
func (f *sessionsFace) params(ctx context.Context, r *upstream.Request, tool string, fresh bool) (mcp.ParamHeaders, error) {
	tenant, key := f.t.Tenant.Name, paramsKey{f.t.Digest, f.c.Principal, f.c.Vary, f.c.Session.Capabilities}
	if all, ok := f.b.params.Get(tenant, key); ok && !fresh {
		return all.Of(tool), nil
	}
	v, err := f.b.once(ctx, strings.Join([]string{"params", tenant, key.digest, key.principal, key.vary, key.capabilities}, "\x00"), func(ctx context.Context) (any, error) {
		all := &mcp.ToolParams{}
		for cursor, pages := "", 0; pages < maxPages; pages++ {
			next, more, err := f.listParams(ctx, r, cursor, all)
			if err != nil {
				return nil, err
			}
			if !more {
				break
			}
			cursor = next
		}
		f.b.params.Put(tenant, key, all, key.size()+all.Size(), time.Now().Add(paramsAge))
		return all, nil
	})
	if errors.Is(err, errNoTools) {
		return nil, nil
	}
	if errors.Is(err, mcp.ErrLongList) {
		return nil, &mcp.Error{Status: http.StatusBadGateway, Code: mcp.CodeInternal, Message: fmt.Sprintf("target %q cannot be called: %v", f.t.Name, err)}
	}
	if err != nil {
		return nil, err
	}
	return v.(*mcp.ToolParams).Of(tool), nil
}

// errNoTools: the target refuses to list its tools, which may be for now. A call tells whether it wanted headers.
var errNoTools = errors.New("the target lists no tools")

const maxPages = 64

func (f *sessionsFace) listParams(ctx context.Context, r *upstream.Request, cursor string, into *mcp.ToolParams) (next string, more bool, err error) {
	params := []byte(`"_meta":`)
	params = append(params, object(f.meta(&mcp.Message{}), nil)...)
	if cursor != "" {
		params = mcp.AppendString(append(params, `,"cursor":`...), cursor)
	}
	msg, err := f.ownRequest(ctx, r, "tools/list", object(params, nil))
	if err != nil {
		return "", false, err
	}
	if msg == nil || msg.Error.Present() {
		return "", false, errNoTools
	}
	page, err := into.Add(msg.Result.Of(msg.Body), f.b.cfg.Limits)
	return page.NextCursor.String(), page.NextCursor.IsString(), err
}

// ownRequest sends a request of the bridge's own in the client's name and reads the response; nil for what is no JSON-RPC.
func (f *sessionsFace) ownRequest(ctx context.Context, r *upstream.Request, method string, params []byte) (*mcp.Message, error) {
	own := *r
	own.Method, own.Safe = http.MethodPost, true
	own.Header = r.Header.Clone()
	for name := range own.Header {
		if strings.HasPrefix(name, mcp.HeaderParam) {
			delete(own.Header, name)
		}
	}
	own.Header["Accept"], own.Header["Content-Type"] = []string{"application/json, text/event-stream"}, []string{"application/json"}
	delete(own.Header, mcp.HeaderLastEventID)
	delete(own.Header, mcp.HeaderName)
	mcp.SetHeaders(own.Header, mcp.V20260728, method, "")
	own.Body = mcp.AppendRequest(nil, strconv.AppendQuote(nil, "sluice-"+method), method, params)
	own.Call.Method = method
	resp, err := f.inner.Do(ctx, &own)
	if err != nil {
		return nil, err
	}
	if unauthorized(resp) {
		_ = resp.Body.Close()
		return nil, &unauthorizedError{f.t.Name, method, resp.Status, resp.Header}
	}
	if !isStream(resp) {
		msg, err := f.b.readJSON(resp)
		if msg == nil && err == nil {
			_ = resp.Body.Close()
			err = fmt.Errorf("target %s answered %s with %d and what is no MCP", f.t.Name, method, resp.Status)
		}
		return msg, err
	}
	defer resp.Body.Close()
	events := mcp.NewEventReader(resp.Body, f.b.cfg.Limits.MaxBytes())
	for {
		ev, err := events.Next()
		if err != nil {
			return nil, err
		}
		if !ev.IsMessage() {
			continue
		}
		msg, err := mcp.Scan(bytes.Clone(ev.Data), f.b.cfg.Limits)
		if err != nil || msg.Kind == mcp.Response {
			return &msg, err
		}
	}
}
