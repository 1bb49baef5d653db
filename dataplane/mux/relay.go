package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// answer gives the client a result of the proxy's own; nil is the empty one.
func (x *Request) answer(w http.ResponseWriter, result []byte) error {
	return x.write(w, mcp.AppendResult(make([]byte, 0, 64+len(result)), x.Message.RawID(), result))
}

// write answers with a body in pieces.
func (x *Request) write(w http.ResponseWriter, pieces ...[]byte) error {
	size := 0
	for _, p := range pieces {
		size += len(p)
	}
	w.Header()["Content-Type"] = typeJSON
	if size > smallAnswer {
		w.Header()["Content-Length"] = []string{strconv.Itoa(size)}
	}
	w.WriteHeader(http.StatusOK)
	for _, p := range pieces {
		if _, err := w.Write(p); err != nil {
			break // the client is gone: nobody to tell
		}
	}
	return nil
}

// smallAnswer is what net/http counts by itself; a longer answer without a length goes out in chunks.
const smallAnswer = 2 << 10

// accepted ends a notification or response.
func accepted(w http.ResponseWriter) error {
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// toClient are the headers of a target's answer that are the client's business.
var toClient = []string{"Content-Type", "Retry-After", "Cache-Control", "Expires", "Etag", "Last-Modified", "Age", "Vary", "Content-Language"}

// head writes status and headers of a target's answer. After an error nothing has been written.
func (x *Request) head(w http.ResponseWriter, t *snapshot.Target, resp *upstream.Response) error {
	h := w.Header()
	for _, key := range toClient {
		if values, ok := resp.Header[key]; ok {
			h[key] = append(h[key], values...) // Vary may be there already
		}
	}
	if x.private(t) {
		unshare(h)
	}
	if mcp.MediaType(resp.Header) == mcp.TypeStream {
		h["X-Accel-Buffering"] = []string{"no"}
	}
	if err := x.modify(h, t); err != nil {
		for _, key := range []string{"Content-Length", "X-Accel-Buffering"} { // of an answer that does not come
			delete(h, key)
		}
		for _, key := range toClient {
			if key != "Vary" { // which also says what our own answer depends on
				delete(h, key)
			}
		}
		return err
	}
	w.WriteHeader(resp.Status)
	return nil
}

// modify applies the responseHeaderModifier of the target that answers. After an error h is unchanged.
func (x *Request) modify(h http.Header, t *snapshot.Target) error {
	call := x.call(t, x.item.kind, x.item.own)
	if err := t.Policy.Response(h, &call); err != nil {
		if value, ok := errors.AsType[*policy.ValueError](err); ok {
			return x.unsayable(t, value)
		}
		return x.unreachable(t, err)
	}
	return nil
}

// inCommon applies to a merged answer the responseHeaderModifier that all targets of the backend have in common, see
// [policy.SameResponse].
func (x *Request) inCommon(h http.Header) error {
	targets := x.Backend.Targets
	for _, t := range targets[min(1, len(targets)):] {
		if !policy.SameResponse(targets[0].Policy, t.Policy) {
			return nil
		}
	}
	if len(targets) == 0 {
		return nil
	}
	return x.modify(h, targets[0])
}

// answerFor gives the client a result that a target gave earlier.
func (x *Request) answerFor(w http.ResponseWriter, t *snapshot.Target, result []byte) error {
	if err := x.modify(w.Header(), t); err != nil {
		return err
	}
	return x.answer(w, result)
}

// unshare keeps caches between proxy and client from an answer that is for this caller alone.
func unshare(h http.Header) {
	for _, v := range h["Cache-Control"] {
		if strings.Contains(v, "public") || strings.Contains(v, "s-maxage") {
			h["Cache-Control"] = []string{"private"}
			return
		}
	}
}

// relay brings a target's answer to the client, and closes it: byte for byte, but for what several targets behind one
// endpoint make necessary. it is what was asked for.
func (x *Request) relay(ctx context.Context, w http.ResponseWriter, t *snapshot.Target, resp *upstream.Response, it item) error {
	defer resp.Body.Close()
	x.item = it
	if x.masks(t, it.kind) {
		if err := x.mask(resp); err != nil {
			return err
		}
	}
	stream := mcp.MediaType(resp.Header) == mcp.TypeStream
	if !stream && x.reads(t) {
		return x.relayWhole(w, t, resp)
	}
	rewrites := x.rewrites(t)
	changes := !rewrites.None()
	if resp.Length > 0 && !stream && !changes {
		setLength(w.Header(), resp.Length)
	}
	if err := x.head(w, t, resp); err != nil {
		return err
	}
	switch {
	case stream:
		x.relayStream(ctx, w, t, resp.Body)
	case changes:
		uris := mcp.NewRewriter(w, rewrites)
		if err := copyPooled(&noting{Writer: uris, x: x}, resp.Body); err != nil {
			x.broke(err)
		}
		_ = uris.Close()
	default:
		if err := copyPooled(&noting{Writer: w, x: x}, resp.Body); err != nil {
			x.broke(err)
		}
	}
	return nil
}

func setLength(h http.Header, n int64) { h["Content-Length"] = []string{strconv.FormatInt(n, 10)} }

// noting notes for the log whether an answer that passes through is an error.
type noting struct {
	io.Writer
	x    *Request
	seen bool
}

// Write looks at the first piece alone: errors are short, and a result is not worth reading for the log's sake.
func (n *noting) Write(p []byte) (int, error) {
	if !n.seen {
		n.seen = true
		n.x.noteFailure(p)
	}
	return n.Writer.Write(p)
}

func (x *Request) noteFailure(message []byte) {
	if !bytes.Contains(message, []byte(`"error"`)) {
		return
	}
	if msg, err := mcp.Scan(message, x.mux.cfg.Limits); err == nil && msg.Kind == mcp.Response && msg.Error.Present() {
		x.Record.Failed = true
	}
}

// notingEvents does so for pieces of an event stream; one that is cut in two is not recognized.
type notingEvents struct{ x *Request }

func (n notingEvents) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`"error"`)) {
		for line := range bytes.Lines(p) {
			if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
				n.x.noteFailure(bytes.TrimSpace(data))
			}
		}
	}
	return len(p), nil
}

