package mux

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// filter is what a subscriptions/listen asks for.
type filter struct {
	Tools     bool     `json:"toolsListChanged,omitempty"`
	Prompts   bool     `json:"promptsListChanged,omitempty"`
	Resources bool     `json:"resourcesListChanged,omitempty"`
	URIs      []string `json:"resourceSubscriptions,omitempty"`
	Tasks     []string `json:"taskIds,omitempty"`
}

func (f filter) wants(l mcp.List) bool {
	return l == mcp.Tools && f.Tools || l == mcp.Prompts && f.Prompts || l == mcp.Resources && f.Resources
}

func (f filter) empty() bool { return !f.lists().any() && len(f.URIs) == 0 && len(f.Tasks) == 0 }

// lists is f less all but the lists' flags, of which there need not be any.
func (f filter) lists() filter {
	return filter{Tools: f.Tools, Prompts: f.Prompts, Resources: f.Resources}
}

func (f filter) any() bool { return f.Tools || f.Prompts || f.Resources }

// maxListen bounds what is kept while a listen is open: its request. It has room for a thousand resources.
const maxListen = 128 << 10

// metaSubscription names, in _meta, the listen that a message belongs to.
const metaSubscription = "io.modelcontextprotocol/subscriptionId"

// listenTag is an object with the tag in its _meta.
func listenTag(id []byte) []byte {
	return append(append([]byte(`{"_meta":{"`+metaSubscription+`":`), id...), "}}"...)
}

// listen serves subscriptions/listen: one stream of what changes, until the client leaves.
func (m *Mux) listen(w http.ResponseWriter, x *Request) error {
	if err := m.streams.room(x); err != nil {
		return err
	}
	if len(x.Message.Body) > maxListen {
		return x.fail(http.StatusRequestEntityTooLarge, mcp.CodeInvalidParams, "a subscriptions/listen has at most %d bytes: spread the resources over several", maxListen)
	}
	var f filter
	raw := x.Message.Filter.Of(x.Message.Body)
	if raw == nil || json.Unmarshal(raw, &f) != nil {
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidParams, "subscriptions/listen needs params.notifications, an object")
	}
	if err := mcp.Unambiguous(raw, x.mux.cfg.Limits); err != nil { // the only target is given it as it is, and may read another of two members
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidParams, "params.notifications: %v", err)
	}
	if t := x.alone(); t != nil && !(t.Policy.Authorizes() && len(f.URIs)+len(f.Tasks) > 0) && !x.sealsAny(f.Tasks) {
		return m.listenOne(w, x, t, f)
	}
	return m.listenAll(w, x, f)
}

// listenOne passes the only target's stream through.
func (m *Mux) listenOne(w http.ResponseWriter, x *Request, t *snapshot.Target, f filter) error {
	ctx, cancel := context.WithCancelCause(x.HTTP.Context())
	defer cancel(nil)
	x.Record.Target = t.Name
	if err := x.take(t, policy.None, ""); err != nil {
		return err
	}
	resp, err := x.send(ctx, t, outgoing{body: x.Message.Body, method: x.Message.Method})
	if err != nil {
		return err
	}
	if mcp.MediaType(resp.Header) != mcp.TypeStream {
		return x.relay(ctx, w, t, resp, item{})
	}
	defer resp.Body.Close()
	if err := x.head(w, t, resp); err != nil {
		return err
	}
	out := newSink(w, m.cfg.KeepAlive)
	out.hold() // nothing may come before the target's acknowledgement
	defer out.close()
	open := m.streams.addListen(x, out, cancel, x.Message.RawID(), f.wants)
	defer m.streams.remove(open)
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	_ = x.follow(t, resp.Body, nil, func(ev mcp.Event) {
		if msg, err := mcp.Scan(ev.Data, m.cfg.Limits); err == nil && msg.Kind == mcp.Response {
			out.end(ev)
			cancel(nil) // the client listens anew
		} else {
			out.pass(ev)
		}
	})
	x.goodbye(ctx, out)
	return nil
}

// goodbye ends a listen politely where the proxy ends it.
func (x *Request) goodbye(ctx context.Context, out *sink) {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errDrained), errors.Is(cause, errMoved), errors.Is(cause, errRevoked), errors.Is(cause, errExpired):
		result := append([]byte(`{"resultType":"complete",`), listenTag(x.Message.RawID())[1:]...)
		out.end(mcp.Event{Type: messageType, Data: mcp.AppendResult(nil, x.Message.RawID(), result), HasData: true})
	}
}

