package newclient

import (
	"context"
	"crypto/rand"
	"net/http"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
)

// patience is how long a client may take to come back with what it was asked.
func (k *call) patience() time.Duration {
	if d := k.p.t.Config.GetTimeout(); d != nil {
		return d.AsDuration()
	}
	return k.p.b.cfg.Park
}

// ask ends a round with all that the target has asked so far, and parks the call.
func (k *call) ask(rd *round) event {
	b := k.p.b
	if rd.f.caller.Codec == nil {
		return k.refuse(rd, "this proxy has no session keys yet; try again")
	}
	expires := time.Now().Add(k.patience())
	k.mu.Lock()
	if k.state != running { // the client has left
		k.mu.Unlock()
		return event{err: &upstream.Error{Op: "call", Target: k.p.t.Resource, Sent: true, Err: errRetired}}
	}
	if k.park == (session.CallID{}) {
		_, _ = rand.Read(k.park[:]) // crypto/rand.Read never returns an error
	}
	b.mu.Lock()
	if why := b.fullOf(k); why != "" {
		b.mu.Unlock()
		k.mu.Unlock()
		return k.refuse(rd, why)
	}
	b.parked[k.park], k.held = k, k.asking()
	b.mu.Unlock()
	k.state = parked
	k.round = rd.n + 1
	k.timer = time.AfterFunc(time.Until(expires), k.expire)
	call := session.Call{Owner: b.cfg.ProxyID, ID: k.park, Round: k.round, Target: k.p.t.Resource, Digest: digest(rd.m), Expires: expires.Truncate(time.Second).Add(time.Second)}
	k.mu.Unlock()
	k.giveTurn()

	entries := make([]entry, len(k.asks))
	for i, a := range k.asks {
		entries[i] = entry{a.key, a.entry}
	}
	return rd.inputRequired(k.p, entries, call)
}

// maxAsked bounds what the calls of each tenant keep while they wait for their clients, in bytes.
const maxAsked = 64 << 20

// asking is about how many bytes a call keeps while it waits.
func (k *call) asking() int {
	n := 4 << 10 // with its context and goroutine
	for _, a := range k.asks {
		n += a.size()
	}
	return n
}

// fullOf tells why a call cannot wait, in words for its client; "": it can, and has taken room for what it keeps. b.mu is held.
func (b *Bridge) fullOf(k *call) string {
	all, own := 0, 0
	for _, other := range b.parked {
		if other.p.t.Resource != k.p.t.Resource {
			continue
		}
		all++
		if other.whose.Principal == k.whose.Principal {
			own++
		}
	}
	switch {
	case b.closed || all >= b.cfg.MaxParked:
		return "too many calls of the target wait for their clients on this proxy"
	case own >= hold.Share(b.cfg.MaxParked, k.whose.Principal) || !b.asked.Take(k.p.t.Tenant.Name, k.whose.Principal, k.asking()):
		return "as many calls of the target wait for you on this proxy as may for one caller, or ask as much; answer what they ask, or let them end"
	}
	return ""
}

// refuse ends the call with an error of the proxy's own: the target is told.
func (k *call) refuse(rd *round, why string) event {
	k.abandon(rd.n)
	return event{status: http.StatusServiceUnavailable, final: mcp.AppendError(nil, rd.id, mcp.CodeInternal, why, nil)}
}

// entry is one of the inputRequests.
type entry struct {
	key string
	raw []byte
}

// inputRequired is the response that asks the client.
func (rd *round) inputRequired(p *peer, entries []entry, c session.Call) event {
	result := []byte(`{"resultType":"input_required","inputRequests":{`)
	for i, e := range entries {
		if i > 0 {
			result = append(result, ',')
		}
		result = append(append(mcp.AppendString(result, e.key), ':'), e.raw...)
	}
	result = mcp.AppendString(append(result, `},"requestState":`...), rd.f.caller.Codec.SealCall(rd.f.caller.Scope, c))
	if object(p.info) {
		result = append(append(append(result, `,"_meta":{"`+mcp.MetaServerInfo+`":`...), p.info...), '}')
	}
	return event{status: http.StatusOK, final: mcp.AppendResult(nil, rd.id, append(result, '}'))}
}

// expire cancels a call that nobody came back to.
func (k *call) expire() {
	k.mu.Lock()
	if k.state != parked {
		k.mu.Unlock()
		return
	}
	k.state = over
	k.timer.Stop()
	k.unpark()
	k.mu.Unlock()
	k.giveUp("the client did not come back with what was asked")
}

// unpark takes the call from those that wait. k.mu is held.
func (k *call) unpark() {
	k.p.b.mu.Lock()
	defer k.p.b.mu.Unlock()
	delete(k.p.b.parked, k.park)
	k.p.b.asked.Give(k.p.t.Tenant.Name, k.whose.Principal, k.held)
	k.held = 0
}

