package oldclient

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

func isStream(resp *upstream.Response) bool { return mcp.MediaType(resp.Header) == mcp.TypeStream }

// readJSON reads the one JSON-RPC message that an answer is, and closes it. Of an answer that is something else it reads nothing and
// returns nil.
func (b *Bridge) readJSON(resp *upstream.Response) (*mcp.Message, error) {
	if mcp.MediaType(resp.Header) != mcp.TypeJSON {
		return nil, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(b.cfg.Limits.MaxBytes())+1))
	if err != nil {
		return nil, err
	}
	msg, err := mcp.Scan(body, b.cfg.Limits)
	if err == nil && msg.Kind != mcp.Response {
		err = fmt.Errorf("the answer is a %v", msg.Kind)
	}
	if err != nil && resp.Status >= 300 { // an error page in JSON
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return nil, nil
	}
	return &msg, err
}

// unauthorizedError is a target's refusal of the credential that a request came with: for the multiplexer to judge, whatever was asked.
type unauthorizedError struct {
	target, method string
	status         int
	header         http.Header
}

func (e *unauthorizedError) Error() string {
	return fmt.Sprintf("target %s answered %s with %d", e.target, e.method, e.status)
}

// answer is the refusal for one of those who waited.
func (e *unauthorizedError) answer() *upstream.Response {
	return &upstream.Response{Status: e.status, Header: e.header.Clone(), Body: http.NoBody}
}

// unauthorized reports whether an answer is about the credential; what its body says is no answer to the request.
func unauthorized(resp *upstream.Response) bool {
	return resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden
}

// jsonResponse is one message; what else the target's head says of it stays.
func jsonResponse(status int, body []byte, from http.Header) *upstream.Response {
	h := from.Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Del("Content-Length")
	h["Content-Type"] = []string{"application/json"}
	return &upstream.Response{Status: status, Header: h, Body: io.NopCloser(bytes.NewReader(body)), Length: int64(len(body))}
}

func result(id, raw []byte) *upstream.Response {
	return jsonResponse(http.StatusOK, mcp.AppendResult(nil, id, raw), nil)
}

func refuse(status int, id []byte, code int, message string) *upstream.Response {
	return jsonResponse(status, mcp.AppendError(nil, id, code, message, nil), nil)
}

func accepted() *upstream.Response {
	return &upstream.Response{Status: http.StatusAccepted, Header: http.Header{}, Body: http.NoBody}
}

func streamHeader(from http.Header) http.Header {
	h := from.Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Del("Content-Length")
	h["Content-Type"], h["Cache-Control"] = []string{"text/event-stream"}, []string{"no-cache"}
	return h
}

// An eventPipe is an event stream that is written here and read by the multiplexer. Writing waits for the reader; when he leaves,
// it fails.
type eventPipe struct {
	mu     sync.Mutex // guards what is below
	events *mcp.EventWriter
	begun  bool
	w      *io.PipeWriter
	stop   func() bool
}

// pipe returns both ends. The reader sees why ctx ended; a call that its client has cancelled just ends.
func (b *Bridge) pipe(ctx context.Context) (io.ReadCloser, *eventPipe) {
	r, w := io.Pipe()
	p := &eventPipe{w: w, events: mcp.NewEventWriter(w, func() error { return nil })}
	p.stop = context.AfterFunc(ctx, func() {
		err := context.Cause(ctx)
		if err == errCancelled {
			err = nil
		}
		_ = w.CloseWithError(err) // never fails
	})
	return r, p
}

// cancelled is the answer to a call that its client has cancelled: a stream without a response, which it does not want any more.
func cancelled() *upstream.Response {
	return &upstream.Response{Status: http.StatusOK, Header: streamHeader(nil), Body: io.NopCloser(bytes.NewReader(nil))}
}

// message writes one. With the first, the client is told how soon to come back, as targets with sessions do.
func (p *eventPipe) message(raw []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ev := mcp.Event{Type: []byte("message"), Data: raw, HasData: true, HasRetry: !p.begun, Retry: comeBack}
	p.begun = true
	return p.events.Write(ev)
}

// comeBack is how long a client should wait with another GET, when a stream ends.
const comeBack = time.Second

// finish ends the stream: well, if err is nil. Where ctx ended first that is what the reader sees.
func (p *eventPipe) finish(err error) {
	if p.stop() {
		_ = p.w.CloseWithError(err) // never fails
	}
}

func errorMessage(msg *mcp.Message) string {
	var e struct{ Message string }
	_ = json.Unmarshal(msg.Error.Of(msg.Body), &e)
	return string(clip([]byte(e.Message)))
}

// clip keeps what strangers say short.
func clip(b []byte) []byte {
	if len(b) > 200 {
		return append(bytes.ToValidUTF8(b[:200:200], nil), "…"...)
	}
	return b
}

// forOldClients leaves out of a list of tools the output schemas that the session era does not have, which are any but those of objects;
// and tools whose x-mcp-header is bad: no client over HTTP may call them, and to this target the proxy is the client.
func forOldClients(result []byte, lim mcp.Limits) ([]byte, error) {
	if !bytes.Contains(result, []byte("outputSchema")) && !bytes.Contains(result, []byte("mcp-header")) {
		return result, nil
	}
	var tools []byte
	err := mcp.Members(result, lim, []string{"tools"}, func(name, value []byte) error {
		if string(name) == "tools" {
			tools = value
		}
		return nil
	})
	if err != nil || tools == nil {
		return result, err
	}
	out, changed := []byte{'['}, false
	err = mcp.Elements(tools, lim, func(tool []byte) error {
		if hasBadHeader(tool, lim) {
			changed = true
			return nil
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		if !hasForeignSchema(tool, lim) {
			out = append(out, tool...)
			return nil
		}
		changed = true
		var err error
		out, err = mcp.Strip(out, tool, lim, "outputSchema")
		return err
	})
	if err != nil || !changed {
		return result, err
	}
	at := bytes.Index(result, tools)
	return append(append(append([]byte{}, result[:at]...), append(out, ']')...), result[at+len(tools):]...), nil
}

func hasForeignSchema(tool []byte, lim mcp.Limits) (foreign bool) {
	_ = mcp.Members(tool, lim, nil, func(name, value []byte) error {
		if string(name) != "outputSchema" {
			return nil
		}
		foreign = true
		return mcp.Members(value, lim, nil, func(name, value []byte) error {
			if string(name) == "type" {
				foreign = string(value) != `"object"`
			}
			return nil
		})
	})
	return foreign
}

func hasBadHeader(tool []byte, lim mcp.Limits) (bad bool) {
	_ = mcp.Members(tool, lim, []string{"inputSchema"}, func(name, value []byte) error {
		if string(name) == "inputSchema" {
			_, err := mcp.ParseParamHeaders(value)
			bad = err != nil
		}
		return nil
	})
	return bad
}