// listenAll splits the filter by target, and merges what the targets say. The lists' flags are always honoured, since
// the proxy's own configuration changes them; of the URIs, those that a target honours.
func (m *Mux) listenAll(w http.ResponseWriter, x *Request, f filter) error {
	ctx, cancel := context.WithCancelCause(x.HTTP.Context())
	defer cancel(nil)
	shares, refused, err := x.split(ctx, f)
	if err != nil {
		return err
	}
	acks := make([]filter, len(x.Backend.Targets))
	bodies := make([]*listening, len(x.Backend.Targets))
	later := make([]bool, len(x.Backend.Targets)) // refused for now
	var asked []*snapshot.Target
	for i, t := range x.Backend.Targets {
		if !shares[i].empty() {
			asked = append(asked, t)
		}
	}
	errs := x.eachTaken(ctx, asked, func(wait context.Context, own *Request, t *snapshot.Target) error {
		i := own.order(t)
		// The stream outlives the time that its beginning may take.
		l, err := own.listenAt(ctx, wait, t, shares[i])
		switch {
		case errors.Is(err, errNotNow):
			later[i] = true
			return nil
		case err == nil && l != nil:
			bodies[i], acks[i] = l, l.honoured
		}
		return err
	})
	defer func() {
		for _, l := range bodies {
			if l != nil {
				l.close()
			}
		}
	}()
	var missing missing
	for i, t := range asked {
		if errs[i] != nil {
			missing.add(t, errs[i])
		}
	}
	if err := missing.refuse(x, len(asked), errs); err != nil {
		return err
	}
	h := w.Header()
	h["Content-Type"] = []string{mcp.TypeStream}
	h["X-Accel-Buffering"] = []string{"no"}
	h["Cache-Control"] = []string{"no-cache"}
	if err := x.inCommon(h); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	out := newSink(w, m.cfg.KeepAlive)
	defer out.close()
	out.message(x.acknowledge(f, acks, refused))
	open := m.streams.addListen(x, out, cancel, x.Message.RawID(), f.wants)
	defer m.streams.remove(open)

	var wg sync.WaitGroup
	begin := func(t *snapshot.Target, l *listening, f filter) {
		own := *x
		own.Record = &Record{}
		wg.Go(func() { own.relisten(ctx, t, l, f, out) })
	}
	for i, t := range asked {
		at := x.order(t)
		switch f := shares[at]; {
		case bodies[at] != nil:
			begin(t, bodies[at], f)
		case (later[at] || errs[i] != nil && x.asError(errs[i]).Status >= 500) && f.lists().any(): // all that the client was promised of it
			begin(t, nil, f.lists())
		}
	}
	<-ctx.Done()
	for _, l := range bodies {
		if l != nil {
			l.close()
		}
	}
	wg.Wait()
	x.goodbye(ctx, out)
	return nil
}

// metaRefused says in _meta of an acknowledgement why rules refuse some URIs, where they let that be told.
const metaRefused = "sluice/refused"

// split is each target's share of the filter, in its own URIs, less what its rules refuse. Refusals that may be explained are
// in refused, by URI; one that more scopes would lift is an error.
func (x *Request) split(ctx context.Context, f filter) (shares []filter, refused map[string]string, err error) {
	shares, refused = make([]filter, len(x.Backend.Targets)), map[string]string{}
	for i := range shares {
		shares[i] = f.lists()
	}
	for _, uri := range f.URIs {
		t, own := x.byURI(uri)
		if t == nil {
			continue
		}
		asking := *x
		asking.Record = &Record{}
		err := asking.admit(ctx, t, policy.Resource, own, uri)
		if err == nil {
			i := x.order(t)
			shares[i].URIs = append(shares[i].URIs, own)
			continue
		}
		if e, ok := errors.AsType[*Error](err); ok && asking.Record.Refused {
			x.Record.Refused, x.Record.Rule = true, asking.Record.Rule
			return nil, nil, e
		}
		if e := asking.asError(err); asking.Record.Refused && e.Message != asking.notFound(policy.Resource, uri).Message {
			refused[uri] = e.Message
		}
	}
	return shares, refused, x.listensToTasks(ctx, f, shares)
}

// listening is one target's part of a listen.
type listening struct {
	body     io.ReadCloser
	events   *mcp.EventReader
	honoured filter
	cancel   context.CancelFunc
}

func (l *listening) close() {
	l.cancel()
	_ = l.body.Close()
}

// errNotNow: the target has refused or ended a listen before it began, and may take another.
var errNotNow = errors.New("the target takes no listen now")

// listenAt begins to listen at a target and reads its acknowledgement. A target that has no listen honours nothing,
// which is nil; one that may take it later is errNotNow.
func (x *Request) listenAt(ctx, wait context.Context, t *snapshot.Target, f filter) (*listening, error) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(wait, cancel)
	resp, err := x.send(ctx, t, outgoing{body: x.listenRequest(f), method: "subscriptions/listen"})
	if err != nil {
		cancel()
		return nil, err
	}
	l := &listening{body: resp.Body, cancel: cancel}
	if mcp.MediaType(resp.Header) == mcp.TypeStream {
		l.events = mcp.NewEventReader(resp.Body, x.mux.cfg.Limits.MaxBytes())
		err = l.acknowledged(x.mux.cfg.Limits)
	} else if msg, unread := x.readMessage(t, resp, x.scanned()); unread == nil {
		err = refusedListen(msg)
	} else {
		err = errNotNow
	}
	if !stop() && (err == nil || errors.Is(err, errNotNow)) {
		err = upstream.ErrTimeout
	}
	switch {
	case errors.Is(err, errNotNow):
		l.close()
		return nil, err
	case errors.Is(err, errNoStream):
		l.close()
		return nil, nil
	case err != nil:
		l.close()
		return nil, x.unreachable(t, err)
	}
	return l, nil
}