// resume goes on with a parked call: the client's answers go to the target, and this request gets what the target says
// then.
func (f *stateless) resume(ctx context.Context, r *upstream.Request, m *mcp.Message, c *session.Call) (*upstream.Response, error) {
	over := f.refuse(m, http.StatusOK, mcp.CodeInvalidParams,
		"Invalid requestState: the call is over or went on with another answer, or this proxy was started anew; it was not run again: call anew")
	f.b.mu.Lock()
	k := f.b.parked[c.ID]
	f.b.mu.Unlock()
	// Every proxy of the group can seal a requestState, and one that was broken into would. So whose the call is, is looked up here.
	if k == nil || k.whose != f.caller.Scope || !k.wake(c.Round) {
		return over, nil
	}
	rd := f.round(r, m, c.Round)
	if err := k.takeTurn(ctx); err != nil {
		k.abandon(rd.n)
		return nil, &upstream.Error{Op: "wait for the session", Target: f.t.Resource, Sent: true, Err: err}
	}
	// What the target said meanwhile comes first: it may not want the answers any more.
	for {
		select {
		case it := <-k.in:
			if ev, ok := k.take(rd, it); ok && ev.note == nil {
				return rd.only(ev)
			}
			continue
		default:
		}
		break
	}
	if err := k.answer(ctx, rd, m); err != nil {
		k.abandon(rd.n)
		return nil, err
	}
	return k.serve(ctx, rd)
}

// only is an event as a whole answer.
func (rd *round) only(ev event) (*upstream.Response, error) {
	if ev.final != nil {
		return answered(ev.status, ev.final), nil
	}
	return ev.page, ev.err
}

// wake takes a parked call, if it waits for just this round.
func (k *call) wake(round uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state != parked || k.round != round {
		return false
	}
	k.state = waiting
	k.timer.Stop()
	k.unpark()
	return true
}

// answer sends the client's answers to the target. What has none stays to be asked again.
func (k *call) answer(ctx context.Context, rd *round, m *mcp.Message) error {
	given := map[string][]byte{}
	members(m.InputResponses.Of(m.Body), func(key string, value []byte) {
		if object(value) {
			given[key] = value
		}
	})
	var left []*ask
	for i, a := range k.asks {
		value, ok := given[a.key]
		if !ok {
			left = append(left, a)
			continue
		}
		if err := k.p.tell(ctx, "", mcp.AppendResult(nil, a.id, value), rd.r); err != nil {
			k.asks = append(left, k.asks[i:]...)
			return err
		}
	}
	k.asks = left
	k.first = time.Now()
	k.last = k.first
	return nil
}

// again seals what a retry needs that is a call of its own.
func (k *call) again(rd *round, c session.Call) session.Call {
	c.Target, c.Digest = k.p.t.Resource, digest(rd.m)
	c.Expires = time.Now().Add(k.patience()).Truncate(time.Second).Add(time.Second)
	return c
}

// visit asks the client to visit URLs, after the target refused the call because of them: the retry is the call anew.
func (k *call) visit(rd *round, urls [][]byte) event {
	if rd.f.caller.Codec == nil {
		return event{status: http.StatusServiceUnavailable, final: mcp.AppendError(nil, rd.id, mcp.CodeInternal, "this proxy has no session keys yet; try again", nil)}
	}
	entries := make([]entry, len(urls))
	for i, raw := range urls {
		k.named++
		entries[i] = entry{keyOf("elicitation/create", k.named), raw}
	}
	return rd.inputRequired(k.p, entries, k.again(rd, session.Call{Answered: true}))
}

// leaked makes input_required of a target's result that is one in all but name. go-sdk's servers give such a result when
// the handler of a tool asks a second time; they go on when the call is sent again with answers and state.
func (k *call) leaked(rd *round, m *mcp.Message) (event, bool) {
	var requests []byte
	c := session.Call{}
	err := mcp.Members(m.Result.Of(m.Body), k.p.b.cfg.Limits, nil, func(name, value []byte) error {
		switch string(name) {
		case "inputRequests":
			requests = value
		case "requestState":
			if text, ok := mcp.Unquote(value); ok {
				c.State, c.HasState = string(text), true
			}
		}
		return nil
	})
	if err != nil || !object(requests) || rd.f.caller.Codec == nil {
		return event{}, false
	}
	var entries []entry
	supported := true
	members(requests, func(key string, raw []byte) {
		entries = append(entries, entry{key, raw})
		supported = supported && k.p.client.can(raw)
	})
	if !supported || len(entries) == 0 {
		return event{}, false
	}
	return rd.inputRequired(k.p, entries, k.again(rd, c)), true
}