// broke ends an answer that has begun and cannot be completed: the client must not take it for a whole one.
func (x *Request) broke(err error) {
	x.Record.Err = err
	if x.HTTP.Context().Err() == nil {
		panic(http.ErrAbortHandler)
	}
}

// mask replaces a target's "not found" by ours, see [Request.masks]: what a target says first decides, and in what form
// it says it must not show. Answers that are too long for that are no errors.
func (x *Request) mask(resp *upstream.Response) error {
	var head, first []byte
	if mcp.MediaType(resp.Header) == mcp.TypeStream {
		rec := &recorded{body: resp.Body}
		events := mcp.NewEventReader(rec, x.mux.cfg.Limits.MaxBytes())
		for len(first) == 0 {
			ev, err := events.Next()
			if err != nil {
				break
			}
			if ev.IsMessage() {
				first = ev.Data
			}
		}
		head = rec.stop()
	} else {
		head, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorPage)) // an error comes again when the rest is read
		first = head
	}
	if len(first) > 0 && len(first) < maxErrorPage {
		msg, err := mcp.Scan(first, x.mux.cfg.Limits)
		if err == nil && masked(&msg) {
			return x.notFound(x.item.kind, x.item.shown)
		}
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), resp.Body), resp.Body}
	return nil
}

// relayStream passes an event stream on. A client of the session era that leaves has not cancelled: what the target
// still does is waited for, within bounds, so that the client finds it done when it comes back.
func (x *Request) relayStream(ctx context.Context, w http.ResponseWriter, t *snapshot.Target, body io.ReadCloser) {
	out := newSink(w, x.mux.cfg.KeepAlive)
	defer out.close()
	stop := context.AfterFunc(ctx, func() { _ = body.Close() }) // a read must not outlast what it is for
	defer stop()
	if x.alone() != nil && !x.wraps(t) && !x.watches(t) && !x.restricts(t) && !x.translates(t) {
		if err := out.copy(io.TeeReader(body, notingEvents{x})); err != io.EOF && ctx.Err() == nil {
			x.broke(err) // nobody has read what came, so nobody can tell the client but by cutting it off too
		}
		return
	}
	events := mcp.NewEventReader(body, x.mux.cfg.Limits.MaxBytes())
	gate := x.gate(t, nil, out.pass)
	defer gate.close()
	for {
		ev, err := events.Next()
		if err != nil {
			gate.close()
			x.ended(ctx, t, out, err)
			return
		}
		if err := gate.pass(ev); err != nil {
			gate.close()
			x.ended(ctx, t, out, err)
			return
		}
	}
}

// ended tells the client why a stream is over before its response came. One that its target has ended is not told: targets end
// streams that their clients come back to.
func (x *Request) ended(ctx context.Context, t *snapshot.Target, out *sink, err error) {
	switch {
	case x.responded: // a call has one response
	case errors.Is(context.Cause(ctx), upstream.ErrTimeout):
		out.message(x.asError(x.unreachable(t, upstream.ErrTimeout)).Append(nil))
	case err == io.EOF:
	default:
		x.Record.Err = err
		if x.Message.Kind == mcp.Request && ctx.Err() == nil {
			out.message(x.asError(x.unreadableAnswer(t, err)).Append(nil))
		}
	}
}

// watches reports whether the proxy itself has to read what a target's streams say: its lists are remembered here, or it
// has a deadline that the client is told of.
func (x *Request) watches(t *snapshot.Target) bool {
	return t.Policy.Authorizes() || t.Config.GetListCache() != nil || deadline(t) > 0 || x.reads(t)
}