// acknowledged reads the first message.
func (l *listening) acknowledged(lim mcp.Limits) error {
	for {
		ev, err := l.events.Next()
		if err == io.EOF {
			return errNotNow
		}
		if err != nil {
			return err
		}
		if !ev.IsMessage() {
			continue
		}
		msg, err := mcp.Scan(ev.Data, lim)
		if err != nil {
			return err
		}
		if msg.Kind == mcp.Response {
			return refusedListen(&msg)
		}
		if msg.Method != "notifications/subscriptions/acknowledged" {
			return errNoStream
		}
		return json.Unmarshal(msg.Filter.Of(msg.Body), &l.honoured)
	}
}

// refusedListen is what a response in place of an acknowledgement means.
func refusedListen(msg *mcp.Message) error {
	if code, _ := msg.ErrorCode(); code == mcp.CodeMethodNotFound || code == mcp.CodeInvalidRequest {
		return errNoStream
	}
	return errNotNow
}

func (x *Request) listenRequest(f filter) []byte {
	params := append([]byte(`{"notifications":`), marshal(f)...)
	params = append(append(params, `,"_meta":`...), x.ownMeta()...)
	return mcp.AppendRequest(nil, x.Message.RawID(), "subscriptions/listen", append(params, '}'))
}

// acknowledge is the merged acknowledgement: the client's own filter, less URIs that no target honours.
func (x *Request) acknowledge(f filter, acks []filter, refused map[string]string) []byte {
	honoured := f.lists()
	for _, uri := range f.URIs {
		if t, own := x.byURI(uri); t != nil && slices.Contains(acks[x.order(t)].URIs, own) {
			honoured.URIs = append(honoured.URIs, uri)
		}
	}
	for _, id := range f.Tasks {
		if x.honoursTask(id, acks) {
			honoured.Tasks = append(honoured.Tasks, id)
		}
	}
	params := append([]byte(`{"notifications":`), marshal(honoured)...)
	params = append(append(params, `,"_meta":{"`+metaSubscription+`":`...), x.Message.RawID()...)
	if len(refused) > 0 {
		params = append(append(params, `,"`+metaRefused+`":`...), marshal(refused)...)
	}
	params = append(params, "}}"...)
	return mcp.AppendNotification(nil, "notifications/subscriptions/acknowledged", params)
}

// relisten passes a target's events on, and opens the stream again when it breaks: what changed meanwhile was missed,
// so the client is told that everything may have. l is nil where the stream could not be opened yet.
func (x *Request) relisten(ctx context.Context, t *snapshot.Target, l *listening, f filter, out *sink) {
	wait := time.Second
	for {
		if began := time.Now(); l != nil {
			stop := context.AfterFunc(ctx, l.close)
			x.followListen(t, l, out)
			stop()
			l.close()
			if time.Since(began) > wait {
				wait = time.Second
			}
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, 30*time.Second)
			again, cancel := x.mux.fanOut(ctx, t)
			next, err := x.listenAt(ctx, again, t, f)
			cancel()
			if err == nil && next == nil {
				return // it has no listen any more
			}
			if err == nil {
				l = next
				break
			}
		}
		x.tellAll(t, l.honoured, out)
	}
}

// tellAll says of all that a target's part of a listen is about that it may have changed.
func (x *Request) tellAll(t *snapshot.Target, f filter, out *sink) {
	tag := listenTag(x.Message.RawID())
	for list, method := range map[mcp.List]string{
		mcp.Tools: "notifications/tools/list_changed", mcp.Prompts: "notifications/prompts/list_changed", mcp.Resources: "notifications/resources/list_changed",
	} {
		if f.wants(list) {
			out.message(mcp.AppendNotification(nil, method, tag))
		}
	}
	for _, uri := range f.URIs {
		if x.wraps(t) {
			uri = joinURI(t.Name, uri)
		}
		params := append(append(mcp.AppendString([]byte(`{"uri":`), uri), ','), tag[1:]...)
		out.message(mcp.AppendNotification(nil, "notifications/resources/updated", params))
	}
}

// followListen passes notifications on. The target's own end of the stream is not the client's.
func (x *Request) followListen(t *snapshot.Target, l *listening, out *sink) {
	gate := x.gate(t, nil, func(ev mcp.Event) { out.message(bytes.Clone(ev.Data)) })
	defer gate.close()
	for {
		ev, err := l.events.Next()
		if err != nil {
			return
		}
		if !ev.IsMessage() {
			continue
		}
		msg, err := mcp.Scan(ev.Data, x.mux.cfg.Limits)
		if err != nil || msg.Kind == mcp.Response {
			return
		}
		if msg.Kind != mcp.Notification {
			continue
		}
		if err := gate.pass(ev); err != nil {
			return
		}
	}
}