// translate makes a target's event one of the client's: URIs carry the target's name, ids that come back are sealed.
// position is nil for the stream of a POST, else it makes the event's id.
func (x *Request) translate(t *snapshot.Target, ev *mcp.Event, position func(id string) string) error {
	if ev.HasID && len(ev.ID) > 0 && x.Session != nil && x.Codec != nil {
		switch {
		case position != nil:
			id := position(string(ev.ID))
			ev.ID, ev.HasID = []byte(id), id != ""
		case x.alone() == nil:
			id := x.position(t, string(ev.ID))
			ev.ID, ev.HasID = []byte(id), id != ""
		}
	}
	if len(ev.Data) == 0 {
		return nil
	}
	msg, err := mcp.Scan(ev.Data, x.mux.cfg.Limits)
	if err != nil {
		return err
	}
	x.noteChange(t, &msg)
	if msg.Kind == mcp.Response && x.alone() == nil && (position != nil || x.responded) {
		return errHidden // nothing was asked there, or it has its answer: this could only be for what another target was asked
	}
	x.responded = x.responded || msg.Kind == mcp.Response
	x.Record.Failed = x.Record.Failed || msg.Kind == mcp.Response && msg.Error.Present()
	if x.masks(t, x.item.kind) && masked(&msg) {
		ev.Data = x.asError(x.notFound(x.item.kind, x.item.shown)).Append(nil)
		return nil
	}
	if msg.Kind == mcp.Response {
		if r := x.rewrites(t); !r.None() {
			ev.Data, err = mcp.Rewrite(nil, msg.Body, r)
		}
		return err
	}
	if !x.wraps(t) {
		ev.Data, err = x.translateTasks(t, &msg, msg.Body)
		return err
	}
	ev.Data, err = x.translateMessage(t, &msg)
	return err
}

// requestID is the raw id of the request whose answer is at hand, or was when the stream began that is resumed; nil if nothing was asked,
// or an earlier release began the stream.
func (x *Request) requestID() []byte {
	if x.Message != nil && x.Message.Kind == mcp.Request {
		return x.Message.RawID()
	}
	return x.resumed
}

// maxAsked bounds the ids of requests in positions, which clients send back in a header. A stream with a longer one is not resumed.
const maxAsked = 1 << 10

// position seals where a target's answer stands, and what it answers: whichever proxy resumes it must know.
func (x *Request) position(t *snapshot.Target, id string) string {
	asked := x.requestID()
	if len(asked) > maxAsked {
		return ""
	}
	return x.Codec.SealPosition(x.Scope, x.Session.Nonce, session.Position{Events: []session.Event{{Target: t.Name, ID: id}}, Asked: string(asked)})
}

// translateMessage is translate for a notification or request of one target among several.
func (x *Request) translateMessage(t *snapshot.Target, msg *mcp.Message) ([]byte, error) {
	var e mcp.Edits
	switch msg.Kind {
	case mcp.Request:
		e.String(msg.ID, []byte(x.sealRequest(t, msg.RawID())))
	case mcp.Notification:
		switch {
		case msg.Method == "notifications/cancelled" && msg.RequestID.Present():
			// Sealing gives one request always the same id, so the client finds what is cancelled.
			e.String(msg.RequestID, []byte(x.sealRequest(t, msg.RequestID.Of(msg.Body))))
		case msg.URI.IsString():
			e.String(msg.URI.Span, []byte(joinURI(t.Name, msg.URI.String())))
		}
	}
	body := msg.Body
	if e.Len() > 0 {
		body = e.Apply(nil, body)
	}
	return x.translateTasks(t, msg, body)
}

func (x *Request) sealRequest(t *snapshot.Target, id []byte) string {
	if x.Session == nil {
		return string(id)
	}
	leg := x.known(t)
	return x.Codec.SealRequest(x.Scope, x.Session.Nonce, session.Request{Target: t.Name, Session: leg.ID, ID: string(id)})
}

// known is the session at a target, without making one.
func (x *Request) known(t *snapshot.Target) session.Target {
	if s, ok := x.mux.soft.Get(t.Tenant.Name, softKey{x.Session.Nonce, t.Name}); ok {
		return s
	}
	s, _ := x.Session.Target(t.Name)
	return s
}

// rewriteURI makes a target's URI the client's; nil where they are the same.
func (x *Request) rewriteURI(t *snapshot.Target) func([]byte) []byte {
	if !x.wraps(t) {
		return nil
	}
	return func(uri []byte) []byte { return []byte(joinURI(t.Name, string(uri))) }
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// copyPooled copies without io.Copy's way through ReadFrom, which would take a buffer of its own.
func copyPooled(w io.Writer, r io.Reader) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := r.Read(*buf)
		if n > 0 {
			if _, werr := w.Write((*buf)[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
